"""The operators of sparse convolution: every number within its error bound of the dense ones."""

import functools

import pytest
import torch
from conv_problems import (
    LAYOUTS,
    Answers,
    Case,
    answers,
    check_operators,
    convolution_of,
    problem,
    problem_once,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linear_problems import PATTERNS
from torch import Tensor

from sparseprune.format.bsr import BLOCK_ROWS
from sparseprune.ops import convolution
from sparseprune.ops.convolution import ConvPattern

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
        draw(st.booleans()),
    )


# The fixture sets what stays the same for all examples.
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), threads=st.integers(1, 3))
def test_convolution_equals_the_dense_one(case: Case, threads: int, isa: str, restored_threads: None) -> None:
    torch.set_num_threads(threads)
    check_operators(problem(case))


@pytest.mark.parametrize("layout", ["one_number_expanded", "one_sample_expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_equal_terms_stay_within_their_bound(layout: str, dtype: torch.dtype, isa: str) -> None:
    """Roundings of such sums do not cancel, but go the same way: 17 samples of 10 positions are 170 terms."""
    case = Case(17, size=(2, 5), kernel=(1, 1), pad=(0, 0, 0, 0), layout=layout, pattern="all", dtype=dtype)
    for block_rows in BLOCK_ROWS:
        check_operators(problem_once(case._replace(block_rows=block_rows)))
    check_operators(problem_once(case._replace(size=(25, 20))))


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
    check_operators(problem_once(case._replace(integers=True)))


@functools.lru_cache(maxsize=1)
def results_by_threads(isa: str, case: Case) -> list[Answers]:
    p, geometry = problem_once(case), case.geometry
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        y, without = (convolution.conv2d(p.x, p.values, p.pattern, geometry, b) for b in (p.bias, None))
        act = convolution.conv2d_act(p.x, p.values, p.pattern, geometry, p.bias, p.g)
        gradients = convolution.conv2d_backward(p.g, p.x, p.values, p.pattern, geometry)
        found.append(Answers(y, without, act, *gradients))
    return found


@pytest.mark.parametrize("results", [("y", "y_without_bias", "y_act", "d_x"), ("d_values", "d_bias")])
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
