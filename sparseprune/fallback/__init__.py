"""The operators in plain torch: what runs where the C++ extension is not built, on any device.

Each function is the definition of its operator: the sparse weight is written out as a dense matrix and
multiplied. Correct, differentiable through the same formulas, and no faster than dense. As in a dense layer,
an infinite or NaN activation reaches every row of its sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparseprune.fallback import batch_norm, convolution


def topk_masks(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    n = sum(s.numel() for s in scores)
    if not 0 <= k <= n:
        raise ValueError(f"topk_masks: expected k in 0..{n} (number of scores), got {k}")
    for i, s in enumerate(scores):
        if not torch.isfinite(s).all():
            found = "nan" if torch.isnan(s).any() else "inf"
            raise ValueError(f"topk_masks: expected finite scores, got {found} in scores[{i}]")
    if n == 0:
        return [torch.zeros_like(s, dtype=torch.bool) for s in scores]
    keys = ordered_as_integers(torch.cat([s.reshape(-1) for s in scores]))
    kept = torch.argsort(keys, descending=True, stable=True)[:k]  # stable: ties to the earlier position
    mask = torch.zeros(n, dtype=torch.bool, device=keys.device)
    mask[kept] = True
    parts = mask.split([s.numel() for s in scores])
    return [part.reshape(s.shape).clone() for part, s in zip(parts, scores, strict=True)]


def ordered_as_integers(x: Tensor) -> Tensor:
    """Integers that compare as ``x`` (float32 or float64) does, -0.0 equal to 0.0.

    Sorted as floats, denormals would be zeros where the processor flushes them.
    """
    bits = x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int64)
    return torch.where(bits < 0, torch.iinfo(bits.dtype).min - bits, bits)


def plan(crow: Tensor, col: Tensor, cols: int, block_rows: int, transposed: bool) -> Tensor:
    return torch.empty(0, dtype=torch.int32, device=crow.device)


def row_of_blocks(crow: Tensor) -> Tensor:
    """Block row of every block, int64 ``(nnzb,)``."""
    counts = (crow[1:] - crow[:-1]).long()
    return torch.repeat_interleave(torch.arange(len(counts), device=crow.device), counts)


def dense_weight(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """The weight as a dense matrix ``(rows, cols)``, differentiable in ``values``."""
    block_rows = values.shape[1]
    rows = (len(crow) - 1) * block_rows
    first = row_of_blocks(crow) * (block_rows * cols) + col
    flat = first[:, None] + torch.arange(block_rows, device=col.device) * cols
    zeros = values.new_zeros(rows * cols)
    return zeros.index_copy(0, flat.reshape(-1), values.reshape(-1)).reshape(rows, cols)


def at_blocks(matrix: Tensor, crow: Tensor, col: Tensor, block_rows: int) -> Tensor:
    """``values`` (nnzb, block_rows) of a dense ``(rows, cols)`` matrix: its elements at the blocks."""
    blocks = matrix.reshape(len(crow) - 1, block_rows, matrix.shape[1])
    return blocks[row_of_blocks(crow), :, col.long()]


def is_batch_inner(x: Tensor) -> bool:
    """Whether consecutive samples of ``x`` (features, batch) are neighbours in memory."""
    return x.stride(1) == 1 and x.stride(0) != 1


def empty_activation(like: Tensor, features: int, batch: int, batch_inner: bool) -> Tensor:
    """An uninitialised ``(features, batch)`` with samples or features innermost in memory."""
    return like.new_empty(features, batch) if batch_inner else like.new_empty(batch, features).t()


def _activation(like: Tensor, y: Tensor, batch_inner: bool) -> Tensor:
    """``y`` (features, batch) in the dtype of ``like`` and the layout asked for."""
    result = empty_activation(like, y.shape[0], y.shape[1], batch_inner)
    # Not y.contiguous(), which leaves the strides of dimensions of size 1 as they are.
    return y if y.stride() == result.stride() and y.dtype == result.dtype else result.copy_(y)


def _wide(x: Tensor) -> Tensor:
    """bfloat16 and float16 as float32: sums are made in that and rounded once."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _product(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        return _wide(a) @ _wide(b)


def spmm(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    plan: Tensor,
    plan_t: Tensor,
    bias: Tensor | None = None,
    batch_inner: bool | None = None,
    relu: bool = False,
) -> Tensor:
    if x.dim() != 2:
        raise ValueError(f"spmm: expected x.shape == [features, batch], got {x.dim()} dimensions")
    if values.dim() != 2 or len(values) != len(col):
        raise ValueError(
            f"spmm: expected values.shape == [{len(col)} (blocks of the pattern), rows of a block], "
            f"got {list(values.shape)}"
        )
    rows = (len(crow) - 1) * values.shape[1]
    if bias is not None and tuple(bias.shape) != (rows,):
        raise ValueError(f"spmm: expected bias.shape == [{rows} (weight rows)], got {list(bias.shape)}")
    y = _product(dense_weight(values, crow, col, x.shape[0]), x)
    if bias is not None:
        y = y + _wide(bias)[:, None]
    if relu:
        y = y.relu()
    return _activation(x, y, is_batch_inner(x) if batch_inner is None else batch_inner)


def spmm_t(
    g: Tensor, values: Tensor, crow: Tensor, col: Tensor, plan: Tensor, plan_t: Tensor, cols: int
) -> Tensor:
    d_x = _product(dense_weight(values, crow, col, cols).t(), g)
    return _activation(g, d_x, is_batch_inner(g))


def sddmm(
    g: Tensor, x: Tensor, crow: Tensor, col: Tensor, plan: Tensor, plan_t: Tensor, block_rows: int
) -> Tensor:
    d_weight = _product(g, x.t())
    return at_blocks(d_weight, crow, col, block_rows).to(g.dtype).contiguous()


def relu_backward(g: Tensor, y: Tensor) -> Tensor:
    """``g`` where the output ``y`` of a ReLU is positive or NaN, 0 elsewhere; differentiable in ``g``."""
    # Not masked_fill, which brings g into another layout: ten times slower.
    return torch.ops.aten.threshold_backward.default(g, y.detach(), 0)


def spmm_backward(
    g: Tensor,
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    plan: Tensor,
    plan_t: Tensor,
    y: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    if y is not None:
        g = relu_backward(g, y)
    d_x = _product(dense_weight(values, crow, col, x.shape[0]).t(), g)
    d_values = sddmm(g, x, crow, col, plan, plan_t, values.shape[1])
    return _activation(x, d_x, is_batch_inner(x)), d_values, _wide(g).sum(1).to(g.dtype)


PATTERN = "Tensor crow, Tensor col, Tensor plan, Tensor plan_t"
SCHEMAS: dict[Callable[..., Any], str] = {
    topk_masks: "topk_masks(Tensor[] scores, int k) -> Tensor[]",
    plan: "plan(Tensor crow, Tensor col, int cols, int block_rows, bool transposed) -> Tensor",
    spmm: f"spmm(Tensor x, Tensor values, {PATTERN}, Tensor? bias=None, bool? batch_inner=None, "
    "bool relu=False) -> Tensor",
    spmm_t: f"spmm_t(Tensor g, Tensor values, {PATTERN}, int cols) -> Tensor",
    sddmm: f"sddmm(Tensor g, Tensor x, {PATTERN}, int block_rows) -> Tensor",
    spmm_backward: f"spmm_backward(Tensor g, Tensor x, Tensor values, {PATTERN}, Tensor? y=None) "
    "-> (Tensor, Tensor, Tensor)",
}
ALL_SCHEMAS: dict[Callable[..., Any], str] = SCHEMAS | convolution.SCHEMAS | batch_norm.SCHEMAS


def define() -> torch.library.Library:
    """Define and implement ``torch.ops.sparseprune`` in plain torch, for as long as the result lives."""
    library = torch.library.Library("sparseprune", "DEF")
    for schema in ALL_SCHEMAS.values():
        library.define(schema)
    implement(library, "CompositeExplicitAutograd")
    return library


def implement(library: torch.library.Library, key: str) -> None:
    """Implement the operators for one of torch's dispatch keys, such as "CUDA"."""
    for function in ALL_SCHEMAS:
        library.impl(function.__name__, function, key)
