"""Images (N, C, H, W) from one layout in memory to another."""

from __future__ import annotations

from torch import Tensor

from sparseprune.fallback.convolution import is_batch_inner_images


def in_layout(x: Tensor, batch_inner: bool) -> Tensor:
    """``x`` (N, C, H, W) batch-inner or contiguous in memory, a copy only where it is not; differentiable."""
    samples, channels, height, width = x.shape
    inner = is_batch_inner_images(x)
    if batch_inner and not inner and samples > 1:  # torch transposes matrices faster than it permutes
        rows = x.reshape(samples, channels * height * width).t().contiguous()
        return rows.view(channels, height, width, samples).permute(3, 0, 1, 2)
    if not batch_inner and inner:
        rows = x.permute(1, 2, 3, 0).reshape(channels * height * width, samples)
        return rows.t().contiguous().view(x.shape)
    return x if batch_inner else x.contiguous()
