"""Sparse matrix products: wrappers, fake kernels and gradients of the operators.

Activations are ``(features, batch)`` with any strides. A result is batch-innermost in memory where its input
is, unless said otherwise.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparseprune.format.bsr import check_pattern_sizes
from sparseprune.format.memory import empty_activation, is_batch_inner
from sparseprune.ops import observe, transforms
from sparseprune.ops.autograd import in_backward, relu_backward, without_views
from sparseprune.ops.devices import under_autocast
from sparseprune.ops.transforms import one_node


class Pattern(NamedTuple):
    """Where the weights of a ``(rows, cols)`` matrix are, and what the kernels derived from that.

    The matrix is cut into blocks of V rows x 1 column, V in 1, 2, 4, 8, 16. ``crow`` int32
    ``(rows / V + 1,)``, starts of the block rows; ``col`` int32 ``(nnzb,)``, columns of the stored blocks,
    ascending within a block row; ``plan`` and ``plan_t`` int32, opaque, made by :func:`plans`. With
    ``values`` ``(nnzb, V)`` this is torch's BSR layout with blocks of (V, 1).
    """

    crow: Tensor
    col: Tensor
    plan: Tensor
    plan_t: Tensor


# ---- wrappers ----------------------------------------------------------------------------------------------


def plans(crow: Tensor, col: Tensor, cols: int, block_rows: int = 1) -> Pattern:
    """A pattern with its plans, built once for a fixed pattern; empty ones on the meta device.

    Args:
        crow: int32 ``(rows / block_rows + 1,)``, starts of the block rows.
        col: int32 ``(nnzb,)``, columns, ascending within each block row.
        cols: columns of the weight.
        block_rows: V, rows of a block: 1, 2, 4, 8 or 16.
    Raises:
        ValueError: the pattern is malformed.
    """
    check_pattern_sizes("plan", crow, cols, block_rows)
    # How large a plan is depends on the numbers, and there are none.
    if crow.is_meta:
        return Pattern(crow, col, col.new_empty(0), col.new_empty(0))
    make = torch.ops.sparseprune.plan.default
    return Pattern(
        crow, col, make(crow, col, cols, block_rows, False), make(crow, col, cols, block_rows, True)
    )


def spmm(
    x: Tensor,
    values: Tensor,
    pattern: Pattern,
    bias: Tensor | None = None,
    batch_inner: bool | None = None,
    relu: bool = False,
) -> Tensor:
    """Sparse times dense: ``y = W x + bias``.

    Args:
        x: ``(cols, batch)``, float32 or bfloat16 (or float64: slow, for checking gradients). Products of
            bfloat16 are summed in float32 and the result is rounded once.
        values: ``(nnzb, V)``, like x.
        pattern: where the weights of W are.
        bias: ``(rows,)`` or None, like x.
        batch_inner: layout of the result in memory: samples innermost (True), features innermost (False), or
            as in ``x`` (None).
        relu: give ``max(y, 0)`` (NaN stays NaN).
    Returns:
        ``(rows, batch)``.
    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    if transforms.transformed():
        return transforms.spmm(x, values, pattern, bias, relu)
    return torch.ops.sparseprune.spmm.default(x, values, *pattern, bias, batch_inner, relu)


def spmm_t(g: Tensor, values: Tensor, pattern: Pattern, cols: int) -> Tensor:
    """Transposed sparse times dense: ``d_x = W^T g``, ``(cols, batch)`` from ``g`` ``(rows, batch)``."""
    if transforms.transformed():
        return transforms.spmm_t(g, values, *pattern, cols)
    return torch.ops.sparseprune.spmm_t.default(g, values, *pattern, cols)


def sddmm(g: Tensor, x: Tensor, pattern: Pattern, block_rows: int = 1) -> Tensor:
    """Sampled dense-dense product: ``g x^T`` at the pattern's blocks, ``(nnzb, block_rows)``."""
    if transforms.transformed():
        return transforms.sddmm(g, x, *pattern, block_rows)
    return torch.ops.sparseprune.sddmm.default(g, x, *pattern, block_rows)


def spmm_backward(
    g: Tensor, x: Tensor, values: Tensor, pattern: Pattern, y: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """All gradients of ``spmm`` with one pass over ``g``: ``(spmm_t(g), sddmm(g, x), g.sum(1))``.

    With the output ``y`` ``(rows, batch)`` of a ``spmm`` with relu, ``g`` counts as 0 where ``y <= 0``.
    """
    if transforms.transformed():
        g = g if y is None else relu_backward(g, y)
        return spmm_t(g, values, pattern, x.shape[0]), sddmm(g, x, pattern, values.shape[1]), g.sum(1)
    return torch.ops.sparseprune.spmm_backward.default(g, x, values, *pattern, y)


# ---- fake kernels: shapes and strides without data ---------------------------------------------------------


def _fake_spmm(x: Tensor, values: Tensor, crow: Tensor, *rest: Any) -> Tensor:
    batch_inner = rest[4] if len(rest) > 4 else None
    inner = is_batch_inner(x) if batch_inner is None else batch_inner
    return empty_activation(x, (crow.shape[0] - 1) * values.shape[1], x.shape[1], inner)


def _fake_spmm_t(g: Tensor, values: Tensor, *pattern_and_cols: Any) -> Tensor:
    return empty_activation(g, pattern_and_cols[-1], g.shape[1], is_batch_inner(g))


def _fake_sddmm(g: Tensor, x: Tensor, crow: Tensor, col: Tensor, *plans_and_block_rows: Any) -> Tensor:
    return g.new_empty(col.shape[0], plans_and_block_rows[-1])


def _fake_spmm_backward(g: Tensor, x: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    d_x = empty_activation(x, x.shape[0], x.shape[1], is_batch_inner(x))
    return d_x, values.new_empty(values.shape), g.new_empty(g.shape[0])


FAKES: dict[str, Callable[..., Any]] = {
    "spmm": _fake_spmm,
    "spmm_t": _fake_spmm_t,
    "sddmm": _fake_sddmm,
    "spmm_backward": _fake_spmm_backward,
}


# ---- gradients: each operator's derivative is made of the others -------------------------------------------


def _save_operands_and_pattern(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])


def _save_for_spmm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6], output if inputs[8] else None)


def _save_for_spmm_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(
    g: Tensor, x: Tensor, values: Tensor, pattern: Pattern, y: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``(d_x, d_values, d_bias)`` of ``spmm``, by the operator that computes just what is needed.

    ``y`` is its output if it has a ReLU, otherwise None.
    """
    needs_x, needs_values, needs_bias = needs
    if needs_values:
        observe.see(pattern.crow, g, x, y)
    if needs_x and needs_values:
        d_x, d_values, d_bias = spmm_backward(g, x, values, pattern, y)
        return d_x, d_values, d_bias if needs_bias else None
    if y is not None:
        g = relu_backward(g, y)
    return (
        spmm_t(g, values, pattern, x.shape[0]) if needs_x else None,
        sddmm(g, x, pattern, values.shape[1]) if needs_values else None,
        g.sum(1) if needs_bias else None,
    )


def _spmm_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, values, *pattern, y = ctx.saved_tensors
    # The dispatcher drops trailing arguments that are their default: there are six to nine inputs.
    needs = (*ctx.needs_input_grad[:2], any(ctx.needs_input_grad[6:]))
    d_x, d_values, d_bias = _gradients(g, x, values, Pattern(*pattern), y, needs)
    return d_x, d_values, None, None, None, None, d_bias, None, None


def _spmm_t_gradients(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
    g, values, *rest = ctx.saved_tensors
    pattern = Pattern(*rest)
    d_g = spmm(d, values, pattern) if ctx.needs_input_grad[0] else None
    d_values = sddmm(g, d, pattern, values.shape[1]) if ctx.needs_input_grad[1] else None
    return d_g, d_values, None, None, None, None, None


def _sddmm_gradients(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
    g, x, *rest = ctx.saved_tensors
    pattern = Pattern(*rest)
    d_g = spmm(x, d, pattern) if ctx.needs_input_grad[0] else None
    d_x = spmm_t(g, d, pattern, x.shape[0]) if ctx.needs_input_grad[1] else None
    return d_g, d_x, None, None, None, None, None


def _spmm_backward_gradients(
    ctx: Any, d_x: Tensor, d_values: Tensor, d_bias: Tensor
) -> tuple[Tensor | None, ...]:
    g, x, values, *rest, y = ctx.saved_tensors
    pattern = Pattern(*rest)
    needs_g, needs_x, needs_values = ctx.needs_input_grad[:3]
    to_g = spmm(d_x, values, pattern, d_bias) + spmm(x, d_values, pattern) if needs_g else None
    if y is not None:
        g = relu_backward(g, y)
        to_g = relu_backward(to_g, y) if to_g is not None else None
    to_x = spmm_t(g, d_values, pattern, x.shape[0]) if needs_x else None
    to_values = sddmm(g, d_x, pattern, values.shape[1]) if needs_values else None
    return to_g, to_x, to_values, None, None, None, None, None


# (operator, backward, setup_context)
GRADIENTS: list[tuple[str, Callable[..., Any], Callable[..., Any]]] = [
    ("spmm", _spmm_gradients, _save_for_spmm),
    ("spmm_t", _spmm_t_gradients, _save_operands_and_pattern),
    ("sddmm", _sddmm_gradients, _save_operands_and_pattern),
    ("spmm_backward", _spmm_backward_gradients, _save_for_spmm_backward),
]


# ---- a linear layer in eager mode --------------------------------------------------------------------------


class _Linear(torch.autograd.Function):
    """``linear`` with one node in the autograd graph.

    The registered gradients above do the same and more (compile, export), but pass through four Python frames
    an operator and two transpositions: 0.2 ms of a 1.2 ms training step of 1024 x 1024 weights at 95 %, since
    that Python code is out of the cache whenever it is needed. Where it is not allowed, see ``one_node``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        pattern: Pattern,
        batch_inner: bool | None,
        relu: bool,
    ) -> Tensor:
        ctx.pattern = pattern
        with without_views():
            y = torch.ops.sparseprune.spmm.default(x.t(), values, *pattern, bias, batch_inner, relu).t()
        ctx.save_for_backward(x, values, y if relu else None)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, values, y = ctx.saved_tensors
        with in_backward():
            y = None if y is None else y.t()
            d_x, d_values, d_bias = _gradients(g.t(), x.t(), values, ctx.pattern, y, ctx.needs_input_grad[:3])
        return None if d_x is None else d_x.t(), d_values, d_bias, None, None, None


def linear(
    x: Tensor,
    values: Tensor,
    pattern: Pattern,
    bias: Tensor | None = None,
    batch_inner: bool | None = None,
    relu: bool = False,
) -> Tensor:
    """``y = x W^T + bias`` with samples first: ``(batch, cols)`` to ``(batch, rows)``; see :func:`spmm`.

    Under autocast it is computed in autocast's dtype, as by ``torch.nn.functional.linear``.
    """
    dtype, x, values, bias = under_autocast(x, values, bias)
    if one_node():
        y: Tensor = _Linear.apply(x, values, bias, pattern, batch_inner, relu)
    else:
        y = spmm(x.t(), values, pattern, bias, batch_inner, relu).t()
    return y if dtype is None else y.to(dtype)
