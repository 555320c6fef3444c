"""transformers: a callback of its ``Trainer`` that prunes, and ``from_pretrained`` of sparse models."""

import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from transformers import AutoConfig, TrainerCallback
from transformers.core_model_loading import revert_weight_conversion

from sparseprune.checkpoint import sparsify_like
from sparseprune.checkpoint.state import written_out
from sparseprune.integrations.before_training import BeforeTraining, is_pruned
from sparseprune.nn import dialects
from sparseprune.nn.sites import sites, unwrapped


class PruneBeforeTraining(BeforeTraining, TrainerCallback):
    """Makes the model of a ``Trainer`` sparse when that is made, before it has an optimizer.

    A model that is sparse already, such as one of :func:`from_pretrained`, stays as it is; so a script that
    resumes need not ask.

    A function for ``masks`` must score batches that lie where the trainer puts the model, on ``args.device``.
    """

    def on_init_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """
        Raises:
            ValueError: the trainer has an optimizer already; the model is unchanged.
        """
        model = given["model"]
        if is_pruned(model):
            return
        if given.get("optimizer") is not None:
            raise ValueError(
                "PruneBeforeTraining: expected a Trainer that makes its optimizer itself, got one of the "
                "dense model; prune and sparsify the model first, make the optimizer of that, and leave the "
                "callback out"
            )
        self.make_sparse(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """
        Raises:
            ValueError: the model is dense, for it came after :meth:`on_init_end`.
        """
        if not is_pruned(unwrapped(given["model"])):
            raise ValueError(
                "PruneBeforeTraining: expected to be given to Trainer(model=..., callbacks=[...]), got a "
                "dense model when training began; with model_init=, prune and sparsify in that function"
            )


def from_pretrained(
    kind: Any, folder: str | os.PathLike[str], *, config: Any = None, **options: Any
) -> nn.Module:
    """Load what ``save_pretrained`` of a sparse model wrote, with the layers that it had.

    ``kind.from_pretrained`` itself would initialise the sparse layers anew, with no more than a report.

    Args:
        kind: a model class of transformers, ``BertModel`` or ``AutoModel``.
        folder: of ``save_pretrained`` or ``Trainer.save_model``, or one of the checkpoints of ``Trainer``.
        config: in place of the folder's.
        options: others of ``kind.from_pretrained``, such as ``dtype``.
    Returns:
        the model, in evaluation mode like transformers' own; ``densify`` makes it dense.
    Raises:
        FileNotFoundError: the folder has no ``model*.safetensors``.
        ValueError: it is of another architecture, or damaged.
    """
    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"from_pretrained: expected model.safetensors in {os.fspath(folder)}, found none; "
            "save_pretrained writes it"
        )
    state: dict[str, Any] = {}
    for file in files:
        state |= safetensors.torch.load_file(file)
    config = AutoConfig.from_pretrained(folder) if config is None else config
    with torch.device("meta"):
        skeleton = getattr(kind, "from_config", kind)(config)
    names = [site.name for site in sites(skeleton)]
    in_model = _names_in_model(skeleton)
    state = {in_model.get(name, name): tensor for name, tensor in state.items()}
    # transformers loads the dense form, with all that it knows of names, types and tied weights.
    only_sparse = {part for name in names for part in dialects.all_names(name)} - skeleton.state_dict().keys()
    dense = written_out(state, skeleton)
    dense = {name: tensor for name, tensor in dense.items() if name not in only_sparse}
    model = type(skeleton).from_pretrained(None, config=config, state_dict=dense, **options)
    return sparsify_like(model, {**model.state_dict(), **state}, inplace=True)


def _names_in_model(model: nn.Module) -> dict[str, str]:
    """From the names of parts of weights in ``save_pretrained``'s files to those in the model."""
    parts = {
        name: torch.empty_like(site.parameter)
        for site in sites(model)
        for name in dialects.all_names(site.name)
    }
    of_part = {id(part): name for name, part in parts.items()}
    saved = revert_weight_conversion(model, dict(parts))
    return {name: of_part[id(part)] for name, part in saved.items() if id(part) in of_part}
