"""Sparse matrix products in plain torch, through the dense weight.

As in a dense layer, an infinite or NaN activation reaches every row of its sample.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparseprune.format.bsr import at_blocks, check_pattern_sizes, dense_weight
from sparseprune.format.memory import empty_activation, is_batch_inner
from sparseprune.format.sizes import check_numbers
from sparseprune.ops.autograd import relu_backward
from sparseprune.ops.devices import widened


def plan(crow: Tensor, col: Tensor, cols: int, block_rows: int, transposed: bool) -> Tensor:
    check_pattern_sizes("plan", crow, cols, block_rows)
    return torch.empty(0, dtype=torch.int32, device=crow.device)


def _activation(like: Tensor, y: Tensor, batch_inner: bool) -> Tensor:
    """``y`` (features, batch) in the dtype of ``like`` and the layout asked for."""
    result = empty_activation(like, y.shape[0], y.shape[1], batch_inner)
    # Not y.contiguous(), which leaves the strides of dimensions of size 1 as they are.
    return y if y.stride() == result.stride() and y.dtype == result.dtype else result.copy_(y)


def _weight(op: str, values: Tensor, crow: Tensor, col: Tensor, cols: int, batch: int) -> Tensor:
    """The dense weight, if it and the results of its products with so many samples can be counted."""
    check_pattern_sizes(op, crow, cols, values.shape[1])
    rows = (len(crow) - 1) * values.shape[1]
    check_numbers(op, "a dense weight", (rows, cols))
    check_numbers(op, "a result", (max(rows, cols), batch))
    return dense_weight(values, crow, col, cols)


def _product(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        return widened(a) @ widened(b)


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
    y = _product(_weight("spmm", values, crow, col, x.shape[0], x.shape[1]), x)
    if bias is not None:
        y = y + widened(bias)[:, None]
    if relu:
        y = y.relu()
    return _activation(x, y, is_batch_inner(x) if batch_inner is None else batch_inner)


def spmm_t(
    g: Tensor, values: Tensor, crow: Tensor, col: Tensor, plan: Tensor, plan_t: Tensor, cols: int
) -> Tensor:
    d_x = _product(_weight("spmm_t", values, crow, col, cols, g.shape[1]).t(), g)
    return _activation(g, d_x, is_batch_inner(g))


def sddmm(
    g: Tensor, x: Tensor, crow: Tensor, col: Tensor, plan: Tensor, plan_t: Tensor, block_rows: int
) -> Tensor:
    check_numbers("sddmm", "a dense weight", (len(g), len(x)))
    d_weight = _product(g, x.t())
    return at_blocks(d_weight, crow, col, block_rows).to(g.dtype).contiguous()


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
    d_x = _product(_weight("spmm_backward", values, crow, col, x.shape[0], g.shape[1]).t(), g)
    d_values = sddmm(g, x, crow, col, plan, plan_t, values.shape[1])
    return _activation(x, d_x, is_batch_inner(x)), d_values, widened(g).sum(1).to(g.dtype)


PATTERN = "Tensor crow, Tensor col, Tensor plan, Tensor plan_t"
SCHEMAS: dict[Callable[..., Any], str] = {
    plan: "plan(Tensor crow, Tensor col, int cols, int block_rows, bool transposed) -> Tensor",
    spmm: f"spmm(Tensor x, Tensor values, {PATTERN}, Tensor? bias=None, bool? batch_inner=None, "
    "bool relu=False) -> Tensor",
    spmm_t: f"spmm_t(Tensor g, Tensor values, {PATTERN}, int cols) -> Tensor",
    sddmm: f"sddmm(Tensor g, Tensor x, {PATTERN}, int block_rows) -> Tensor",
    spmm_backward: f"spmm_backward(Tensor g, Tensor x, Tensor values, {PATTERN}, Tensor? y=None) "
    "-> (Tensor, Tensor, Tensor)",
}
