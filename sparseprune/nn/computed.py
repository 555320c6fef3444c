"""Weights that are computed from what a layer stores, and can be written to all the same."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.utils import _pytree as pytree

from sparseprune.ops.transforms import transformed


class Origin(NamedTuple):
    """Where a computed weight comes from.

    Attributes:
        weight: the whole weight, an ordinary tensor, without its graph.
        parameter: what it was computed from.
        store: brings what was written to ``weight`` into the layer, and sets it to 0 where it is pruned.
        name: what errors begin with.
    """

    weight: Tensor
    parameter: Tensor
    store: Callable[[Tensor], None]
    name: str


class ComputedWeight(Tensor):
    """A weight, or a view of one, whose layer keeps whatever is written to it.

    ``nn.init`` functions, ``copy_``, ``mul_``, ``weight.data[...] = x`` and ``weight.data = x`` do what they
    do to a parameter, and pruned weights stay 0. What is computed from it is an ordinary tensor. Arrays that
    share its memory with NumPy are read-only, since writing to them would change nothing.
    """

    _plain: Tensor  # the same numbers in the same memory
    _origin: Origin

    def __iter__(self) -> Any:
        return iter(self.unbind(0))

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        given = (tuple(args), dict(kwargs or {}))
        args, kwargs = pytree.tree_map_only(cls, lambda t: t._plain, given)
        if is_compiling() or transformed():
            return func(*args, **kwargs)
        ours = [t for t in pytree.tree_leaves(given) if isinstance(t, cls)]
        if func in (Tensor.requires_grad_, Tensor.requires_grad.__set__):  # type: ignore[attr-defined]
            ours[0]._origin.parameter.requires_grad_(*args[1:], **kwargs)
            return ours[0]
        before = [t._plain._version for t in ours]
        if func == Tensor.data.__set__ and isinstance(given[0][0], cls):  # type: ignore[attr-defined]
            result = _overwrite(args[0], args[1], ours[0]._origin.name)
        else:
            result = func(*args, **kwargs)
        for t, version in zip(ours, before, strict=True):
            if t._plain._version != version:
                with torch.no_grad():
                    t._origin.store(t._origin.weight)
        return pytree.tree_map(lambda found: _kept(found, ours), result)


def computed_weight(weight: Tensor, parameter: Tensor, store: Callable[[Tensor], None], name: str) -> Tensor:
    """A weight that a layer computes, such that writing to it writes to the layer; see :class:`Origin`.

    In compiled graphs, traces and transforms of torch.func it is ``weight`` itself.
    """
    if is_compiling() or transformed() or torch._C._is_tracing() or type(weight) is not Tensor:
        return weight
    if weight.is_inference():
        # What was made in inference mode does not tell whether it was written to.
        with torch.inference_mode(False):
            weight = weight.clone()
    # Detached, for whoever keeps numbers is not to keep the graph behind them.
    return _view(weight, Origin(weight.detach(), parameter, store, name))


def _view(plain: Tensor, origin: Origin) -> ComputedWeight:
    view = plain.as_subclass(ComputedWeight)
    view._plain, view._origin = plain, origin
    return view


def _overwrite(old: Tensor, new: Tensor, name: str) -> Tensor:
    if new.shape != old.shape:
        raise ValueError(f"{name}: expected data of shape {list(old.shape)}, got {list(new.shape)}")
    with torch.no_grad():
        return old.copy_(new)


def _kept(result: Any, ours: list[ComputedWeight]) -> Any:
    """A view of what shares memory with a computed weight; other results as they are."""
    if isinstance(result, np.ndarray):
        result.flags.writeable = False
    if type(result) is not Tensor or result.layout is not torch.strided:
        return result
    for t in ours:
        if result is t._plain:
            return t
    memory = result.untyped_storage()._cdata
    for t in ours:
        if t._plain.untyped_storage()._cdata == memory:
            return _view(result, t._origin)
    return result
