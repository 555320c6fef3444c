"""Dense layers with an enforced mask: where dense kernels are faster, or there are no sparse ones.

The weight is multiplied by the mask in every forward pass, so that neither weight decay, momentum nor an
optimizer's rounding can revive a pruned weight, and its gradient is zero.
"""

import copy
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sparseprune.format.bsr import check_mask
from sparseprune.nn.dialects import LoadsAnyDialect

DenseLayer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class Masked(LoadsAnyDialect):
    """What the masked layers have in common: the buffer ``mask``, True = keep, of the weight's shape."""

    weight: Tensor
    mask: Tensor
    choice: str = ""  # why this layer is not sparse

    def kept_weight(self) -> Tensor:
        return self.weight * self.mask


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


def masked_from_dense(module: DenseLayer, mask: Tensor) -> Masked:
    """A copy of a Linear or Conv layer that enforces ``mask`` (bool, the weight's shape)."""
    check_mask(mask, module.weight.shape, "masked_from_dense")
    # The classes differ in forward() and in one buffer only, so that a copy may change its class.
    result: nn.Module = copy.deepcopy(module)
    result.__class__ = CLASSES[type(module)]
    assert isinstance(result, Masked)
    keep = mask.to(module.weight.device, copy=True)
    # Not a product, which would keep a NaN.
    result.weight.data.masked_fill_(~keep, 0)
    result.register_buffer("mask", keep)
    return result


def dense_from_masked(module: Masked) -> nn.Module:
    """A copy of a masked layer as the ordinary torch class, zeros in place."""
    result = copy.deepcopy(module)
    result.weight.data.masked_fill_(~result.mask, 0)
    del result.mask
    result.__dict__.pop("choice", None)
    dense: nn.Module = result
    dense.__class__ = next(dense for dense, masked in CLASSES.items() if type(module) is masked)
    return dense
