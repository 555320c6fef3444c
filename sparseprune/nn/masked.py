"""Dense layers with an enforced mask: where dense kernels are faster, or there are no sparse ones.

The weight is multiplied by the mask in every forward pass, so that neither weight decay, momentum nor an
optimizer's rounding can revive a pruned weight, and its gradient is zero.
"""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from sparseprune.format.bsr import check_mask
from sparseprune.nn.computed import computed_weight
from sparseprune.nn.dialects import LoadsAnyDialect
from sparseprune.nn.values import states_of
from sparseprune.ops.observe import see_product

DenseLayer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class Masked(LoadsAnyDialect):
    """What the masked layers have in common: buffers that are masks of parameters, True = keep.

    In those of torch's own classes ``weight`` is the parameter, and the buffer ``mask`` that of the weight.
    What is written to pruned weights, by an initialisation for example, counts for nothing.
    """

    weight: Tensor
    mask: Tensor
    choice: str = ""  # why this layer is not sparse

    def kept_weight(self) -> Tensor:
        product = self.weight * self.mask
        see_product(product, self.weight)
        return product


class MaskedLinear(Masked, nn.Linear):
    """``nn.Linear`` whose weight is zero where the buffer ``mask`` is False."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.kept_weight(), self.bias)


class _MaskedConv(Masked, _ConvNd):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.kept_weight(), self.bias)


class MaskedConv1d(_MaskedConv, nn.Conv1d):
    """``nn.Conv1d`` whose weight is zero where the buffer ``mask`` is False."""


class MaskedConv2d(_MaskedConv, nn.Conv2d):
    """``nn.Conv2d`` whose weight is zero where the buffer ``mask`` is False."""


class MaskedConv3d(_MaskedConv, nn.Conv3d):
    """``nn.Conv3d`` whose weight is zero where the buffer ``mask`` is False."""


CLASSES: dict[type[nn.Module], type[Masked]] = {
    nn.Linear: MaskedLinear,
    nn.Conv1d: MaskedConv1d,
    nn.Conv2d: MaskedConv2d,
    nn.Conv3d: MaskedConv3d,
}


class MaskedModule(Masked):
    """Base of the classes that are made for any other module: of its class, with its forward.

    A parameter with a mask, read as an attribute, is the product of both, for whoever reads it: the module's
    own forward or a parent's. What is written to it, the parameter keeps; see
    :class:`sparseprune.nn.computed.ComputedWeight`. ``named_parameters()`` gives the parameter itself.
    """

    original: ClassVar[type[nn.Module]]

    def kept_weight(self) -> Tensor:
        return self.weight

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is not importable: a copy is made from what it was made from.
        getstate: Callable[[], Any] = getattr(self, "__getstate__", lambda: self.__dict__)
        return (_new, (self.original, tuple(self.buffer_of.items())), getstate())


def masked_from_dense(
    module: nn.Module,
    masks: Tensor | Mapping[str, Tensor],
    memo: Mapping[int, nn.Module] | None = None,
    *,
    is_read: bool = False,
) -> Masked:
    """A copy of a module that enforces masks.

    Args:
        module: Linear or Conv layer of torch, or any module with the masks' parameters.
        masks: bool tensor of the weight's shape, True = keep; or several by the names of parameters.
        memo: what to put in the places of modules within it, by their ``id()``.
        is_read: whether others read its weight, so that it must be the product; see :class:`MaskedModule`.
    Raises:
        TypeError, ValueError: a mask is no bool tensor of its parameter's shape.
    """
    if isinstance(masks, Tensor):
        masks = {"weight": masks}
    if isinstance(module, Masked):
        module = dense_from_masked(module)
    for name, mask in masks.items():
        check_mask(mask, module.get_parameter(name).shape, "masked_from_dense")
    result: Any = copy.deepcopy(module, dict(memo or {}))
    original: Any = type(module)
    keep = {name: mask.to(module.get_parameter(name).device, copy=True) for name, mask in masks.items()}
    # The classes differ in forward() or in what they read, so that a copy may change its class.
    named = None if is_read else CLASSES.get(original)
    result.__class__ = named or _class(original, tuple(_buffers(module, masks)))
    for name, buffer in result.buffer_of.items():
        # Not a product, which would keep a NaN.
        result._parameters[name].data.masked_fill_(~keep[name], 0)
        result.register_buffer(buffer, keep[name])
    assert isinstance(result, Masked)
    return result


def move_mask(module: Masked, name: str, mask: Tensor, optimizers: Sequence[Optimizer] = ()) -> None:
    """Give a parameter another mask, as :meth:`SparseLayer.move_pattern` does: new weights are 0.

    So are the gradient and whatever the optimizers keep for each weight, where it was not kept before.

    Args:
        module: the masked module.
        name: the parameter's name in it.
        mask: bool, of the parameter's shape.
        optimizers: those that train it.
    Raises:
        TypeError, ValueError: this is no mask of the parameter; nothing was changed.
    """
    parameter, old = module._parameters[name], module.get_buffer(module.buffer_of[name])
    assert parameter is not None
    check_mask(mask, parameter.shape, "move_mask")
    mask = mask.to(old.device)
    gone = ~(old & mask)
    with torch.no_grad():
        for state, key in states_of(parameter, optimizers):
            state[key].masked_fill_(gone, 0)
        if parameter.grad is not None:
            parameter.grad.masked_fill_(gone, 0)
        parameter.masked_fill_(gone, 0)
        old.copy_(mask)


def masks_in(module: Masked) -> dict[str, Tensor]:
    """The masks of a masked module by the names of its parameters."""
    return {name: module.get_buffer(buffer) for name, buffer in module.buffer_of.items()}


def dense_from_masked(module: Masked, memo: Mapping[int, nn.Module] | None = None) -> nn.Module:
    """A copy of a masked layer as what it was, zeros in place; ``memo`` as of :func:`masked_from_dense`."""
    result = copy.deepcopy(module, dict(memo or {}))
    for name, mask in masks_in(result).items():
        parameter = result._parameters[name]
        assert parameter is not None
        parameter.data.masked_fill_(~mask, 0)
        delattr(result, module.buffer_of[name])
    result.__dict__.pop("choice", None)
    dense: nn.Module = result
    if isinstance(module, MaskedModule):
        dense.__class__ = module.original
    else:
        dense.__class__ = next(dense for dense, masked in CLASSES.items() if type(module) is masked)
    return dense


def _buffers(module: nn.Module, names: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Each parameter with the name of its mask, one that the module does not have yet."""
    found = []
    for name in names:
        buffer = "mask" if name == "weight" else f"{name}_mask"
        while hasattr(module, buffer):
            buffer = f"{name}_{buffer}"
        found.append((name, buffer))
    return found


@functools.cache
def _class(original: Any, buffers: tuple[tuple[str, str], ...]) -> type[Masked]:
    members: dict[str, Any] = {name: _product(name, buffer) for name, buffer in buffers}
    members |= {"original": original, "buffer_of": dict(buffers), "__doc__": original.__doc__}
    return type(f"Masked{original.__name__}", (MaskedModule, original), {**members, "__module__": __name__})


def _product(name: str, buffer: str) -> property:
    def kept(self: nn.Module) -> Tensor:
        weight, mask = self._parameters[name], self._buffers[buffer]
        assert weight is not None
        assert mask is not None

        def store(written: Tensor) -> None:
            weight.copy_(written.masked_fill_(~mask, 0))

        product = weight * mask
        see_product(product, weight)
        return computed_weight(product, weight, store, type(self).__name__)

    return property(kept)


def _new(original: Any, buffers: tuple[tuple[str, str], ...]) -> Masked:
    made = _class(original, buffers)
    module: Masked = made.__new__(made)
    return module
