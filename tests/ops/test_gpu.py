"""The CUDA operators and the modules on them, against plain torch in float64.

On a GPU: ``pytest -m gpu``. Without one, ``test_simt.py`` runs these same tests over the operators
compiled for the CPU, where an emulator executes their kernels (``SPARSEPRUNE_EMULATED`` names that library).
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bounds import Sums, assert_half_the_digits, assert_sums, of_batch_norm, of_function
from conftest import EMULATED
from layers import check_step
from torch import Tensor

import sparseprune as sp
from sparseprune import ops
from sparseprune.format.bsr import bsr_from_mask
from sparseprune.format.memory import empty_images
from sparseprune.ops import plain
from sparseprune.ops.convolution import (
    ConvPattern,
    Geometry,
    conv2d,
    conv2d_backward,
    conv2d_sddmm,
    conv2d_t,
    conv_pattern,
)
from sparseprune.ops.plain.topk import ordered_as_integers

DEVICE = torch.device("cpu" if EMULATED else "cuda")
WHY_NOT = (
    ""
    if EMULATED
    else "there is no CUDA device"
    if not torch.cuda.is_available()
    else "the extension was compiled without CUDA"
    if not ops.info()["cuda_compiled"]
    else ""
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "on a GPU")]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def check(actual: Tensor, sums: Sums, like: Tensor) -> None:
    """A result of the operands' dtype, on their device, within its bounds."""
    assert actual.dtype == like.dtype
    assert actual.device.type == DEVICE.type
    # Tensor cores are used for numbers of 16 bits.
    assert_sums(actual, sums, truncated=like.dtype != torch.float32)


def blocks(rows: int, cols: int, block_rows: int, density: float) -> Tensor:
    """A mask (rows, cols) of blocks; its first block row is empty where there are others."""
    mask = torch.rand(rows // block_rows, cols) < density
    if len(mask) > 2:
        mask[0] = False
    return mask.repeat_interleave(block_rows, 0)


def pattern_on_device(mask: Tensor, block_rows: int) -> ops.Pattern:
    crow, col = bsr_from_mask(mask, block_rows)
    return ops.plans(crow.to(DEVICE), col.to(DEVICE), mask.shape[1], block_rows)


def images(n: int, c: int, h: int, w: int, inner: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    return empty_images(random(1, dtype=dtype), (n, c, h, w), inner).copy_(random(n, c, h, w))


def features_innermost(x: Tensor) -> Tensor:
    return x.t().contiguous().t()


def reference(pattern: Any) -> list[Tensor]:
    """The pattern for plain torch on the CPU."""
    return [t.cpu() for t in pattern]


# ---- linear ------------------------------------------------------------------------------------------------

SHAPES = [(32, 24, 40), (16, 70, 33), (48, 5, 8), (16, 9, 1), (32, 40, 72)]  # rows, cols, batch


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_rows", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_operators(dtype: torch.dtype, block_rows: int, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(sum(shape) + block_rows)
    rows, cols, batch = shape
    pattern = pattern_on_device(blocks(rows, cols, block_rows, 0.4), block_rows)
    values = random(len(pattern.col), block_rows, dtype=dtype)
    x, g, bias = (random(*size, dtype=dtype) for size in ((cols, batch), (rows, batch), (rows,)))
    if batch % 2:
        x, g = features_innermost(x), features_innermost(g)
    relu, bias = bool(batch % 8), bias if cols % 2 else None

    of = reference(pattern)
    (sums,) = of_function(lambda x, v, b: plain.products.spmm(x, v, *of, b), x, values, bias)
    y = ops.spmm(x, values, pattern, bias)
    check(y, sums, x)
    if relu:
        assert torch.equal(ops.spmm(x, values, pattern, bias, relu=True), y.relu())
    (sums,) = of_function(lambda g, v: plain.products.spmm_t(g, v, *of, cols), g, values)
    check(ops.spmm_t(g, values, pattern, cols), sums, x)
    (sums,) = of_function(lambda g, x: plain.products.sddmm(g, x, *of, block_rows), g, x)
    check(ops.sddmm(g, x, pattern, block_rows), sums, x)
    output = y.relu() if relu else None
    got = ops.spmm_backward(g, x, values, pattern, output)
    through = g * (y > 0) if relu else g
    expected = of_function(lambda g, x, v: plain.products.spmm_backward(g, x, v, *of), through, x, values)
    for one, other in zip(got, expected, strict=True):
        check(one, other, x)
    again = ops.spmm_backward(g, x, values, pattern, output)
    assert all(torch.equal(one, other) for one, other in zip(got, again, strict=True))  # no atomics


@pytest.mark.parametrize("batch_inner", [True, False, None])
@pytest.mark.parametrize("of_input", [True, False])
def test_layout_of_results(batch_inner: bool | None, of_input: bool) -> None:
    pattern = pattern_on_device(blocks(8, 6, 1, 0.5), 1)
    values, x = random(len(pattern.col), 1), random(6, 12)
    x = x if of_input else features_innermost(x)
    y = ops.spmm(x, values, pattern, batch_inner=batch_inner)
    inner = of_input if batch_inner is None else batch_inner
    assert y.stride() == ((12, 1) if inner else (1, 8))
    assert ops.spmm_t(y, values, pattern, 6).stride() == ((12, 1) if inner else (1, 6))
    d_x, _, _ = ops.spmm_backward(y, x, values, pattern)
    assert d_x.stride() == x.stride()


def test_sizes_of_zero() -> None:
    empty = pattern_on_device(torch.zeros(4, 6, dtype=torch.bool), 1)
    x, bias = random(6, 8), random(4)
    y = ops.spmm(x, random(0, 1), empty, bias)
    assert torch.equal(y, bias[:, None].expand(4, 8))
    d_x, d_values, d_bias = ops.spmm_backward(random(4, 8), x, random(0, 1), empty)
    assert torch.equal(d_x, torch.zeros_like(x))
    assert d_values.shape == (0, 1)
    assert d_bias.shape == (4,)
    pattern = pattern_on_device(blocks(4, 6, 1, 0.5), 1)
    values = random(len(pattern.col), 1)
    assert ops.spmm(random(6, 0), values, pattern).shape == (4, 0)
    d_x, d_values, d_bias = ops.spmm_backward(random(4, 0), random(6, 0), values, pattern)
    assert d_x.shape == (6, 0)
    assert torch.equal(d_values, torch.zeros_like(values))
    assert torch.equal(d_bias, torch.zeros_like(d_bias))


def test_infinite_inputs_reach_what_uses_them_only() -> None:
    mask = torch.tensor([[True, False, True], [False, True, False]])
    pattern = pattern_on_device(mask, 1)
    x = random(3, 20)
    x[0, 3], x[1, 4] = torch.inf, torch.nan
    y = ops.spmm(x, random(3, 1).abs() + 1, pattern, relu=True)
    bad = torch.zeros(2, 20, dtype=torch.bool)
    bad[0, 3] = bad[1, 4] = True
    assert torch.equal(~y.isfinite().cpu(), bad)


def test_operators_pass_torchs_own_checks() -> None:
    pattern = pattern_on_device(blocks(8, 6, 2, 0.5), 2)
    x, values = random(6, 9).requires_grad_(), random(len(pattern.col), 2).requires_grad_()
    bias = random(8).requires_grad_()
    for arguments in (
        (x, values, *pattern, bias),
        (features_innermost(x), values, *pattern, None, True, True),
    ):
        torch.library.opcheck(torch.ops.sparseprune.spmm.default, arguments, test_utils=OPCHECKS)
    g = random(8, 9).requires_grad_()
    torch.library.opcheck(torch.ops.sparseprune.spmm_t.default, (g, values, *pattern, 6), test_utils=OPCHECKS)
    torch.library.opcheck(torch.ops.sparseprune.sddmm.default, (g, x, *pattern, 2), test_utils=OPCHECKS)
    torch.library.opcheck(
        torch.ops.sparseprune.spmm_backward.default, (g, x, values, *pattern, None), test_utils=OPCHECKS
    )


OPCHECKS = ["test_schema", "test_faketensor"]


def test_forged_plans_are_refused() -> None:
    pattern = pattern_on_device(blocks(16, 24, 2, 0.5), 2)
    values, x, g = random(len(pattern.col), 2), random(24, 17), random(16, 17)
    geometry = Geometry(6, 3, 3, 2, 1, groups=2)
    of_conv = conv_pattern_on_device(blocks(8, geometry.cols, 2, 0.5), geometry, 2)
    image, of_image = images(17, 6, 7, 6, True), images(17, 8, 3, 4, True)
    weights = random(len(of_conv.col), 2)
    calls: list[tuple[Any, Callable[[Any], object]]] = [
        (pattern, lambda p: ops.spmm(x, values, p)),
        (pattern, lambda p: ops.spmm_t(g, values, p, 24)),
        (pattern, lambda p: ops.sddmm(g, x, p, 2)),
        (pattern, lambda p: ops.spmm_backward(g, x, values, p)),
        (of_conv, lambda p: ops.conv2d(image, weights, p, geometry)),
        (of_conv, lambda p: ops.conv2d_t(of_image, weights, p, geometry, (7, 6))),
        (of_conv, lambda p: ops.conv2d_sddmm(of_image, image, p, geometry, 2)),
        (of_conv, lambda p: ops.conv2d_backward(of_image, image, weights, p, geometry)),
    ]
    for own, call in calls:
        call(own)
        for name in own._fields[2:]:
            for at in range(0, len(getattr(own, name)), 7):
                forged = getattr(own, name).clone()
                forged[at] += 1 << (at % 31)
                with pytest.raises(ValueError, match="expected the plan that sparseprune::"):
                    call(own._replace(**{name: forged}))


def test_bad_arguments_name_what_was_expected() -> None:
    pattern = pattern_on_device(blocks(8, 6, 1, 0.5), 1)
    other = pattern_on_device(blocks(16, 6, 1, 0.9), 1)
    values, x = random(len(pattern.col), 1), random(6, 5)
    with pytest.raises(ValueError, match="plans made by sparseprune::plan on a GPU, of this pattern"):
        ops.spmm(x, values, pattern._replace(plan=other.plan))
    with pytest.raises(ValueError, match="plans made by sparseprune::plan on a GPU, of this pattern"):
        ops.spmm(x, values, pattern._replace(plan_t=other.plan_t[:-1]))
    with pytest.raises(ValueError, match=r"x\.shape == \[6 \(weight columns\), batch\], got \[7, 5\]"):
        ops.spmm(random(7, 5), values, pattern)
    with pytest.raises(
        ValueError, match="float32, float16 or bfloat16 on a GPU, got float64, of which there are"
    ):
        ops.spmm(x.double(), values.double(), pattern)
    with pytest.raises(ValueError, match="expected values to be float32, got float16"):
        ops.spmm(x, values.half(), pattern)
    with pytest.raises(ValueError, match=r"expected columns of a row to ascend within 0 \.\. 4"):
        ops.plans(pattern.crow, torch.full_like(pattern.col, 5), 5)
    with pytest.raises(ValueError, match="block_rows to be 1, 2, 4, 8 or 16"):
        ops.plans(pattern.crow, pattern.col, 6, 3)


@pytest.mark.skipif(EMULATED, reason="there is one device")
def test_tensors_of_another_device_are_refused() -> None:
    pattern = pattern_on_device(blocks(8, 6, 1, 0.5), 1)
    values, x = random(len(pattern.col), 1), random(6, 5)
    for arguments in ((x.cpu(), values, pattern), (x, values.cpu(), pattern)):
        with pytest.raises(ValueError, match="on the GPU of the other tensors"):
            ops.spmm(*arguments)
    on_cpu = ops.plans(pattern.crow.cpu(), pattern.col.cpu(), 6)
    with pytest.raises(ValueError, match="on the GPU of the other tensors"):
        ops.spmm(x, values, on_cpu)


# ---- convolution -------------------------------------------------------------------------------------------

# Geometry, input's height and width
CONVOLUTIONS = [
    (Geometry(6, 3, 3, 1, 1, 1, 1, 1, 1), 5, 6),
    (Geometry(6, 3, 3, 2, 2, 1, 1, 1, 1), 5, 6),
    (Geometry(6, 1, 1), 4, 3),
    (Geometry(6, 1, 1, 2, 2), 5, 4),
    (Geometry(6, 2, 3, 2, 1, 0, 2, 1, 0, 1, 2), 6, 7),
    (Geometry(6, 1, 5, 1, 3, 0, 0, 2, 2), 1, 9),
    (Geometry(6, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2), 4, 5),
    (Geometry(8, 3, 3, 1, 2, 1, 1, 1, 1, 1, 1, 2), 4, 5),
    (Geometry(8, 1, 1, groups=2), 3, 3),
]


def conv_pattern_on_device(mask: Tensor, geometry: Geometry, block_rows: int) -> ConvPattern:
    crow, col = bsr_from_mask(mask, block_rows)
    return conv_pattern(crow.to(DEVICE), col.to(DEVICE), geometry, block_rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_rows", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("which", range(len(CONVOLUTIONS)))
def test_convolutions(dtype: torch.dtype, block_rows: int, which: int) -> None:
    torch.manual_seed(which)
    of, height, width = CONVOLUTIONS[which]
    samples, channels = ((16, 1, 3, 20)[(which + block_rows) % 4], 32)
    pattern = conv_pattern_on_device(blocks(channels, of.cols, block_rows, 0.4), of, block_rows)
    values = random(len(pattern.col), block_rows, dtype=dtype)
    x = images(samples, of.in_channels, height, width, bool(which % 2), dtype)
    g = images(samples, channels, *of.output_size(height, width), bool(block_rows % 3), dtype)
    bias = random(channels, dtype=dtype) if which % 3 else None

    like = reference(pattern)
    y = conv2d(x, values, pattern, of, bias)
    (sums,) = of_function(lambda x, v, b: plain.convolution.conv2d(x, v, *like, of, b), x, values, bias)
    check(y, sums, x)
    d_x = conv2d_t(g, values, pattern, of, (height, width))
    size = (height, width)
    (sums,) = of_function(lambda g, v: plain.convolution.conv2d_t(g, v, *like, of, size), g, values)
    check(d_x, sums, x)
    d_values = conv2d_sddmm(g, x, pattern, of, block_rows)
    (sums,) = of_function(lambda g, x: plain.convolution.conv2d_sddmm(g, x, *like, of, block_rows), g, x)
    check(d_values, sums, x)
    got = conv2d_backward(g, x, values, pattern, of)
    backward = plain.convolution.conv2d_backward
    expected = of_function(lambda g, x, v: backward(g, x, v, *like, of), g, x, values)
    for one, other in zip(got, expected, strict=True):
        check(one, other, x)
    assert torch.equal(got[0], d_x)
    assert torch.equal(got[1], d_values)


@pytest.mark.parametrize("batch_inner", [True, False, None])
@pytest.mark.parametrize("of_input", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_layout_of_images(batch_inner: bool | None, of_input: bool, kernel: int) -> None:
    geometry = Geometry(4, kernel, kernel)
    pattern = conv_pattern_on_device(blocks(8, geometry.cols, 2, 0.5), geometry, 2)
    values, x = random(len(pattern.col), 2), images(6, 4, 5, 5, of_input)
    y = conv2d(x, values, pattern, geometry, batch_inner=batch_inner)
    inner = of_input if batch_inner is None else batch_inner
    assert y.stride() == empty_images(x, y.shape, inner).stride()
    assert conv2d_t(y, values, pattern, geometry, (5, 5)).stride() == empty_images(x, x.shape, inner).stride()
    assert conv2d_backward(y, x, values, pattern, geometry)[0].stride() == x.stride()


def test_images_of_sizes_of_zero() -> None:
    geometry = Geometry(4, 3, 3)
    pattern = conv_pattern_on_device(blocks(8, geometry.cols, 1, 0.5), geometry, 1)
    values = random(len(pattern.col), 1)
    x, g = random(0, 4, 5, 5), random(0, 8, 3, 3)
    assert conv2d(x, values, pattern, geometry).shape == (0, 8, 3, 3)
    d_x, d_values, d_bias = conv2d_backward(g, x, values, pattern, geometry)
    assert d_x.shape == x.shape
    assert torch.equal(d_values, torch.zeros_like(values))
    assert torch.equal(d_bias, torch.zeros_like(d_bias))
    empty = conv_pattern_on_device(torch.zeros(8, geometry.cols, dtype=torch.bool), geometry, 1)
    y = conv2d(random(2, 4, 5, 5), random(0, 1), empty, geometry, bias := random(8))
    assert torch.equal(y, bias[:, None, None].expand(2, 8, 3, 3))


def test_infinite_pixels_do_not_leak_through_padding() -> None:
    geometry = Geometry(1, 3, 3, 1, 1, 1, 1, 1, 1)
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[0, 0] = True  # reads the pixel above, to the left
    pattern = conv_pattern_on_device(mask, geometry, 1)
    x = random(3, 1, 4, 4)
    x[1, 0, 3, 1] = torch.inf  # below all results that are in the image
    x[2, 0, 0, 0] = torch.nan
    bad = ~conv2d(x, random(1, 1).abs() + 1, pattern, geometry).isfinite()
    assert bad.nonzero().tolist() == [[2, 0, 1, 1]]


def test_convolutions_refuse_what_does_not_fit() -> None:
    geometry = Geometry(4, 3, 3)
    pattern = conv_pattern_on_device(blocks(8, geometry.cols, 1, 0.5), geometry, 1)
    values, x = random(len(pattern.col), 1), random(2, 4, 5, 5)
    other = geometry._replace(stride_h=2)
    with pytest.raises(ValueError, match="a plan made by sparseprune::conv2d_plan on a GPU, of this pattern"):
        conv2d(x, values, pattern, other)
    with pytest.raises(ValueError, match=r"x\.shape == \[samples, 4 \(in_channels\), height, width\]"):
        conv2d(random(2, 3, 5, 5), values, pattern, geometry)
    with pytest.raises(ValueError, match="expected bias to be float32, got float16"):
        conv2d(x, values, pattern, geometry, random(8).half())
    with pytest.raises(ValueError, match="of at least 3 \\(the kernel's reach\\) in width, got 2"):
        conv2d(random(2, 4, 5, 2), values, pattern, geometry)
    with pytest.raises(ValueError, match=r"g of height and width 3 x 3 \(the output's\), got 4 x 3"):
        conv2d_t(random(2, 8, 4, 3), values, pattern, geometry, (5, 5))
    far = Geometry(1, 3, 1, dilation_h=20000)
    pattern = conv_pattern_on_device(torch.ones(1, 3, dtype=torch.bool), far, 1)
    with pytest.raises(
        ValueError, match=r"kernels that reach less than 2\^15 pixels, padding and stride included, got 60001"
    ):
        conv2d(random(1, 1, 40001, 1), random(3, 1), pattern, far)


def test_convolutions_pass_torchs_own_checks() -> None:
    geometry = Geometry(4, 3, 3, 2, 2, 1, 1, 1, 1)
    pattern = conv_pattern_on_device(blocks(8, geometry.cols, 2, 0.5), geometry, 2)
    values, x, g = random(len(pattern.col), 2), random(3, 4, 5, 5), random(3, 8, 3, 3)
    sizes = list(geometry)
    operators = torch.ops.sparseprune
    for operator, arguments in (
        (operators.conv2d, (x, values, *pattern, sizes, random(8))),
        (operators.conv2d_t, (g, values, *pattern, sizes, [5, 5])),
        (operators.conv2d_sddmm, (g, x, *pattern, sizes, 2)),
        (operators.conv2d_backward, (g, x, values, *pattern, sizes)),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=OPCHECKS)


# ---- batch norm --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize(("relu", "with_residual"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(dtype: torch.dtype, inner: bool, relu: bool, with_residual: bool, training: bool) -> None:
    torch.manual_seed(1)
    x, g = (images(17, 3, 4, 5, inner, dtype) for _ in range(2))
    residual = images(17, 3, 4, 5, not inner, dtype) if with_residual else None
    weight, bias = random(3), random(3, dtype=dtype)
    mean, var = random(3), random(3).abs() + 0.5
    operators = torch.ops.sparseprune
    if training:
        of = of_batch_norm(x, g, weight, bias, residual, 1e-3)
        y, mean, var = operators.batch_norm_act.default(x, weight, bias, residual, 1e-3, relu)
        of["mean"].check(mean, "mean")
        of["var"].check(var, "var")
    else:
        of = of_batch_norm(x, g, weight, bias, residual, 1e-3, (mean, var))
        y = operators.batch_norm_act_eval.default(x, weight, bias, mean, var, residual, 1e-3, relu)
    expected = of["y"]._replace(exact=of["y"].exact.relu()) if relu else of["y"]
    assert y.stride() == x.stride()
    assert y.dtype == dtype
    assert y.device.type == DEVICE.type
    expected.check(y, "y")
    output = y if with_residual else None
    rest = (1e-3, relu, training, with_residual)
    got = operators.batch_norm_act_backward.default(g, x, weight, bias, mean, var, output, *rest)
    through = g * (y > 0) if relu else g
    of = of_batch_norm(x, through, weight, bias, None, 1e-3, (mean, var), training)
    for one, name, like in zip(
        got, ("x", "residual", "weight", "bias"), (dtype, dtype, torch.float32, torch.float32), strict=True
    ):
        assert one.dtype == like
        if name != "residual":
            of[name].check(one, name)
        elif with_residual:
            assert torch.equal(one, through)
    assert got[0].stride() == x.stride()
    again = operators.batch_norm_act_backward.default(g, x, weight, bias, mean, var, output, *rest)
    assert all(torch.equal(one, other) for one, other in zip(got, again, strict=True))


def test_batch_norm_refuses_what_does_not_fit() -> None:
    x = random(2, 3, 4, 5)
    operator = torch.ops.sparseprune.batch_norm_act.default
    with pytest.raises(ValueError, match=r"weight\.shape == \[3 \(channels\)\], got \[4\]"):
        operator(x, random(4), None, None, 1e-5, True)
    with pytest.raises(ValueError, match="expected residual to be float32, got float16"):
        operator(x, None, None, x.half(), 1e-5, True)
    with pytest.raises(ValueError, match="on a GPU, got float64"):
        operator(x.double(), None, None, None, 1e-5, True)


def test_batch_norm_module_is_torchs() -> None:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(3)
    fused = sp.nn.BatchNormAct2d.from_batch_norm(copy.deepcopy(norm), relu=True).to(DEVICE)
    x = random(6, 3, 4, 5).requires_grad_()
    wide_x = x.detach().cpu().double()
    wide_norm = copy.deepcopy(norm).double()
    for _ in range(2):
        y = fused(x)
        wide_norm(wide_x)
    assert_half_the_digits(fused.running_var.cpu(), wide_norm.running_var.float())
    y.square().sum().backward()
    expected = of_batch_norm(x, 2 * y * (y > 0), norm.weight, norm.bias, None, norm.eps)
    assert x.grad is not None
    expected["y"]._replace(exact=expected["y"].exact.relu()).check(y, "y")
    expected["x"].check(x.grad, "x")
    expected["weight"].check(fused.weight.grad, "weight")


# ---- top-k -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [0, 1, 3])
def test_topk_masks_are_those_of_the_cpu(dtype: torch.dtype, levels: int) -> None:
    torch.manual_seed(levels)
    scores = [torch.randn(size, dtype=dtype) for size in ((33, 20), (1,), (0,), (1500,))]
    if levels:
        scores = [
            (s * levels).round() / levels * (-1) ** torch.arange(s.numel()).view(s.shape) for s in scores
        ]
    n = sum(s.numel() for s in scores)
    for k in (0, 1, 700, n):
        masks = sp.topk_masks([s.to(DEVICE) for s in scores], k)
        expected = plain.topk.topk_masks(scores, k)
        assert sum(int(m.sum()) for m in masks) == k
        for mask, like in zip(masks, expected, strict=True):
            assert mask.device.type == DEVICE.type
            assert torch.equal(mask.cpu(), like)


def test_topk_masks_of_denormals() -> None:
    scores = torch.tensor([1e-45, 0.0, -1e-45, 3e-45, -0.0]).to(DEVICE)
    assert ordered_as_integers(scores.cpu()).argmax() == 3
    assert sp.topk_masks([scores], 2)[0].tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_topk_masks_refuse_what_is_not_finite(bad: str) -> None:
    scores = [random(5), random(1300), random(7)]
    scores[1][1200] = float(bad)
    scores[2][0] = -torch.inf
    with pytest.raises(ValueError, match=rf"expected finite scores, got {bad} in scores\[1\]"):
        sp.topk_masks(scores, 3)
    with pytest.raises(ValueError, match=r"expected k in 0..5"):
        sp.topk_masks(scores[:1], 6)


# ---- modules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_rows", [1, 4])
def test_sparse_linear_is_the_dense_layer(block_rows: int) -> None:
    torch.manual_seed(0)
    dense = torch.nn.Linear(20, 16)
    mask = blocks(16, 20, block_rows, 0.5)
    with torch.no_grad():
        dense.weight *= mask
    sparse = sp.SparseLinear.from_dense(dense, mask).to(DEVICE)
    x = random(6, 20).requires_grad_()
    y = sparse(x)
    assert y.device.type == DEVICE.type
    y.square().sum().backward()
    assert x.grad is not None
    check_step(sparse, dense, x, y, 2 * y)


def test_sparse_linear_travels_with_its_plans() -> None:
    dense = torch.nn.Linear(20, 16)
    sparse = sp.SparseLinear.from_dense(dense, torch.rand(16, 20) < 0.3)
    there = copy.deepcopy(sparse).to(DEVICE)
    x = torch.randn(3, 20)
    dense = sparse.to_dense()
    on_device = {"crow": DEVICE.type, "col": DEVICE.type, "plan": DEVICE.type, "plan_t": DEVICE.type}
    assert {name: t.device.type for name, t in there.pattern._asdict().items()} == on_device
    check_step(there, dense, x, there(x.to(DEVICE)))
    check_step(there, dense, x, copy.deepcopy(there)(x.to(DEVICE)))
    again = sp.SparseLinear(20, 16, device=DEVICE)
    again.load_state_dict(sparse.state_dict())
    check_step(again, dense, x, again(x.to(DEVICE)))
    back = there.cpu()
    check_step(back, dense, x, back(x))


@pytest.mark.parametrize("inner", [True, False])
def test_sparse_conv_is_the_dense_layer(inner: bool) -> None:
    torch.manual_seed(0)
    dense = torch.nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
    mask = blocks(8, 18, 2, 0.5).reshape(8, 2, 3, 3)
    with torch.no_grad():
        dense.weight *= mask
    sparse = sp.SparseConv2d.from_dense(dense, mask).to(DEVICE)
    x = images(16, 4, 6, 5, inner).requires_grad_()
    y = sparse(x)
    assert y.device.type == DEVICE.type
    y.square().sum().backward()
    assert x.grad is not None
    check_step(sparse, dense, x, y, 2 * y)


class Residual(torch.nn.Module):
    """What a network has: convolutions, batch norm, ReLU, a residual, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.second = torch.nn.Conv2d(8, 8, 1)
        self.relu = torch.nn.ReLU()
        self.pool = torch.nn.MaxPool2d(2)
        self.last = torch.nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        x = self.pool(self.relu(self.second(x) + x))
        return self.last(x.flatten(1))


def test_a_sparsified_network_trains_as_the_masked_one() -> None:
    torch.manual_seed(0)
    model = Residual()
    batches = [(torch.randn(16, 2, 4, 4), torch.randint(5, (16,))) for _ in range(3)]
    masks = sp.prune(model, batches, method="snip", sparsity=0.5)
    masked = sp.sparsify(model, masks, layers="dense").double()
    sparse = sp.sparsify(model, masks, layers="sparse").to(DEVICE)
    assert sum(isinstance(m, sp.SparseConv2d | sp.SparseLinear) for m in sparse.modules()) == 3
    losses = []
    for network, dtype in ((masked, torch.float64), (sparse, torch.float32)):
        device = next(network.parameters()).device
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for x, target in batches:
            loss = torch.nn.functional.cross_entropy(network(x.to(device, dtype)), target.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        network.eval()
        losses.append(network(batches[0][0].to(device, dtype)).sum().item())
    assert_half_the_digits(torch.tensor(losses[4:]), torch.tensor(losses[:4]))


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_a_sparsified_network_rewires_as_the_masked_one(method: str) -> None:
    torch.manual_seed(0)
    model = Residual()
    batches = [(torch.randn(16, 2, 4, 4), torch.randint(5, (16,))) for _ in range(4)]
    masks = sp.prune(model, batches, method="snip", sparsity=0.5)
    masked = sp.sparsify(model, masks, layers="dense")
    sparse = sp.sparsify(model, masks, layers="sparse").to(DEVICE)
    found = []
    for network in (masked, sparse):
        device = next(network.parameters()).device
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        rewire = sp.Rewire(network, optimizer, method, every=2)  # type: ignore[arg-type]
        for x, target in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x.to(device)), target.to(device)).backward()
            optimizer.step()
            rewire.step()
        found.append({name: m.mask.cpu() for name, m in network.named_modules() if hasattr(m, "mask")})
    for name, mask in found[0].items():
        assert torch.equal(mask, found[1][name])
        assert not torch.equal(mask, masks[f"{name}.weight"])
