"""How activations lie in memory: ordinarily or batch-inner, samples innermost.

Batch-inner is [features, batch] for the input of a linear layer, and [C, H, W, N] for images (N, C, H, W).
"""

from collections.abc import Sequence

from torch import Tensor


def is_batch_inner(x: Tensor) -> bool:
    """Whether consecutive samples of ``x`` (features, batch) are neighbours in memory."""
    return x.stride(1) == 1 and x.stride(0) != 1


def empty_activation(like: Tensor, features: int, batch: int, batch_inner: bool) -> Tensor:
    """An uninitialised ``(features, batch)`` with samples or features innermost in memory."""
    return like.new_empty(features, batch) if batch_inner else like.new_empty(batch, features).t()


def is_batch_inner_images(x: Tensor) -> bool:
    """Whether ``x`` (N, C, H, W), N > 1, is [C, H, W, N] in memory; dimensions of size 1 do not count."""
    # Not len(x), which export takes for a constant.
    stride = x.shape[0]
    if stride <= 1 or x.stride(0) != 1:
        return False
    for dim in (3, 2, 1):
        if x.shape[dim] != 1 and x.stride(dim) != stride:
            return False
        stride *= x.shape[dim]
    return True


def empty_images(like: Tensor, shape: Sequence[int], batch_inner: bool) -> Tensor:
    """An uninitialised ``(N, C, H, W)``, [C, H, W, N] in memory or ordinary."""
    n, *rest = shape
    return like.new_empty(*rest, n).permute(3, 0, 1, 2) if batch_inner else like.new_empty(n, *rest)


def in_layout(x: Tensor, batch_inner: bool) -> Tensor:
    """``x`` (N, C, H, W) batch-inner or contiguous in memory, a copy only where it is not; differentiable."""
    samples, channels, height, width = x.shape
    inner = is_batch_inner_images(x)
    # Torch transposes matrices faster than it permutes.
    if batch_inner and not inner and samples > 1:
        rows = x.reshape(samples, channels * height * width).t().contiguous()
        return rows.view(channels, height, width, samples).permute(3, 0, 1, 2)
    if not batch_inner and inner:
        rows = x.permute(1, 2, 3, 0).reshape(channels * height * width, samples)
        return rows.t().contiguous().view(x.shape)
    return x if batch_inner else x.contiguous()
