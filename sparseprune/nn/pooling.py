"""Torch's pooling modules for activations that are batch-inner: [C, H, W, N] in memory.

Torch would copy such an input into its ordinary layout. With the dimensions of samples and channels swapped,
which changes nothing for pooling, the same memory is one of torch's own layouts (channels_last), for which it
has kernels, forward and backward.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.format.memory import in_layout, is_batch_inner_images
from sparseprune.nn.conv import has_many_samples


class _BatchInnerPool(nn.Module):
    """What the pooling modules have in common.

    Attributes:
        batch_inner: layout of the output in memory. None: as the input's. False: ordinary, (N, C, H, W).
            True: samples innermost, [C, H, W, N], if there are 16 or more. :func:`sparsify` sets it.
    """

    batch_inner: bool | None = None

    def _pool(
        self,
        x: Tensor,
        pool: Callable[[Tensor], Tensor],
        swapped_pool: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """``pool(x)``; ``swapped_pool``, for (C, N, H, W), where another function does better there."""
        if x.dim() != 4:
            return pool(x)
        if is_batch_inner_images(x):
            y = in_layout((swapped_pool or pool)(x.transpose(0, 1)).transpose(0, 1), True)
        else:
            y = pool(x)
        if self.batch_inner is None:
            return y
        return in_layout(y, self.batch_inner and has_many_samples(x))


class BatchInnerMaxPool2d(_BatchInnerPool, nn.MaxPool2d):
    """``nn.MaxPool2d``; with ``return_indices`` the output has torch's layout."""

    def forward(self, input: Tensor) -> Any:
        if self.return_indices:
            return super().forward(input)
        return self._pool(input, super().forward)


class BatchInnerAvgPool2d(_BatchInnerPool, nn.AvgPool2d):
    """``nn.AvgPool2d``."""

    def forward(self, input: Tensor) -> Tensor:
        return self._pool(input, super().forward)


class BatchInnerAdaptiveAvgPool2d(_BatchInnerPool, nn.AdaptiveAvgPool2d):
    """``nn.AdaptiveAvgPool2d``."""

    def forward(self, input: Tensor) -> Tensor:
        ordinary = super().forward
        if self.output_size not in (1, (1, 1)) or 0 in input.shape:
            return self._pool(input, ordinary)
        # Torch takes the mean, whose gradient would not be batch-inner.
        return self._pool(input, ordinary, lambda x: F.avg_pool2d(x, x.shape[2:]))


CLASSES: dict[type[nn.Module], type[_BatchInnerPool]] = {
    nn.MaxPool2d: BatchInnerMaxPool2d,
    nn.AvgPool2d: BatchInnerAvgPool2d,
    nn.AdaptiveAvgPool2d: BatchInnerAdaptiveAvgPool2d,
}


def batch_inner_pool(module: nn.Module) -> _BatchInnerPool:
    """A copy of one of torch's pooling modules in ``CLASSES`` that keeps batch-inner activations."""
    # Hooks too, which a shallow copy would share.
    result = copy.deepcopy(module)
    result.__class__ = CLASSES[type(module)]
    assert isinstance(result, _BatchInnerPool)
    return result


def ordinary_pool(module: nn.Module) -> nn.Module:
    """The other way round."""
    result = copy.deepcopy(module)
    result.__dict__.pop("batch_inner", None)
    result.__class__ = next(ordinary for ordinary, ours in CLASSES.items() if type(module) is ours)
    return result
