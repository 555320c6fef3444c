"""Dense layers with an enforced mask: for layers where dense kernels are faster, or that have no sparse kernels.

The weight is multiplied by the mask in every forward pass, so that neither weight decay, momentum nor an optimizer's
rounding can revive a pruned weight, and its gradient is zero.
"""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.pattern import check_mask


class _Masked(nn.Module):
    weight: nn.Parameter
    mask: Tensor

    def kept_weight(self) -> Tensor:
        return self.weight * self.mask


class MaskedLinear(_Masked, nn.Linear):
    """``nn.Linear`` whose weight is zero where the buffer ``mask`` is False."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.kept_weight(), self.bias)


class _MaskedConv(_Masked):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.kept_weight(), self.bias)


class MaskedConv1d(_MaskedConv, nn.Conv1d):
    """``nn.Conv1d`` whose weight is zero where the buffer ``mask`` is False."""


class MaskedConv2d(_MaskedConv, nn.Conv2d):
    """``nn.Conv2d`` whose weight is zero where the buffer ``mask`` is False."""


class MaskedConv3d(_MaskedConv, nn.Conv3d):
    """``nn.Conv3d`` whose weight is zero where the buffer ``mask`` is False."""


CLASSES: dict[type[nn.Module], type[_Masked]] = {
    nn.Linear: MaskedLinear,
    nn.Conv1d: MaskedConv1d,
    nn.Conv2d: MaskedConv2d,
    nn.Conv3d: MaskedConv3d,
}


def masked_from_dense(module: nn.Module, mask: Tensor) -> nn.Module:
    """A copy of a Linear or Conv layer that enforces ``mask`` (bool, the weight's shape)."""
    check_mask(mask, module.weight.shape, "masked_from_dense")
    return _in_class(module, CLASSES[type(module)], mask)


def dense_from_masked(module: _Masked) -> nn.Module:
    """A copy of a masked layer as the ordinary torch class, zeros in place."""
    dense = next(dense for dense, masked in CLASSES.items() if type(module) is masked)
    return _in_class(module, dense, None)


def _in_class(module: nn.Module, cls: type[nn.Module], mask: Tensor | None) -> nn.Module:
    # The classes differ in forward() and in one buffer only, so that a copy may change its class.
    result = copy.deepcopy(module)
    keep = mask if mask is not None else module.mask
    result.weight.data.mul_(keep.to(result.weight.device))
    result.__class__ = cls
    if mask is None:
        del result.mask
    else:
        result.register_buffer("mask", mask.to(result.weight.device, copy=True))
    return result
