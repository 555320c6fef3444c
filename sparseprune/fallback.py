"""The operators in plain torch: what runs where the C++ extension is not built, on any device.

Each function is the definition of its operator: the sparse weight is written out as a dense matrix and
multiplied. Correct, differentiable through the same formulas, and no faster than dense. As in a dense layer,
an infinite or NaN activation reaches every row of its sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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


def plan(crow: Tensor, col: Tensor, cols: int, transposed: bool) -> Tensor:
    return torch.empty(0, dtype=torch.int32, device=crow.device)


def row_of_nonzeros(crow: Tensor) -> Tensor:
    """Row index of every nonzero, int64 ``(nnz,)``."""
    counts = (crow[1:] - crow[:-1]).long()
    return torch.repeat_interleave(torch.arange(len(counts), device=crow.device), counts)


def dense_weight(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """The weight as a dense matrix ``(rows, cols)``, differentiable in ``values``."""
    rows = len(crow) - 1
    flat = row_of_nonzeros(crow) * cols + col
    return values.new_zeros(rows * cols).index_copy(0, flat, values.reshape(-1)).reshape(rows, cols)


def is_batch_inner(x: Tensor) -> bool:
    """Whether consecutive samples of ``x`` (features, batch) are neighbours in memory."""
    return x.stride(1) == 1 and x.stride(0) != 1


def empty_in_layout_of(x: Tensor, features: int, batch: int) -> Tensor:
    """An uninitialised activation with samples or features innermost in memory, as in ``x``."""
    return x.new_empty(features, batch) if is_batch_inner(x) else x.new_empty(batch, features).t()


def in_layout_of(x: Tensor, y: Tensor) -> Tensor:
    """``y`` (features, batch) with samples or features innermost in memory, as in ``x``."""
    result = empty_in_layout_of(x, *y.shape)
    # Not y.contiguous(), which leaves the strides of dimensions of size 1 as they are.
    return y if y.stride() == result.stride() else result.copy_(y)


def spmm(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    plan: Tensor,
    plan_t: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    rows = len(crow) - 1
    if x.dim() != 2:
        raise ValueError(f"spmm: expected x.shape == [features, batch], got {x.dim()} dimensions")
    if tuple(values.shape) != (len(col), 1):
        raise ValueError(
            f"spmm: expected values.shape == [{len(col)} (nonzeros), 1], got {list(values.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (rows,):
        raise ValueError(f"spmm: expected bias.shape == [{rows} (weight rows)], got {list(bias.shape)}")
    y = dense_weight(values, crow, col, x.shape[0]) @ x
    return in_layout_of(x, y if bias is None else y + bias[:, None])


def spmm_t(
    g: Tensor, values: Tensor, crow: Tensor, col: Tensor, plan: Tensor, plan_t: Tensor, cols: int
) -> Tensor:
    return in_layout_of(g, dense_weight(values, crow, col, cols).t() @ g)


def sddmm(g: Tensor, x: Tensor, crow: Tensor, col: Tensor, plan: Tensor, plan_t: Tensor) -> Tensor:
    d_weight = g @ x.t()
    return d_weight[row_of_nonzeros(crow), col.long()][:, None].contiguous()


def spmm_backward(
    g: Tensor, x: Tensor, values: Tensor, crow: Tensor, col: Tensor, plan: Tensor, plan_t: Tensor
) -> tuple[Tensor, Tensor]:
    d_x = in_layout_of(x, dense_weight(values, crow, col, x.shape[0]).t() @ g)
    return d_x, sddmm(g, x, crow, col, plan, plan_t)


PATTERN = "Tensor crow, Tensor col, Tensor plan, Tensor plan_t"
SCHEMAS = {
    topk_masks: "topk_masks(Tensor[] scores, int k) -> Tensor[]",
    plan: "plan(Tensor crow, Tensor col, int cols, bool transposed) -> Tensor",
    spmm: f"spmm(Tensor x, Tensor values, {PATTERN}, Tensor? bias=None) -> Tensor",
    spmm_t: f"spmm_t(Tensor g, Tensor values, {PATTERN}, int cols) -> Tensor",
    sddmm: f"sddmm(Tensor g, Tensor x, {PATTERN}) -> Tensor",
    spmm_backward: f"spmm_backward(Tensor g, Tensor x, Tensor values, {PATTERN}) -> (Tensor, Tensor)",
}


def define() -> torch.library.Library:
    """Define and implement ``torch.ops.sparseprune`` in plain torch, for as long as the result lives."""
    library = torch.library.Library("sparseprune", "DEF")
    for function, schema in SCHEMAS.items():
        library.define(schema)
        library.impl(function.__name__, function, "CompositeExplicitAutograd")
    return library
