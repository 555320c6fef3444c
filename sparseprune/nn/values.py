"""The values of a sparse layer, and what becomes of them and of their optimizer's state in other patterns."""

import gc
import logging
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune.format.bsr import row_of_blocks
from sparseprune.ops.devices import dtypes_of_sums

log = logging.getLogger(__name__)


class Parametrizations(nn.ModuleDict):
    """Those of a layer. Torch's own class takes none of ``values``, since it has a method of that name."""

    def add_module(self, name: str, module: nn.Module | None) -> None:
        if name == "values" and module is not None:
            self._modules[name] = module
        else:
            super().add_module(name, module)

    @property
    def values(self) -> Any:
        return self._modules.get("values", super().values)


def positions(crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """Where the blocks of a pattern are, int64 (nnzb,), ascending: row of blocks * cols + column."""
    return row_of_blocks(crow, col) * cols + col


class Carried:
    """Numbers of blocks at other positions: those that stay keep theirs, new ones are 0.

    Args:
        old, new: :func:`positions` of the two patterns.
    """

    def __init__(self, old: Tensor, new: Tensor) -> None:
        self._blocks = len(new)
        self._to = self._from = new.new_zeros(0)
        if len(old):
            at = torch.searchsorted(old, new).clamp_(max=len(old) - 1)
            self._to = (old[at] == new).nonzero()[:, 0]
            self._from = at[self._to]

    def __call__(self, blocks: Tensor) -> Tensor:
        """``blocks`` (nnzb, ...) of the old pattern as those of the new one."""
        result = blocks.new_zeros(self._blocks, *blocks.shape[1:])
        result[self._to] = blocks[self._from]
        return result


def states_of(values: Tensor, optimizers: Sequence[Optimizer]) -> list[tuple[dict[str, Any], str]]:
    """Every tensor of the optimizers' state that has a number for each value, as (dict, key)."""
    return [
        (state, key)
        for optimizer in optimizers
        if (state := optimizer.state.get(values))
        for key, tensor in state.items()
        if isinstance(tensor, Tensor) and tensor.shape == values.shape
    ]


# The call of load_state_dict, by its list of errors, that looked for optimizers last, and those found.
_search: tuple[list[str], weakref.WeakSet[Optimizer]] = ([], weakref.WeakSet())


def living_optimizers(errors: list[str]) -> list[Optimizer]:
    """All optimizers in memory, looked for once during a call of ``load_state_dict``."""
    global _search
    if _search[0] is not errors:
        # Not isinstance, which asks every object for its __class__, proxies too.
        found = [thing for thing in gc.get_objects() if issubclass(type(thing), Optimizer)]
        _search = (errors, weakref.WeakSet(found))
    return list(_search[1])


def resize(values: Tensor, shape: torch.Size, layer: str, optimizers: Sequence[Optimizer]) -> None:
    """Room for other values in the same parameter. Its gradient and the optimizers' state of it begin anew.

    An optimizer's kernels would write state of the old size beyond its end.
    """
    for optimizer in optimizers:
        if not states_of(values, [optimizer]):
            continue
        log.warning(
            "%s: another number of weights was loaded after training had begun, so the state of %s begins "
            "anew for it; load the optimizer's state_dict after the model's to go on where it was saved",
            layer,
            type(optimizer).__name__,
        )
        if set(optimizer.state[values]) == {"momentum_buffer"}:
            # SGD's fused kernel takes no parameters with and without momentum at once.
            optimizer.state[values]["momentum_buffer"] = values.new_zeros(shape)
        else:
            del optimizer.state[values]
    values.data = values.new_zeros(shape)
    values.grad = None


def check_dtype(values: Tensor, layer: str) -> None:
    """Raise unless there are kernels for values of this dtype on this device."""
    if values.dtype in dtypes_of_sums(values.device):
        return
    if values.is_cuda:
        expected, instead = "float32, float16 or bfloat16 on a GPU", "convert it first, or stay on the CPU"
    else:
        expected = "float32 or bfloat16 (or float64, for checking gradients)"
        instead = "use bfloat16, or densify() the model first"
    raise TypeError(
        f"{layer}: expected {expected}, got {values.dtype}, which has no sparse kernels; {instead}"
    )
