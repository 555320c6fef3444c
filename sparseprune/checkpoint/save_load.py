"""``sp.save`` and ``sp.load``: a model and its optimizer in one file of safetensors."""

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune._version import __version__
from sparseprune.checkpoint import optimizers
from sparseprune.checkpoint.state import converted, sparse_prefix, to_file
from sparseprune.format import tensor_file
from sparseprune.nn.sites import plain, unwrapped

FORMAT = 1  # of the file
INTERNAL = ("format", "aliases", "shapes", "optimizer")
OURS = (*INTERNAL, "versions", "sparsity", "block")


def save(
    model: nn.Module, path: str | os.PathLike[str], optimizer: Optimizer | None = None, **facts: Any
) -> None:
    """Write a model, and its optimizer, to a file that loads into the same layers sparse, masked or dense.

    It is a file of safetensors, written whole or not at all; it holds no pickle. A pruned weight takes
    4 + 2 / V bytes for each weight that is kept, in float32 and blocks of V rows (4 / V with more than 65,536
    columns), besides 2 or 4 for each row of blocks.

    Args:
        model: a model whose layers may be sparse, masked, dense, or pruned by ``torch.nn.utils.prune``.
            Wrappers of torch.compile and of data-parallel training are left out.
        path: the file; its folder is made if need be.
        optimizer: an optimizer of parameters of the model. Its state goes along with each weight.
        facts: what else :func:`load` shall return, as JSON holds it: ``method="snip", seed=0, epoch=3``.
    Raises:
        TypeError: a fact is not for JSON, or model or optimizer hold other things than tensors and numbers.
        ValueError: the optimizer trains parameters of another model.
        OSError: the file cannot be written; what was there is as it was.
    """
    if reserved := sorted(facts.keys() & set(OURS)):
        raise ValueError(
            f"save: expected other names of facts than {', '.join(reserved)}, which save() writes"
        )
    model = unwrapped(model)
    state, shapes = to_file(model)
    content = {
        **facts,
        "format": FORMAT,
        "versions": {"sparseprune": __version__, "torch": torch.__version__},
    }
    content |= _facts_of_weights(state, shapes)
    tensors: dict[str, Tensor] = {}
    content["optimizer"] = None
    if optimizer is not None:
        tensors, content["optimizer"] = optimizers.to_file(optimizer, model, state)
    state, content["aliases"] = _without_aliases(state)
    for name in shapes:
        for part in (f"{sparse_prefix(name)}{index}" for index in ("crow", "col")):
            if part in state:
                state[part] = _narrowed(state[part])
    try:
        tensor_file.save(path, {**state, **tensors}, content)
    except TypeError as error:
        raise TypeError(f"save: expected facts that JSON holds, got {sorted(facts)}: {error}") from error


def load(
    path: str | os.PathLike[str], model: nn.Module, optimizer: Optimizer | None = None
) -> dict[str, Any]:
    """Load what :func:`save` wrote into a model of the same architecture, whichever layers are sparse there.

    Sparse and masked layers take over the pattern of the file; in dense ones pruned weights become 0. A layer
    that was dense in the file must be 0 outside the pattern that it has in the model. Where layers are what
    they were, training goes on bit by bit as if it had not stopped.

    Args:
        path: the file.
        model: the model; sparse layers may be without a pattern yet.
        optimizer: an optimizer of the model, of the same class and the same groups of parameters. Like
            torch's ``load_state_dict``, this brings its learning rates and other options from the file.
    Returns:
        the facts that were given to :func:`save`; besides "sparsity" and "block" of all pruned layers ("auto"
        where blocks differ) and "versions".
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, damaged or changed, or of another model or optimizer. Model and
            optimizer are as they were.
    """
    tensors, facts = tensor_file.load(path, "load")
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"load: expected a file of format {FORMAT}, got {facts.get('format')!r} in {os.fspath(path)}; "
            "it takes another version of sparseprune"
        )
    model = unwrapped(model)
    try:
        tensors |= {name: tensors[first] for name, first in facts["aliases"].items()}
        state = {name: t for name, t in tensors.items() if not name.startswith(optimizers.PREFIX)}
        wanted = converted(state, model, "load", facts["shapes"])
        packed = None
        if optimizer is not None:
            if facts["optimizer"] is None:
                raise ValueError(
                    f"load: expected a file with an optimizer, got {os.fspath(path)}, saved without; "
                    "save(model, path, optimizer) writes it"
                )
            bare = {plain(name): tensor for name, tensor in wanted.items()}
            packed = optimizers.from_file(optimizer, model, tensors, facts["optimizer"], bare)
    # Who can write a checksum can write anything.
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"load: expected a file that sparseprune.save wrote, got {os.fspath(path)}, "
            f"made by another ({error!r})"
        ) from error
    model.load_state_dict(wanted)
    if optimizer is not None and packed is not None:
        optimizer.load_state_dict(packed)
    return {name: fact for name, fact in facts.items() if name not in INTERNAL}


def _facts_of_weights(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Sparsity and block of the pruned layers together, and the shape of each."""
    values = [state[f"{sparse_prefix(name)}values"] for name in shapes]
    kept, total = sum(v.numel() for v in values), sum(map(math.prod, shapes.values()))
    blocks = {v.shape[1] for v in values}
    block = [min(blocks), 1] if len(blocks) == 1 else "auto"
    return {"sparsity": 1 - kept / total if total else 0.0, "block": block, "shapes": shapes}


def _without_aliases(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and the other names of those that have several."""
    first: dict[Any, str] = {}
    aliases = {}
    for name, t in state.items():
        if t.numel():
            same = first.setdefault((t.data_ptr(), t.dtype, t.shape, t.stride(), t.device), name)
            if same != name:
                aliases[name] = same
    return {name: t for name, t in state.items() if name not in aliases}, aliases


def _narrowed(indices: Tensor) -> Tensor:
    """Indices in 16 bits where they fit."""
    fits = indices.numel() == 0 or int(indices.max()) < 2**16
    return indices.to(torch.uint16) if fits else indices
