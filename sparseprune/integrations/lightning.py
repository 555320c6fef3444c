"""Lightning: a callback that prunes before the optimizers are made, and loads sparse checkpoints."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

try:
    import lightning.pytorch as pl
except ImportError:
    import pytorch_lightning as pl

from sparseprune.checkpoint import sparsify_like
from sparseprune.integrations.before_training import BeforeTraining, is_pruned


class PruneBeforeTraining(BeforeTraining, pl.Callback):
    """Makes a module sparse before its optimizers are made: in ``setup``, when ``Trainer.fit`` begins.

    A module that is sparse already stays as it is. Checkpoints are Lightning's own, of sparse weights:
    ``Trainer.fit``, ``validate``, ``test`` and ``predict`` with ``ckpt_path`` take them, whichever layers the
    module has. (When ``fit`` resumes, the module is pruned first, and then takes over the layers and masks of
    the checkpoint.) For ``load_from_checkpoint`` the module needs this method::

        def on_load_checkpoint(self, checkpoint):
            sp.sparsify_like(self, checkpoint["state_dict"], inplace=True)

    ``masks`` may be a function such as ``lambda module: sp.prune(module, batches, loss=lambda model, batch:
    model.training_step(batch, 0))``. The module is on the CPU then, after ``setup`` of the data module and
    before its own, and logs nothing meanwhile.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        hooks = pl_module._load_state_dict_pre_hooks.values()
        if not any(getattr(hook, "hook", None) is _as_saved for hook in hooks):
            pl_module.register_load_state_dict_pre_hook(_as_saved)
        if stage == "fit" and not is_pruned(pl_module):
            with _without_logging(pl_module):
                self.make_sparse(pl_module)


def _as_saved(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Before the module loads a state dict, it gets the layers of that."""
    if not prefix:
        sparsify_like(module, state_dict, inplace=True)


@contextmanager
def _without_logging(module: Any) -> Iterator[None]:
    """``training_step`` may log, which Lightning allows in its own loops alone."""
    vars(module)["log"] = lambda *args, **options: None
    try:
        yield
    finally:
        del vars(module)["log"]
