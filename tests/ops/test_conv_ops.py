"""The operators of sparse convolution against torch's dense ones in float64."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_ops import PATTERNS, blocks_of, check, noise
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sparseprune.format.bsr import BLOCK_ROWS, bsr_from_mask
from sparseprune.ops import convolution
from sparseprune.ops.convolution import ConvPattern, Geometry

# ---- memory layouts of (N, C, H, W) images with given numbers in them ----


def batch_inner(x: Tensor) -> Tensor:
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def in_memory_of(whole: Tensor, part: Tensor, x: Tensor) -> Tensor:
    whole.fill_(float("nan"))  # what lies around the images must not be read
    return part.copy_(x)


def sliced(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    whole = x.new_empty(n + 1, c + 2, h + 1, 2 * w + 3)
    return in_memory_of(whole, whole[1:, 1:-1, :-1, 2:-1:2], x)


def part_of_wider(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    whole = x.new_empty(n, c, h + 2, w + 5)
    return in_memory_of(whole, whole[:, :, 1:-1, 3:-2], x)


def batch_inner_sliced(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    whole = x.new_empty(c, h + 1, w + 2, n + 3)
    return in_memory_of(whole, whole[:, 1:, 1:-1, 2:-1].permute(3, 0, 1, 2), x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "batch_inner": batch_inner,
    "sliced": sliced,
    "part_of_wider": part_of_wider,
    "batch_inner_sliced": batch_inner_sliced,
    "one_sample_expanded": lambda x: x[:1].expand(x.shape),
    "one_number_expanded": lambda x: x[:1, :1, :1, :1].expand(x.shape),
}


def is_batch_inner(x: Tensor) -> bool:
    """[C, H, W, N] in memory; dimensions of size 1 do not count."""
    n, _, h, w = x.shape
    expected = (1, h * w * n, w * n, n)
    return n > 1 and all(k == 1 or s == e for k, s, e in zip(x.shape, x.stride(), expected, strict=True))


def check_layout(y: Tensor, inner: bool) -> None:
    assert y.permute(1, 2, 3, 0).is_contiguous() if inner else y.is_contiguous()


# ---- a problem and its answers ----


class Case(NamedTuple):
    samples: int = 17
    channels: int = 3  # of the input, of one group
    block_count: int = 2  # of rows of blocks, of one group
    size: tuple[int, int] = (7, 6)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (1, 1, 1, 1)  # top, bottom, left, right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    block_rows: int = 1
    pattern: str = "third"
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32

    @property
    def geometry(self) -> Geometry:
        return Geometry(
            self.channels * self.groups, *self.kernel, *self.stride, *self.pad, *self.dilation, self.groups
        )

    @property
    def out_channels(self) -> int:
        return self.block_count * self.groups * self.block_rows


class Answers(NamedTuple):
    y: Tensor
    y_without_bias: Tensor
    d_x: Tensor
    d_values: Tensor
    d_bias: Tensor


class Problem(NamedTuple):
    case: Case
    mask: Tensor
    pattern: ConvPattern
    values: Tensor
    bias: Tensor
    x: Tensor
    g: Tensor
    exact: Answers  # in float64
    dense: (
        Answers  # by torch's dense convolution in the problem's own dtype; bfloat16 in float32, rounded once
    )
    scale: Answers  # numbers of a size that roundings are compared with


def convolution_of(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    top, bottom, left, right = case.pad
    weight = weight.reshape(len(weight), case.channels, *case.kernel)
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, weight, bias, case.stride, 0, case.dilation, case.groups)


def answers(case: Case, mask: Tensor, x: Tensor, weight: Tensor, bias: Tensor, g: Tensor) -> Answers:
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    y = convolution_of(case, x, weight, bias)
    d_x, d_weight, d_bias = torch.autograd.grad(y, (x, weight, bias), g)
    d_values = blocks_of(d_weight, mask, case.block_rows)
    return Answers(y.detach(), convolution_of(case, x, weight).detach(), d_x, d_values, d_bias)


def problem(case: Case) -> Problem:
    geometry = case.geometry
    mask = PATTERNS[case.pattern](case.block_count * case.groups, geometry.cols)
    mask = mask.repeat_interleave(case.block_rows, 0)
    place = LAYOUTS[case.layout]
    height, width = geometry.output_size(*case.size)
    x = place(noise(case.samples, geometry.in_channels, *case.size).to(case.dtype))
    g = place(noise(case.samples, len(mask), height, width, seed=1).to(case.dtype))
    weight = (noise(*mask.shape, seed=2) * mask).to(case.dtype)
    bias = noise(len(mask), seed=3).to(case.dtype)
    exact = answers(case, mask, x.double(), weight.double(), bias.double(), g.double())
    # Not torch's bfloat16 convolution, which may read memory that nothing has written.
    wide = torch.promote_types(case.dtype, torch.float32)
    operands = [t.to(wide) for t in (x.contiguous(), weight, bias, g.contiguous())]
    dense = Answers(*(t.to(case.dtype) for t in answers(case, mask, *operands)))
    # Sums may cancel. A bfloat16 result has its own rounding, which is larger than what that loses.
    absolute = [t.abs() for t in (x, weight, bias, g)]
    scale = answers(case, mask, *absolute) if case.dtype != torch.bfloat16 else exact
    pattern = convolution.conv_pattern(*bsr_from_mask(mask, case.block_rows), geometry, case.block_rows)
    values = blocks_of(weight, mask, case.block_rows)
    return Problem(case, mask, pattern, values, bias, x, g, exact, dense, scale)


@functools.cache
def problem_with_threads(case: Case, threads: int) -> Problem:
    return problem(case)


def problem_once(case: Case) -> Problem:
    return problem_with_threads(case, torch.get_num_threads())  # which torch's errors depend on


def check_answer(p: Problem, name: str, actual: Tensor) -> None:
    exact, dense, scale = (getattr(answer, name) for answer in (p.exact, p.dense, p.scale))
    check(actual, exact, dense, scale.abs().max() if scale.numel() else None)


def check_operators(p: Problem) -> None:
    geometry = p.case.geometry
    y = convolution.conv2d(p.x, p.values, p.pattern, geometry, p.bias)
    check_answer(p, "y", y)
    check_layout(y, is_batch_inner(p.x))
    for inner in (False, True):
        y = convolution.conv2d(p.x, p.values, p.pattern, geometry, batch_inner=inner)
        check_answer(p, "y_without_bias", y)
        check_layout(y, inner)

    d_x = convolution.conv2d_t(p.g, p.values, p.pattern, geometry, p.case.size)
    check_answer(p, "d_x", d_x)
    check_layout(d_x, is_batch_inner(p.g))

    d_values = convolution.conv2d_sddmm(p.g, p.x, p.pattern, geometry, p.case.block_rows)
    check_answer(p, "d_values", d_values)
    assert d_values.is_contiguous()

    gradients = convolution.conv2d_backward(p.g, p.x, p.values, p.pattern, geometry)
    assert torch.equal(gradients[0], d_x)
    assert torch.equal(gradients[1], d_values)
    check_answer(p, "d_bias", gradients[2])
    check_layout(gradients[0], is_batch_inner(p.x))
    assert gradients[1].is_contiguous()


# ---- every operator against float64 ----


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pad = draw(st.tuples(*[st.integers(0, 3)] * 4))
    size = tuple(
        max(1, dilation[axis] * (kernel[axis] - 1) + 1 - pad[2 * axis] - pad[2 * axis + 1])
        + draw(st.integers(0, 12))
        for axis in (0, 1)
    )
    return Case(
        draw(st.sampled_from([17, 0, 1, 2, 15, 16, 33, 64])),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 4)),
        size,
        kernel,
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        pad,
        dilation,
        draw(st.integers(1, 3)),
        draw(st.sampled_from(BLOCK_ROWS)),
        draw(st.sampled_from(list(PATTERNS))),
        draw(st.sampled_from(list(LAYOUTS))),
        draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64])),
    )


# The fixture sets what stays the same for all examples.
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), threads=st.integers(1, 3))
def test_convolution_equals_the_dense_one(case: Case, threads: int, isa: str, restored_threads: None) -> None:
    torch.set_num_threads(threads)
    check_operators(problem(case))


@pytest.mark.parametrize("samples", [0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 130])
def test_convolution_over_batches(samples: int, isa: str, threads: int) -> None:
    check_operators(problem_once(Case(samples, channels=5, block_count=7)))
    check_operators(problem_once(Case(samples, layout="batch_inner", dtype=torch.bfloat16, block_rows=4)))
    check_operators(problem_once(Case(samples, layout="batch_inner", stride=(2, 2), size=(1, 9))))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_convolution_over_layouts(layout: str, dtype: torch.dtype, isa: str) -> None:
    for samples in (1, 5, 16, 33):
        case = Case(samples, layout=layout, dtype=dtype)
        check_operators(problem_once(case))
        check_operators(problem_once(case._replace(block_rows=4, stride=(2, 3), pad=(0, 1, 2, 0))))
        check_operators(problem_once(case._replace(channels=1, block_count=1, size=(1, 1))))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_convolution_over_patterns(pattern: str, isa: str, threads: int) -> None:
    for samples in (2, 33):
        check_operators(problem_once(Case(samples, channels=12, block_count=20, pattern=pattern)))
        blocks = Case(samples, 4, 3, groups=2, block_rows=16, pattern=pattern, dtype=torch.bfloat16)
        check_operators(problem_once(blocks))


# The first three need several tiles: more than fits the L2 cache of all processors, in both ways of packing.
@pytest.mark.parametrize(
    "case",
    [
        Case(2, 24, 8, (150, 170), pattern="tiny"),
        Case(80, 24, 8, (31, 33), pattern="tiny", layout="batch_inner"),
        Case(17, 48, 2, (9, 130), (3, 5), (2, 2), block_rows=4, pattern="tiny", dtype=torch.bfloat16),
        Case(33, 3, 5, (1, 1), (1, 1), pad=(0, 0, 0, 0)),
        Case(33, 16, 16, (8, 8), (1, 1), (2, 2), pad=(0, 0, 0, 0)),  # most of the input is not read
        Case(5, 2, 3, (4, 30), (1, 7), pad=(0, 0, 3, 3), dilation=(1, 2)),
        Case(18, 2, 3, (30, 4), (7, 1), (3, 1), (9, 0, 0, 2), (3, 1)),  # outputs of padding alone
        Case(20, 1, 1, (6, 6), groups=8),  # depthwise
        Case(20, 1, 2, (6, 6), (5, 5), (2, 2), (2, 2, 2, 2), groups=4, block_rows=2, layout="batch_inner"),
        Case(16, 2, 3, (5, 5), (2, 2), (3, 3), (0, 0, 0, 0), pattern="all"),  # strides skip positions
    ],
    ids=lambda case: "-".join(str(n) for n in case[:6]).replace(" ", ""),
)
def test_convolution_over_shapes(case: Case, isa: str, threads: int) -> None:
    check_operators(problem_once(case))


@functools.lru_cache(maxsize=1)
def results_by_threads(isa: str, case: Case) -> list[Answers]:
    p, geometry = problem_once(case), case.geometry
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        y, without = (convolution.conv2d(p.x, p.values, p.pattern, geometry, b) for b in (p.bias, None))
        found.append(
            Answers(y, without, *convolution.conv2d_backward(p.g, p.x, p.values, p.pattern, geometry))
        )
    return found


@pytest.mark.parametrize("results", [("y", "y_without_bias", "d_x"), ("d_values", "d_bias")])
@pytest.mark.parametrize(
    "case",
    [
        Case(1, 16, 16, (33, 31)),
        Case(7, 16, 16, (20, 20), block_rows=2, dtype=torch.bfloat16),
        Case(48, 16, 16, (12, 11), stride=(2, 1)),
        Case(65, 12, 8, (9, 9), groups=2, block_rows=4, layout="batch_inner"),
        Case(64, 12, 8, (9, 9), block_rows=16, layout="channels_last", pattern="skewed"),
        Case(80, 24, 8, (31, 33), pattern="tiny", layout="batch_inner"),
    ],
    ids=lambda case: "-".join(str(n) for n in case[:4]).replace(" ", ""),
)
def test_convolution_same_bits_at_any_thread_count(
    case: Case, results: tuple[str, ...], isa: str, restored_threads: None, needs_extension: None
) -> None:
    first, *others = results_by_threads(isa, case)
    for other in others:
        assert all(torch.equal(getattr(first, name), getattr(other, name)) for name in results)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    "case",
    [
        Case(3, 4, 6, (6, 5), (3, 2), (2, 1), (1, 0, 1, 0)),
        Case(37, 4, 6, (6, 5), (3, 2), (2, 1), (1, 0, 1, 0), layout="batch_inner"),
        Case(37, 4, 3, (6, 5), block_rows=2, dtype=torch.bfloat16),
    ],
    ids=["few", "batch_inner", "bfloat16"],
)
def test_convolution_spreads_inf_and_nan_only_where_they_are_used(
    bad: float, case: Case, isa: str, needs_extension: None
) -> None:
    p, geometry = problem_once(case), case.geometry
    place = LAYOUTS[case.layout]
    weight_mask = p.mask.float()

    spoilt = torch.zeros(p.x.shape, dtype=torch.bool)
    spoilt[1, 2, 3, 4] = spoilt[-1, 0, 0, 0] = True
    y = convolution.conv2d(place(p.x.masked_fill(spoilt, bad)), p.values, p.pattern, geometry)
    used = convolution_of(case, spoilt.float(), weight_mask) > 0
    assert torch.equal(~y.isfinite(), used)
    assert torch.equal(y[~used], convolution.conv2d(p.x, p.values, p.pattern, geometry)[~used])

    spoilt = torch.zeros(p.g.shape, dtype=torch.bool)
    spoilt[1, 3, 2, 4] = True
    g = place(p.g.masked_fill(spoilt, bad))
    d_x, d_values, d_bias = convolution.conv2d_backward(g, p.x, p.values, p.pattern, geometry)
    ones = torch.ones_like(p.x, dtype=torch.float32)
    used = answers(case, p.mask, ones, weight_mask, p.bias.float(), spoilt.float())
    assert torch.equal(~d_x.isfinite(), used.d_x > 0)
    assert torch.equal(~d_values.isfinite(), used.d_values > 0)
    assert torch.equal(~d_bias.isfinite(), torch.arange(len(p.mask)) == 3)
    # What a call leaves in the threads' buffers does not reach the next one.
    check_operators(p)


def test_convolution_leaves_its_inputs_alone(isa: str) -> None:
    for samples in (3, 17):
        p = problem(Case(samples))
        inputs = [p.x, p.g, p.values, p.bias, *p.pattern]
        before = [t.clone() for t in inputs]
        check_operators(p)
        assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_convolution_takes_strided_values_bias_and_pattern(isa: str) -> None:
    p = problem(Case(block_rows=2))
    crow, col, plan_t = p.pattern

    def spread(t: Tensor) -> Tensor:
        return torch.stack([t, t.flip(0)], -1)[..., 0]

    pattern = ConvPattern(spread(crow), spread(col), plan_t)
    strided = p._replace(values=spread(p.values), bias=spread(p.bias), pattern=pattern)
    assert not any(t.is_contiguous() for t in (strided.values, strided.bias, *pattern[:2]))
    check_operators(strided)


# ---- patterns and geometries ----


def test_conv_pattern_keeps_the_pattern_and_is_deterministic() -> None:
    p = problem(Case(stride=(2, 2)))
    crow, col, plan_t = p.pattern
    again = convolution.conv_pattern(crow, col, p.case.geometry)
    assert again.crow is crow
    assert again.col is col
    assert plan_t.dtype == torch.int32
    assert torch.equal(again.plan_t, plan_t)


def test_conv_pattern_without_data() -> None:
    crow, col = (
        torch.empty(5, dtype=torch.int32, device="meta"),
        torch.empty(9, dtype=torch.int32, device="meta"),
    )
    pattern = convolution.conv_pattern(crow, col, Case().geometry)
    assert pattern.plan_t.is_meta
    assert (pattern.plan_t.dtype, pattern.plan_t.shape) == (torch.int32, (0,))


@pytest.mark.parametrize("case", [Case(), Case(size=(9, 4), kernel=(4, 1), stride=(3, 2), dilation=(2, 1))])
def test_output_size_is_that_of_torch(case: Case) -> None:
    weight = torch.zeros(1, case.channels, *case.kernel)
    assert (
        case.geometry.output_size(*case.size)
        == convolution_of(case, torch.zeros(1, 3, *case.size), weight).shape[2:]
    )


# ---- fake kernels, opcheck ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "case",
    [
        Case(33),
        Case(0),
        Case(1, size=(1, 1)),
        Case(5, stride=(2, 1), dtype=torch.bfloat16, block_rows=4),
        Case(17, 1, 1, (1, 1), (1, 1), pad=(0, 0, 0, 0)),
    ],
)
def test_fake_kernels_agree(layout: str, case: Case) -> None:
    p, geometry = problem_once(case._replace(layout=layout)), case.geometry

    def results(x: Tensor, g: Tensor, values: Tensor, bias: Tensor, *parts: Tensor) -> list[Tensor]:
        pattern = ConvPattern(*parts)
        return [
            convolution.conv2d(x, values, pattern, geometry, bias),
            *(convolution.conv2d(x, values, pattern, geometry, None, inner) for inner in (False, True)),
            convolution.conv2d_t(g, values, pattern, geometry, case.size),
            convolution.conv2d_sddmm(g, x, pattern, geometry, case.block_rows),
            *convolution.conv2d_backward(g, x, values, pattern, geometry),
        ]

    tensors = (p.x, p.g, p.values, p.bias, *p.pattern)
    with FakeTensorMode() as mode:
        fake = results(*(mode.from_tensor(t) for t in tensors))
    for a, b in zip(results(*tensors), fake, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        # Torch does not keep track of the strides of dimensions of size 1, or of an empty tensor.
        assert a.numel() == 0 or all(
            size == 1 or s == t for size, s, t in zip(a.shape, a.stride(), b.stride(), strict=True)
        )


def arguments_of(p: Problem) -> dict[str, tuple[Any, ...]]:
    x, g, values, bias = (t.detach().requires_grad_() for t in (p.x, p.g, p.values, p.bias))
    where = (*p.pattern, list(p.case.geometry))
    return {
        "conv2d": (x, values, *where, bias, p.case.layout == "contiguous"),
        "conv2d_t": (g, values, *where, list(p.case.size)),
        "conv2d_sddmm": (g, x, *where, p.case.block_rows),
        "conv2d_backward": (g, x, values, *where),
    }


NAMES = ["conv2d", "conv2d_t", "conv2d_sddmm", "conv2d_backward"]


@pytest.mark.parametrize("case", [Case(3), Case(17, layout="batch_inner", block_rows=2, stride=(2, 2))])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, case: Case) -> None:
    torch.library.opcheck(
        getattr(torch.ops.sparseprune, name).default, arguments_of(problem_once(case))[name]
    )


def test_opcheck_conv2d_plan() -> None:
    p = problem_once(Case())
    arguments = (*p.pattern[:2], list(p.case.geometry), 1)
    # The size of a plan depends on the pattern: no fake kernel, plans are made outside of compiled graphs.
    tests = ("test_schema", "test_autograd_registration")
    torch.library.opcheck(torch.ops.sparseprune.conv2d_plan.default, arguments, test_utils=tests)


# ---- gradients ----

FUNCTIONS: dict[str, Callable[[Problem], tuple[Callable[..., Any], tuple[Tensor, ...]]]] = {
    "conv2d": lambda p: (
        lambda x, values, b: convolution.conv2d(x, values, p.pattern, p.case.geometry, b),
        (p.x, p.values, p.bias),
    ),
    "conv2d_t": lambda p: (
        lambda g, values: convolution.conv2d_t(g, values, p.pattern, p.case.geometry, p.case.size),
        (p.g, p.values),
    ),
    "conv2d_sddmm": lambda p: (
        lambda g, x: convolution.conv2d_sddmm(g, x, p.pattern, p.case.geometry, p.case.block_rows),
        (p.g, p.x),
    ),
    "conv2d_backward": lambda p: (
        lambda g, x, values: convolution.conv2d_backward(g, x, values, p.pattern, p.case.geometry),
        (p.g, p.x, p.values),
    ),
    "convolve": lambda p: (
        lambda x, values, b: convolution.convolve(x, values, p.pattern, p.case.geometry, b),
        (p.x, p.values, p.bias),
    ),
}
SMALL = Case(2, 2, 2, (4, 3), dtype=torch.float64)


@pytest.mark.parametrize(
    "case",
    [
        SMALL,
        SMALL._replace(layout="batch_inner", block_rows=2, stride=(2, 1), pad=(0, 1, 2, 0)),
        SMALL._replace(
            samples=16, channels=1, block_count=1, size=(1, 2), kernel=(2, 1), groups=2, layout="batch_inner"
        ),
    ],
    ids=["contiguous", "batch_inner", "many"],
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_first_and_second_order(name: str, case: Case) -> None:
    function, inputs = FUNCTIONS[name](problem_once(case))
    inputs = tuple(t.detach().requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, gen_non_contig_grad_outputs=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_one_input_at_a_time(name: str) -> None:
    function, inputs = FUNCTIONS[name](problem_once(SMALL._replace(block_rows=2)))
    for i in range(len(inputs)):
        some = tuple(t.detach().requires_grad_(i == j) for j, t in enumerate(inputs))
        assert torch.autograd.gradcheck(function, some)


# ---- a convolution as a layer computes it ----


@pytest.mark.parametrize(
    "case",
    [Case(3), Case(33, layout="batch_inner", block_rows=4), Case(33, dtype=torch.bfloat16, stride=(2, 2))],
    ids=["few", "batch_inner", "bfloat16"],
)
@pytest.mark.parametrize("inner", [None, False, True])
def test_convolve_gradients_equal_the_dense_ones(case: Case, inner: bool | None, isa: str) -> None:
    p = problem_once(case)
    x, values, bias = (t.detach().requires_grad_() for t in (p.x, p.values, p.bias))
    y = convolution.convolve(x, values, p.pattern, case.geometry, bias, inner)
    check_answer(p, "y", y)
    check_layout(y, is_batch_inner(p.x) if inner is None else inner)
    d_x, d_values, d_bias = torch.autograd.grad(y, (x, values, bias), p.g)
    check_answer(p, "d_x", d_x)
    check_answer(p, "d_values", d_values)
    check_answer(p, "d_bias", d_bias)


class Recorded(TorchDispatchMode):
    """The names of the library's operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator.namespace == "sparseprune":
            self.names.append(operator._opname)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ((True, True, True), ["conv2d_backward"]),
        ((True, True, False), ["conv2d_backward"]),
        ((False, True, True), ["conv2d_sddmm"]),
        ((False, True, False), ["conv2d_sddmm"]),
        ((True, False, False), ["conv2d_t"]),
        ((True, False, True), ["conv2d_t"]),
        ((False, False, True), []),
    ],
)
def test_convolve_computes_only_the_gradients_that_are_needed(
    needs: tuple[bool, ...], expected: list[str]
) -> None:
    p = problem_once(Case(dtype=torch.float64))
    inputs = [t.detach().requires_grad_(need) for t, need in zip((p.x, p.values, p.bias), needs, strict=True)]
    y = convolution.convolve(inputs[0], inputs[1], p.pattern, p.case.geometry, inputs[2])
    with Recorded() as recorded:
        y.backward(p.g)
    assert recorded.names == expected
    for t, need, exact in zip(inputs, needs, (p.exact.d_x, p.exact.d_values, p.exact.d_bias), strict=True):
        assert (t.grad is not None) == need
        if t.grad is not None:
            torch.testing.assert_close(t.grad, exact)


@pytest.mark.parametrize("samples", [3, 17])
@pytest.mark.parametrize("inner", [False, True])
def test_convolve_result_can_be_changed_in_place(samples: int, inner: bool) -> None:
    p = problem_once(Case(samples, dtype=torch.float64))
    values = p.values.detach().requires_grad_()
    y = convolution.convolve(p.x, values, p.pattern, p.case.geometry, p.bias, inner)
    y.relu_().backward(p.g)
    assert values.grad is not None
    expected = convolution.conv2d_sddmm(p.g * (p.exact.y > 0), p.x, p.pattern, p.case.geometry)
    torch.testing.assert_close(values.grad, expected)
    with torch.no_grad():
        y = convolution.convolve(p.x, values, p.pattern, p.case.geometry, p.bias, inner)
    assert not y.requires_grad
    torch.testing.assert_close(y.relu_(), p.exact.y.relu())


def test_convolve_under_autocast_keeps_the_dtype_of_the_weight() -> None:
    p = problem_once(Case())
    x = p.x.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = convolution.convolve(x, p.values, p.pattern, p.case.geometry, p.bias)
    assert y.dtype == torch.float32
    assert torch.equal(y, convolution.conv2d(x.float(), p.values, p.pattern, p.case.geometry, p.bias))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_convolve_compiles_into_one_graph() -> None:
    p = problem_once(Case(layout="batch_inner", dtype=torch.float64))
    x, values, bias = (t.detach().requires_grad_() for t in (p.x, p.values, p.bias))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def layer(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return convolution.convolve(x, values, p.pattern, p.case.geometry, bias) * 2

    y = layer(x, values, bias)
    torch.testing.assert_close(y, 2 * p.exact.y)
    check_layout(y, True)
    for actual, exact in zip(torch.autograd.grad(y, (x, values, bias), p.g), p.exact[2:], strict=True):
        torch.testing.assert_close(actual, 2 * exact)


# ---- errors ----

REFUSED = Case(17, 3, 6, (7, 6), groups=2)  # x (17, 6, 7, 6), g (17, 12, 7, 6)


def operands_of(p: Problem) -> dict[str, Any]:
    geometry, size = list(p.case.geometry), list(p.case.size)
    names = {"x": p.x, "g": p.g, "values": p.values, "bias": p.bias, **p.pattern._asdict()}
    return {**names, "geometry": geometry, "input_size": size, "block_rows": p.case.block_rows}


def call(name: str, operands: dict[str, Any], function: Callable[..., Any] | None = None) -> Any:
    """The operator, or a function of the same arguments."""
    first, last = {
        "conv2d": (("x", "values"), ("bias",)),
        "conv2d_t": (("g", "values"), ("input_size",)),
        "conv2d_sddmm": (("g", "x"), ("block_rows",)),
        "conv2d_backward": (("g", "x", "values"), ()),
    }[name]
    keys = (*first, *ConvPattern._fields, "geometry", *last)
    function = function or getattr(torch.ops.sparseprune, name).default
    return function(*(operands[key] for key in keys))


def bad(name: str, what: str, change: Callable[[Any], Any], message: str) -> Any:
    return pytest.param(name, what, change, message, id=f"{name}-{what}-{message[:40]}")


def with_number(at: int, number: int) -> Callable[[list[int]], list[int]]:
    return lambda geometry: [*geometry[:at], number, *geometry[at + 1 :]]


@pytest.mark.parametrize(
    ("name", "what", "change", "message"),
    [
        *(
            bad(
                name,
                what,
                change,
                f"{what}.shape == [samples, {n} ({of}), height, width], got {got}",
            )
            for name, what, n, of in [
                ("conv2d", "x", 6, "in_channels"),
                ("conv2d_sddmm", "x", 6, "in_channels"),
                ("conv2d_backward", "x", 6, "in_channels"),
                ("conv2d_t", "g", 12, "out_channels"),
                ("conv2d_sddmm", "g", 12, "out_channels"),
                ("conv2d_backward", "g", 12, "out_channels"),
            ]
            for change, got in [(lambda t: t[:, 1:], f"[17, {n - 1}, 7, 6]")]
        ),
        bad(
            "conv2d",
            "x",
            lambda t: t[0],
            "x.shape == [samples, 6 (in_channels), height, width], got [6, 7, 6]",
        ),
        bad("conv2d_t", "g", lambda t: t[0], "(out_channels), height, width], got [12, 7, 6]"),
        bad("conv2d_sddmm", "x", lambda t: t[1:], "of as many samples, got [16, 6, 7, 6] and [17, 12, 7, 6]"),
        bad(
            "conv2d_backward",
            "g",
            lambda t: t[1:],
            "of as many samples, got [17, 6, 7, 6] and [16, 12, 7, 6]",
        ),
        bad("conv2d_t", "g", lambda t: t[:, :, 1:], "g of height and width 7 x 6 (the output's), got 6 x 6"),
        bad("conv2d_backward", "x", lambda t: t[..., 1:], "width 7 x 5 (the output's), got 7 x 6"),
        bad("conv2d_t", "input_size", lambda s: [7, 7], "width 7 x 7 (the output's), got 7 x 6"),
        bad("conv2d_t", "input_size", lambda s: [7], "input_size to be [height, width], got 1 numbers"),
        bad("conv2d", "x", lambda t: t[:, :, :0], "at least 3 (the kernel's reach) in height, got 2"),
        bad("conv2d", "x", lambda t: t[..., :0], "at least 3 (the kernel's reach) in width, got 2"),
        bad("conv2d", "bias", lambda t: t[1:], "bias.shape == [12 (out_channels)], got [11]"),
        bad("conv2d", "bias", lambda t: t.double(), "bias to be float32, got float64"),
        *(
            bad(name, "values", change, message)
            for name in ("conv2d", "conv2d_t", "conv2d_backward")
            for change, message in [
                (lambda t: t[1:], "(nonzero blocks of the pattern), rows of a block], got ["),
                (lambda t: t[:, 0], "(nonzero blocks of the pattern), rows of a block], got ["),
                (lambda t: t.double(), "values to be float32, got float64"),
            ]
        ),
        bad("conv2d", "values", lambda t: t.expand(-1, 3), "block_rows to be 1, 2, 4, 8 or 16, got 3"),
        bad("conv2d_t", "values", lambda t: t.expand(-1, 2), "== 1 (rows of a block of the plan), got 2"),
        bad("conv2d_sddmm", "block_rows", lambda n: 2, "block_rows == 1 (the plan's), got 2"),
        bad("conv2d", "x", lambda t: t.half(), "(or float64, slow, for checking gradients), got float16"),
        bad("conv2d_t", "g", lambda t: t.int(), "got int32; convert with .float()"),
        bad("conv2d_sddmm", "x", lambda t: t.bfloat16(), "x to be float32, got bfloat16"),
        *(
            bad(name, what, lambda t: t.long(), f"{what} to be int32, got int64")
            for name in NAMES
            for what in ("crow", "col")
        ),
        *(
            bad(name, "geometry", lambda g: g[1:], "geometry to hold 12 numbers (in_channels, ")
            for name in NAMES
        ),
        bad("conv2d", "geometry", with_number(0, 5), "in_channels divisible by groups, got 5 and 2"),
        bad("conv2d", "geometry", with_number(3, 0), "stride and dilation of at least 1, got 3, 0 and 1"),
        bad("conv2d", "geometry", with_number(5, -1), "padding of at least 0, got -1 and 1"),
        bad("conv2d", "geometry", with_number(1, 1), "col within 0 .. 8 (weight columns), got another index"),
        bad("conv2d", "crow", lambda t: t[1:], "rows of blocks divisible by groups (2)"),
    ],
)
def test_convolution_refuses_bad_arguments(
    name: str, what: str, change: Callable[[Any], Any], message: str, needs_extension: None
) -> None:
    operands = operands_of(problem_once(REFUSED))
    call(name, operands)
    operands[what] = change(operands[what])
    with pytest.raises(ValueError, match=f"{name}: expected .*{re.escape(message)}"):
        call(name, operands)


@pytest.mark.parametrize("name", NAMES[1:])
def test_convolution_refuses_wrong_plans(name: str, needs_extension: None) -> None:
    p = problem_once(REFUSED)
    operands, plan_t = operands_of(p), p.pattern.plan_t
    message = (
        f"{name}: expected a plan made by sparseprune::conv2d_plan, got another tensor; build it from crow"
    )
    for wrong in (torch.zeros_like(plan_t), plan_t[:5], plan_t[None], plan_t[:0], plan_t.repeat(2)[::2]):
        with pytest.raises(ValueError, match=message):
            call(name, {**operands, "plan_t": wrong})
    with pytest.raises(ValueError, match=f"{name}: expected plan_t to be int32, got int64"):
        call(name, {**operands, "plan_t": plan_t.long()})
    # Plans of another geometry, of too few weights, cut off.
    stale = problem_once(REFUSED._replace(pattern="tiny")).pattern.plan_t
    elsewhere = problem_once(REFUSED._replace(pad=(0, 2, 1, 1))).pattern.plan_t
    for wrong in (stale, elsewhere, plan_t[:-1]):
        with pytest.raises(
            ValueError, match=r"the plan of this pattern and geometry .*; build it again after"
        ):
            call(name, {**operands, "plan_t": wrong})


@pytest.mark.parametrize("name", NAMES)
def test_convolution_refuses_tensors_on_several_devices(name: str) -> None:
    operands = operands_of(problem_once(REFUSED))
    for what in {"conv2d": ("x", "values"), "conv2d_t": ("g", "values")}.get(name, ("g", "x")):
        message = f"{name}: expected all tensors on one device, got cpu and meta; move them with .to()"
        with pytest.raises(ValueError, match=re.escape(message)):
            call(name, {**operands, what: operands[what].to("meta")})


@pytest.mark.parametrize(
    ("crow", "col", "block_rows", "message"),
    [
        ([0, 2, 1, 1, 1], [0], 1, "crow to ascend, but row 0 goes from 0 to 2"),
        ([0, 1, 1, 1, 1], [9], 1, "columns of a row to ascend within 0 .. 8, got 9 in row 0"),
        ([0, 2, 2, 2, 2], [1, 1], 1, "columns of a row to ascend within 0 .. 8, got 1 in row 0"),
        ([0, 1, 1, 1], [0], 1, "rows of blocks divisible by groups (2), got 3; use smaller blocks"),
        ([0, 1, 1], [0], 3, "block_rows to be 1, 2, 4, 8 or 16, got 3"),
    ],
)
def test_conv_pattern_refuses_malformed_patterns(
    crow: list[int], col: list[int], block_rows: int, message: str, needs_extension: None
) -> None:
    starts, columns = torch.tensor(crow, dtype=torch.int32), torch.tensor(col, dtype=torch.int32)
    with pytest.raises(ValueError, match=f"conv2d_plan: expected .*{re.escape(message)}"):
        convolution.conv_pattern(starts, columns, Geometry(2, 3, 3, groups=2), block_rows)


def test_output_size_refuses_small_inputs() -> None:
    geometry = Geometry(3, 3, 2, pad_left=1, dilation_h=2, dilation_w=3)
    assert geometry.output_size(5, 3) == (1, 1)
    with pytest.raises(ValueError, match=r"at least 5 \(the kernel's reach\) in height, got 4"):
        geometry.output_size(4, 3)
    with pytest.raises(ValueError, match=r"at least 4 \(the kernel's reach\) in width, got 3"):
        geometry.output_size(5, 2)
