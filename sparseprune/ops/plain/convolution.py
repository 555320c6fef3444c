"""Sparse convolution in plain torch: the definition of its operators, through the dense weight."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseprune.format.bsr import at_blocks, check_pattern_sizes, dense_weight
from sparseprune.format.geometry import Geometry
from sparseprune.format.memory import empty_images, is_batch_inner_images
from sparseprune.format.sizes import check_numbers
from sparseprune.ops.devices import widened


def _images(like: Tensor, y: Tensor, batch_inner: bool) -> Tensor:
    """``y`` in the dtype of ``like`` and the layout asked for."""
    result = empty_images(like, y.shape, batch_inner)
    return y if y.stride() == result.stride() and y.dtype == result.dtype else result.copy_(y)


def _check_images(op: str, what: str, t: Tensor, channels: int, expected: str) -> None:
    if t.dim() != 4 or t.shape[1] != channels:
        raise ValueError(
            f"{op}: expected {what}.shape == [samples, {channels} ({expected}), height, width], "
            f"got {list(t.shape)}"
        )
    check_numbers(op, what, t.shape)


def _check_dtypes(op: str, like: Tensor, **others: Tensor | None) -> None:
    for what, t in others.items():
        if t is not None and t.dtype != like.dtype:
            expected, got = (str(dtype).removeprefix("torch.") for dtype in (like.dtype, t.dtype))
            raise ValueError(f"{op}: expected {what} to be {expected}, got {got}")


def _check_gradient(op: str, g: Tensor, channels: int, geometry: Geometry, input_size: Sequence[int]) -> None:
    if len(input_size) != 2:
        raise ValueError(f"{op}: expected input_size to be [height, width], got {len(input_size)} numbers")
    _check_images(op, "g", g, channels, "out_channels")
    height, width = geometry.output_size(input_size[0], input_size[1], op)
    if g.shape[2:] != (height, width):
        raise ValueError(
            f"{op}: expected g of height and width {height} x {width} (the output's), "
            f"got {g.shape[2]} x {g.shape[3]}"
        )


def dense_filters(op: str, values: Tensor, crow: Tensor, col: Tensor, geometry: Geometry) -> Tensor:
    if values.dim() != 2 or len(values) != len(col):
        raise ValueError(
            f"{op}: expected values.shape == [{len(col)} (nonzero blocks of the pattern), rows of a block], "
            f"got {list(values.shape)}"
        )
    check_numbers(op, "a dense weight", ((len(crow) - 1) * values.shape[1], geometry.cols))
    weight = dense_weight(widened(values), crow, col, geometry.cols)
    channels = geometry.in_channels // geometry.groups
    return weight.reshape(len(weight), channels, geometry.kernel_h, geometry.kernel_w)


def _padded(x: Tensor, geometry: Geometry) -> Tensor:
    pad = (geometry.pad_left, geometry.pad_right, geometry.pad_top, geometry.pad_bottom)
    return F.pad(widened(x), pad)


def _steps(geometry: Geometry, padded: Tensor) -> tuple[list[int], list[int], list[int]]:
    """Stride, padding (there is none left in a padded input) and dilation, as torch's operators take them."""
    # One output is the same with any stride, and torch divides by zero with some long ones.
    most = [size - reach + 1 for size, reach in zip(padded.shape[2:], geometry.reach, strict=True)]
    stride = [min(geometry.stride_h, most[0]), min(geometry.stride_w, most[1])]
    return stride, [0, 0], [geometry.dilation_h, geometry.dilation_w]


def dense_conv2d(x: Tensor, weight: Tensor, geometry: Geometry, bias: Tensor | None = None) -> Tensor:
    padded = _padded(x, geometry)
    return F.conv2d(padded, weight, bias, *_steps(geometry, padded), geometry.groups)


def _convolution_backward(
    g: Tensor, padded: Tensor, weight: Tensor, geometry: Geometry, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of the padded input and of the dense weight, those that are needed."""
    steps = _steps(geometry, padded)
    # With strides of tens of thousands the library that torch calls for float32 does not come to an end.
    dtype = padded.dtype if max(steps[0]) < 4096 else torch.float64
    with torch.autocast(g.device.type, enabled=False):
        d_padded, d_weight, _ = torch.ops.aten.convolution_backward.default(
            widened(g).to(dtype),
            padded.to(dtype),
            weight.to(dtype),
            None,
            *steps,
            False,
            [0, 0],
            geometry.groups,
            [*needs, False],
        )
    return (
        d_padded.to(padded.dtype) if needs[0] else d_padded,
        d_weight.to(padded.dtype) if needs[1] else d_weight,
    )


def dense_weight_gradient(g: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of the whole weight, summed in float32 at least, from g (N, out channels, H, W) and x."""
    padded = _padded(x, geometry)
    channels = geometry.in_channels // geometry.groups
    weight = padded.new_zeros(1, 1, 1, 1).expand(g.shape[1], channels, geometry.kernel_h, geometry.kernel_w)
    return _convolution_backward(g, padded, weight, geometry, (False, True))[1]


def conv2d_plan(crow: Tensor, col: Tensor, geometry: Sequence[int], block_rows: int) -> Tensor:
    check_pattern_sizes("conv2d_plan", crow, Geometry.checked("conv2d_plan", geometry).cols, block_rows)
    return torch.empty(0, dtype=torch.int32, device=crow.device)


def conv2d(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    plan_t: Tensor,
    geometry: Sequence[int],
    bias: Tensor | None = None,
    batch_inner: bool | None = None,
) -> Tensor:
    y = _wide_conv2d("conv2d", x, values, crow, col, geometry, bias)
    return _images(x, y, is_batch_inner_images(x) if batch_inner is None else batch_inner)


def conv2d_act(
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    plan_t: Tensor,
    geometry: Sequence[int],
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    batch_inner: bool | None = None,
) -> Tensor:
    _check_dtypes("conv2d_act", x, residual=residual)
    y = _wide_conv2d("conv2d_act", x, values, crow, col, geometry, bias)
    if residual is not None:
        if residual.shape != y.shape:
            raise ValueError(
                f"conv2d_act: expected residual.shape == {list(y.shape)} (the output's), "
                f"got {list(residual.shape)}"
            )
        y = y + widened(residual)
    y = y.relu() if relu else y
    return _images(x, y, is_batch_inner_images(x) if batch_inner is None else batch_inner)


def _wide_conv2d(
    op: str,
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    geometry: Sequence[int],
    bias: Tensor | None,
) -> Tensor:
    sizes = Geometry.checked(op, geometry)
    _check_images(op, "x", x, sizes.in_channels, "in_channels")
    _check_dtypes(op, x, values=values, bias=bias)
    weight = dense_filters(op, values, crow, col, sizes)
    if bias is not None and tuple(bias.shape) != (len(weight),):
        raise ValueError(
            f"{op}: expected bias.shape == [{len(weight)} (out_channels)], got {list(bias.shape)}"
        )
    size = sizes.output_size(x.shape[2], x.shape[3])
    check_numbers(op, "a result", (len(x), len(weight), *size))
    with torch.autocast(x.device.type, enabled=False):
        return dense_conv2d(x, weight, sizes, None if bias is None else widened(bias))


def conv2d_t(
    g: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    plan_t: Tensor,
    geometry: Sequence[int],
    input_size: Sequence[int],
) -> Tensor:
    return _images(
        g, _conv2d_t("conv2d_t", g, values, crow, col, geometry, input_size), is_batch_inner_images(g)
    )


def _conv2d_t(
    op: str,
    g: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    geometry: Sequence[int],
    input_size: Sequence[int],
) -> Tensor:
    sizes = Geometry.checked(op, geometry)
    _check_dtypes(op, g, values=values)
    weight = dense_filters(op, values, crow, col, sizes)
    _check_gradient(op, g, len(weight), sizes, input_size)
    height, width = input_size
    check_numbers(op, "a result", (len(g), sizes.in_channels, height, width))
    padded = _padded(g.new_zeros(len(g), sizes.in_channels, height, width), sizes)
    d_padded, _ = _convolution_backward(g, padded, weight, sizes, (True, False))
    return d_padded[:, :, sizes.pad_top : sizes.pad_top + height, sizes.pad_left : sizes.pad_left + width]


def conv2d_sddmm(
    g: Tensor,
    x: Tensor,
    crow: Tensor,
    col: Tensor,
    plan_t: Tensor,
    geometry: Sequence[int],
    block_rows: int,
    op: str = "conv2d_sddmm",
) -> Tensor:
    sizes = Geometry.checked(op, geometry)
    _check_dtypes(op, g, x=x)
    _check_images(op, "x", x, sizes.in_channels, "in_channels")
    if len(g) != len(x):
        raise ValueError(
            f"{op}: expected x and g of as many samples, got {list(x.shape)} and {list(g.shape)}"
        )
    check_pattern_sizes(op, crow, sizes.cols, block_rows)
    channels = (len(crow) - 1) * block_rows
    _check_gradient(op, g, channels, sizes, x.shape[2:])
    check_numbers(op, "a dense weight", (channels, sizes.cols))
    d_weight = dense_weight_gradient(g, x, sizes)
    return at_blocks(d_weight.flatten(1), crow, col, block_rows).to(g.dtype).contiguous()


def conv2d_backward(
    g: Tensor,
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    plan_t: Tensor,
    geometry: Sequence[int],
    bias: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    op = "conv2d_backward"
    d_values = conv2d_sddmm(g, x, crow, col, plan_t, geometry, values.shape[-1], op)
    d_x = _conv2d_t(op, g, values, crow, col, geometry, x.shape[2:])
    d_bias = widened(g).sum((0, 2, 3)).to(g.dtype) if bias else g.new_empty(0)
    return _images(x, d_x, is_batch_inner_images(x)), d_values, d_bias


PATTERN = "Tensor crow, Tensor col, Tensor plan_t, int[] geometry"
SCHEMAS: dict[Callable[..., Any], str] = {
    conv2d_plan: "conv2d_plan(Tensor crow, Tensor col, int[] geometry, int block_rows) -> Tensor",
    conv2d: f"conv2d(Tensor x, Tensor values, {PATTERN}, Tensor? bias=None, bool? batch_inner=None) "
    "-> Tensor",
    conv2d_act: f"conv2d_act(Tensor x, Tensor values, {PATTERN}, Tensor? bias, Tensor? residual, bool relu, "
    "bool? batch_inner=None) -> Tensor",
    conv2d_t: f"conv2d_t(Tensor g, Tensor values, {PATTERN}, int[] input_size) -> Tensor",
    conv2d_sddmm: f"conv2d_sddmm(Tensor g, Tensor x, {PATTERN}, int block_rows) -> Tensor",
    conv2d_backward: f"conv2d_backward(Tensor g, Tensor x, Tensor values, {PATTERN}, bool bias=True) "
    "-> (Tensor, Tensor, Tensor)",
}
