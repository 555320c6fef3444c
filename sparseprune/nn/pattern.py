"""The pattern of a sparse layer: in buffers that anyone may write to, and as it was checked."""

import logging
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

log = logging.getLogger(__name__)


class PatternBuffers(nn.Module):
    """A module with a pattern in its buffers ``crow`` int32 (rows / V + 1,) and ``col`` int32 (nnzb,).

    The buffers are what checkpoints hold. Kernels do not read them: they read a copy that was checked, with
    the plans that were made of it. Before each use the module looks whether anything was written to the
    buffers since. A whole pattern is taken over, what averaging leaves of the module's own is undone, and
    anything else is an error.
    """

    crow: Tensor
    col: Tensor

    _checked: Any  # what operators get: (crow, col, *plans)
    _seen: tuple[Any, ...]  # the buffers, and their state, when they were last compared with it
    _seen_memory: tuple[Tensor, Tensor]

    @property
    def block(self) -> tuple[int, int]:
        """(V, 1): rows and columns of a block of the pattern."""
        raise NotImplementedError

    def _check_pattern(self, crow: Tensor, col: Tensor, block_rows: int) -> Any:
        """A copy of a pattern with its plans; raises if it is none of this module."""
        raise NotImplementedError

    def _use_buffers(self, block_rows: int) -> None:
        self._use(self._check_pattern(self.crow, self.col, block_rows))

    def _use(self, checked: Any) -> None:
        """Compute with a pattern, which is that of the buffers."""
        crow, col = self.crow, self.col
        self._checked = checked
        self._seen = (crow, col, *_state_of(crow, col))
        # As long as it is held, nothing else can come to lie where the buffers were.
        self._seen_memory = (crow.detach(), col.detach())
        living.add(self)

    @property
    def pattern(self) -> Any:
        """What operators get: the pattern as it was checked, with its plans."""
        # Each call counts here: a step of one sample takes 200 microseconds, and finding self.crow one.
        crow: Any = self._buffers["crow"]
        col: Any = self._buffers["col"]
        if not is_compiling():
            seen = self._seen
            try:
                if (
                    crow is seen[0]
                    and col is seen[1]
                    and crow._version == seen[2]
                    and col._version == seen[3]
                    and crow.data_ptr() == seen[4]
                    and col.data_ptr() == seen[5]
                ):
                    return self._checked
                without_storage = False
            except RuntimeError:
                # Within a transform of torch.func, or while a graph is made; or of inference mode.
                without_storage = not crow.is_inference()
            if not without_storage and not torch._C._functorch.is_functorch_wrapped_tensor(crow):
                self._follow_buffers()
                return self._checked
            crow, col = within_transforms(crow), within_transforms(col)
        # Operators compare plans with patterns themselves, and refuse those of others.
        return type(self._checked)(crow, col, *self._checked[2:])

    def _write_buffers(self, pattern: Any) -> None:
        for name, numbers in (("crow", pattern[0]), ("col", pattern[1])):
            buffer = getattr(self, name)
            if (buffer.shape, buffer.dtype, buffer.device) == (numbers.shape, numbers.dtype, numbers.device):
                buffer.copy_(numbers)
            else:
                setattr(self, name, numbers.clone())

    def _follow_buffers(self) -> None:
        """Take over what was written to ``crow`` and ``col``, or undo it; see the class."""
        written, checked = (self.crow, self.col), self._checked
        if not same_pattern(written, checked):
            known = any(same_pattern(written, module._checked) for module in list(living))
            if not known and only_averaged(written, checked):
                log.info(
                    "%s: crow and col were averaged like weights; its pattern stays", type(self).__name__
                )
                with torch.no_grad():
                    self._write_buffers(checked)
            else:
                checked = self._check_pattern(*written, self.block[0])
        self._use(checked)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        # Also what was written behind torch's back.
        if not is_compiling():
            self._follow_buffers()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def __getstate__(self) -> dict[str, Any]:
        self._follow_buffers()
        state = self.__dict__.copy()
        for name in ("_checked", "_seen", "_seen_memory"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Of layers that were pickled when plans were buffers.
        self._non_persistent_buffers_set -= {"plan", "plan_t"}
        self._use_buffers(self.block[0])


def _state_of(crow: Tensor, col: Tensor) -> tuple[int | None, ...]:
    """How often the buffers were written to (unknown in inference mode), and where they lie."""
    versions = (None if t.is_inference() else t._version for t in (crow, col))
    return (*versions, crow.data_ptr(), col.data_ptr())


# All layers, whose patterns may be copied to others.
living: weakref.WeakSet[PatternBuffers] = weakref.WeakSet()


def same_pattern(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether two patterns, of which ``crow`` and ``col`` come first, are equal."""
    return all(
        (p.device, p.dtype, p.shape) == (q.device, q.dtype, q.shape) and (p.is_meta or torch.equal(p, q))
        for p, q in zip(a[:2], b[:2], strict=True)
    )


def only_averaged(written: Sequence[Tensor], checked: Sequence[Tensor]) -> bool:
    """Whether ``crow`` and ``col`` are what averages of equal ones leave, rounded to integers.

    ``decay * n + (1 - decay) * n`` in float32 may be just below n, which is cut to n - 1; the larger n, the
    further away it comes to rest. It depends on n alone: equal numbers stay equal.
    """
    if any(
        a.device != b.device or (a.dtype, a.shape) != (b.dtype, b.shape)
        for a, b in zip(written[:2], checked[:2], strict=True)
    ):
        return False
    was, order = torch.cat(list(checked[:2])).sort()
    now = torch.cat(list(written[:2]))[order]
    lost = was.long() - now
    alike = (was[1:] != was[:-1]) | (now[1:] == now[:-1])
    return bool(((lost >= 0) & (lost <= 1 + was // 1024)).all() and alike.all())


def within_transforms(indices: Tensor) -> Tensor:
    """The indices behind those that transforms of torch.func have wrapped.

    Raises:
        ValueError: vmap has a pattern for each model, and they differ.
    """
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(indices):
        batched = functorch.is_batchedtensor(indices)
        dim = functorch.maybe_get_bdim(indices) if batched else 0
        indices = functorch.get_unwrapped(indices)
        if batched:
            first = indices.select(dim, 0)
            if not torch.equal(indices, first.unsqueeze(dim).expand_as(indices)):
                raise ValueError("vmap: expected models of one pattern, got several; call them one by one")
            indices = first
    return indices
