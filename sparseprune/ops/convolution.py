"""Sparse convolution: wrappers, fake kernels and gradients of the operators.

Activations are ``(N, channels, height, width)`` with any strides. "Batch-inner" is [C, H, W, N] in memory,
which the kernels want for 16 samples and more.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparseprune.format.bsr import check_pattern_sizes
from sparseprune.format.geometry import Geometry as Geometry
from sparseprune.format.memory import empty_images, is_batch_inner_images
from sparseprune.ops import observe, transforms
from sparseprune.ops.autograd import in_backward, relu_backward, without_views
from sparseprune.ops.devices import under_autocast
from sparseprune.ops.plain.convolution import dense_weight_gradient as dense_weight_gradient
from sparseprune.ops.transforms import one_node


class ConvPattern(NamedTuple):
    """Where the weights of a convolution are: of ``weight.flatten(1)``, see :class:`sparseprune.ops.Pattern`.

    ``plan_t`` int32, opaque, made by :func:`conv_pattern` for one geometry, serves the gradients.
    """

    crow: Tensor
    col: Tensor
    plan_t: Tensor


# ---- wrappers ----------------------------------------------------------------------------------------------


def conv_pattern(crow: Tensor, col: Tensor, geometry: Geometry, block_rows: int = 1) -> ConvPattern:
    """A pattern with its plan, built once for a fixed pattern; an empty one on the meta device.

    Args:
        crow: int32 ``(out_channels / block_rows + 1,)``, starts of the block rows.
        col: int32 ``(nnzb,)``, columns of ``weight.flatten(1)``, ascending within each block row.
        geometry: numbers of the convolution.
        block_rows: V, output channels of a block: 1, 2, 4, 8 or 16; out_channels / groups is divisible by it.
    Raises:
        ValueError: the pattern is malformed or does not fit the geometry.
    """
    geometry = Geometry.checked("conv2d_plan", geometry)
    check_pattern_sizes("conv2d_plan", crow, geometry.cols, block_rows)
    if crow.is_meta:
        return ConvPattern(crow, col, col.new_empty(0))
    plan_t = torch.ops.sparseprune.conv2d_plan.default(crow, col, list(geometry), block_rows)
    return ConvPattern(crow, col, plan_t)


def conv2d(
    x: Tensor,
    values: Tensor,
    pattern: ConvPattern,
    geometry: Geometry,
    bias: Tensor | None = None,
    batch_inner: bool | None = None,
) -> Tensor:
    """``y = conv(x, W) + bias``, W sparse; as ``torch.nn.functional.conv2d``.

    Args:
        x: ``(N, in_channels, H, W)``, N >= 0, float32 or bfloat16 (or float64: slow, for checking gradients).
            Products of bfloat16 are summed in float32 and the result is rounded once.
        values: ``(nnzb, V)``, like x.
        pattern: where the weights of ``W.flatten(1)`` are, ``(out_channels, in_channels / groups *
            kernel_h * kernel_w)``.
        geometry: kernel size, stride, padding, dilation, groups.
        bias: ``(out_channels,)`` or None, like x.
        batch_inner: layout of the result in memory: [C, H, W, N] (True), ordinary (False), or batch-inner
            where ``x`` is (None).
    Returns:
        ``(N, out_channels, *geometry.output_size(H, W))``.
    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    if transforms.transformed():
        return transforms.conv2d(x, values, pattern, geometry, bias)
    return torch.ops.sparseprune.conv2d.default(x, values, *pattern, list(geometry), bias, batch_inner)


def conv2d_act(
    x: Tensor,
    values: Tensor,
    pattern: ConvPattern,
    geometry: Geometry,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = True,
    batch_inner: bool | None = None,
) -> Tensor:
    """``y = relu(conv(x, W) + bias + residual)`` with one rounding, otherwise as :func:`conv2d`.

    On a GPU and within torch's transforms these are three operators.

    Args:
        residual: of y's shape and dtype, or None.
        relu: whether there is a ReLU.
    """
    if transforms.transformed() or not (x.is_cpu or x.is_meta):
        y = conv2d(x, values, pattern, geometry, bias, batch_inner)
        y = y if residual is None else y + residual
        return y.relu() if relu else y
    return torch.ops.sparseprune.conv2d_act.default(
        x, values, *pattern, list(geometry), bias, residual, relu, batch_inner
    )


def conv2d_t(
    g: Tensor, values: Tensor, pattern: ConvPattern, geometry: Geometry, input_size: Sequence[int]
) -> Tensor:
    """The input gradient of ``conv2d``, or a transposed convolution.

    ``(N, in_channels, *input_size)`` from ``g`` ``(N, out_channels, *geometry.output_size(*input_size))``, in
    the memory layout of ``g``.
    """
    if transforms.transformed():
        return transforms.conv2d_t(g, values, *pattern, tuple(geometry), tuple(input_size))
    return torch.ops.sparseprune.conv2d_t.default(g, values, *pattern, list(geometry), list(input_size))


def conv2d_sddmm(
    g: Tensor, x: Tensor, pattern: ConvPattern, geometry: Geometry, block_rows: int = 1
) -> Tensor:
    """The weight gradient of ``conv2d`` at the pattern's blocks, ``(nnzb, block_rows)``."""
    if transforms.transformed():
        return transforms.conv2d_sddmm(g, x, *pattern, tuple(geometry), block_rows)
    return torch.ops.sparseprune.conv2d_sddmm.default(g, x, *pattern, list(geometry), block_rows)


def conv2d_backward(
    g: Tensor, x: Tensor, values: Tensor, pattern: ConvPattern, geometry: Geometry, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """All gradients with one pass over ``g``: ``(conv2d_t(g), conv2d_sddmm(g, x), g.sum((0, 2, 3)))``.

    The input gradient has the memory layout of ``x``. Without ``bias`` the last one is empty: the sums would
    be a second pass.
    """
    if transforms.transformed():
        d_values = conv2d_sddmm(g, x, pattern, geometry, values.shape[1])
        d_bias = g.sum((0, 2, 3)) if bias else g.new_empty(0)
        return conv2d_t(g, values, pattern, geometry, x.shape[2:]), d_values, d_bias
    return torch.ops.sparseprune.conv2d_backward.default(g, x, values, *pattern, list(geometry), bias)


# ---- fake kernels: shapes and strides without data ---------------------------------------------------------


def _fake_conv2d(x: Tensor, values: Tensor, crow: Tensor, *rest: Any) -> Tensor:
    return _fake_images("conv2d", x, values, crow, rest[2], rest[4] if len(rest) > 4 else None)


def _fake_conv2d_act(x: Tensor, values: Tensor, crow: Tensor, *rest: Any) -> Tensor:
    return _fake_images("conv2d_act", x, values, crow, rest[2], rest[6] if len(rest) > 6 else None)


def _fake_images(
    op: str, x: Tensor, values: Tensor, crow: Tensor, numbers: Any, batch_inner: bool | None
) -> Tensor:
    geometry = Geometry.checked(op, numbers)
    inner = is_batch_inner_images(x) if batch_inner is None else batch_inner
    channels = (crow.shape[0] - 1) * values.shape[1]
    return empty_images(x, (x.shape[0], channels, *geometry.output_size(x.shape[2], x.shape[3])), inner)


def _fake_conv2d_t(g: Tensor, values: Tensor, *rest: Any) -> Tensor:
    *_, geometry, input_size = rest
    return empty_images(g, (g.shape[0], geometry[0], *input_size), is_batch_inner_images(g))


def _fake_conv2d_sddmm(g: Tensor, x: Tensor, crow: Tensor, col: Tensor, *rest: Any) -> Tensor:
    return g.new_empty(col.shape[0], rest[-1])


def _fake_conv2d_backward(g: Tensor, x: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    d_x = empty_images(x, x.shape, is_batch_inner_images(x))
    bias = rest[4] if len(rest) > 4 else True
    return d_x, values.new_empty(values.shape), g.new_empty(g.shape[1] if bias else 0)


FAKES: dict[str, Callable[..., Any]] = {
    "conv2d": _fake_conv2d,
    "conv2d_act": _fake_conv2d_act,
    "conv2d_t": _fake_conv2d_t,
    "conv2d_sddmm": _fake_conv2d_sddmm,
    "conv2d_backward": _fake_conv2d_backward,
}


# ---- gradients: each operator's derivative is made of the others -------------------------------------------


def _save_for_conv2d(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.geometry = Geometry(*inputs[5])


def _save_for_conv2d_act(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    relu = inputs[8]
    ctx.save_for_backward(*inputs[:5], output if relu else None)
    ctx.geometry = Geometry(*inputs[5])


def _save_for_conv2d_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.geometry, ctx.bias = Geometry(*inputs[6]), inputs[7] if len(inputs) > 7 else True


def _gradients(
    g: Tensor, x: Tensor, values: Tensor, pattern: ConvPattern, geometry: Geometry, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``(d_x, d_values, d_bias)`` of ``conv2d``, by the operator that computes just what is needed."""
    needs_x, needs_values, needs_bias = needs
    if needs_values:
        observe.see(pattern.crow, g, x)
    if needs_x and needs_values:
        d_x, d_values, d_bias = conv2d_backward(g, x, values, pattern, geometry, needs_bias)
        return d_x, d_values, d_bias if needs_bias else None
    return (
        conv2d_t(g, values, pattern, geometry, x.shape[2:]) if needs_x else None,
        conv2d_sddmm(g, x, pattern, geometry, values.shape[1]) if needs_values else None,
        g.sum((0, 2, 3)) if needs_bias else None,
    )


def _conv2d_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, values, *pattern = ctx.saved_tensors
    # The dispatcher drops trailing arguments that are their default: there are six to eight inputs.
    needs = (*ctx.needs_input_grad[:2], any(ctx.needs_input_grad[6:]))
    d_x, d_values, d_bias = _gradients(g, x, values, ConvPattern(*pattern), ctx.geometry, needs)
    return d_x, d_values, None, None, None, None, d_bias, None


def _conv2d_act_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, values, *pattern, y = ctx.saved_tensors
    g = g if y is None else relu_backward(g, y)
    needs_x, needs_values, *_, needs_bias, needs_residual = ctx.needs_input_grad[:8]
    d_x, d_values, d_bias = _gradients(
        g, x, values, ConvPattern(*pattern), ctx.geometry, (needs_x, needs_values, needs_bias)
    )
    d_residual = g if needs_residual else None
    return d_x, d_values, None, None, None, None, d_bias, d_residual, None, None


def _conv2d_t_gradients(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
    g, values, *rest = ctx.saved_tensors
    pattern = ConvPattern(*rest)
    d_g = conv2d(d, values, pattern, ctx.geometry) if ctx.needs_input_grad[0] else None
    d_values = conv2d_sddmm(g, d, pattern, ctx.geometry, values.shape[1]) if ctx.needs_input_grad[1] else None
    return d_g, d_values, None, None, None, None, None


def _conv2d_sddmm_gradients(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
    g, x, *rest = ctx.saved_tensors
    pattern = ConvPattern(*rest)
    d_g = conv2d(x, d, pattern, ctx.geometry) if ctx.needs_input_grad[0] else None
    d_x = conv2d_t(g, d, pattern, ctx.geometry, x.shape[2:]) if ctx.needs_input_grad[1] else None
    return d_g, d_x, None, None, None, None, None


def _conv2d_backward_gradients(
    ctx: Any, d_x: Tensor, d_values: Tensor, d_bias: Tensor
) -> tuple[Tensor | None, ...]:
    g, x, values, *rest = ctx.saved_tensors
    pattern, size = (ConvPattern(*rest), ctx.geometry), x.shape[2:]
    needs_g, needs_x, needs_values = ctx.needs_input_grad[:3]
    bias = d_bias if ctx.bias else None
    to_g = conv2d(d_x, values, *pattern, bias) + conv2d(x, d_values, *pattern) if needs_g else None
    to_x = conv2d_t(g, d_values, *pattern, size) if needs_x else None
    to_values = conv2d_sddmm(g, d_x, *pattern, values.shape[1]) if needs_values else None
    return to_g, to_x, to_values, None, None, None, None, None


# (operator, backward, setup_context)
GRADIENTS: list[tuple[str, Callable[..., Any], Callable[..., Any]]] = [
    ("conv2d", _conv2d_gradients, _save_for_conv2d),
    ("conv2d_act", _conv2d_act_gradients, _save_for_conv2d_act),
    ("conv2d_t", _conv2d_t_gradients, _save_for_conv2d),
    ("conv2d_sddmm", _conv2d_sddmm_gradients, _save_for_conv2d),
    ("conv2d_backward", _conv2d_backward_gradients, _save_for_conv2d_backward),
]


# ---- a convolution in eager mode ---------------------------------------------------------------------------


class _Convolution(torch.autograd.Function):
    """``convolve`` with one node in the autograd graph; see ``_Linear`` in products.py."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        pattern: ConvPattern,
        geometry: Geometry,
        batch_inner: bool | None,
    ) -> Tensor:
        ctx.pattern, ctx.geometry = pattern, geometry
        ctx.save_for_backward(x, values)
        with without_views():
            return conv2d(x, values, pattern, geometry, bias, batch_inner)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        with in_backward():
            gradients = _gradients(g, x, values, ctx.pattern, ctx.geometry, ctx.needs_input_grad[:3])
        return *gradients, None, None, None


def convolve(
    x: Tensor,
    values: Tensor,
    pattern: ConvPattern,
    geometry: Geometry,
    bias: Tensor | None = None,
    batch_inner: bool | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """``y = relu(conv(x, W) + bias + residual)`` as a layer computes it; arguments and result as in
    :func:`conv2d_act`.

    Under autocast it is computed in autocast's dtype, as by ``torch.nn.functional.conv2d``.
    """
    dtype, x, values, bias = under_autocast(x, values, bias)
    if residual is not None or relu:
        residual = None if residual is None else residual.to(x.dtype)
        y = conv2d_act(x, values, pattern, geometry, bias, residual, relu, batch_inner)
    elif one_node():
        y = _Convolution.apply(x, values, bias, pattern, geometry, batch_inner)
    else:
        y = conv2d(x, values, pattern, geometry, bias, batch_inner)
    return y if dtype is None else y.to(dtype)
