import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sparseprune import ops
from sparseprune.format.bsr import BLOCK_ROWS, bsr_from_mask


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- patterns ----


def random_mask(rows: int, cols: int, density: float) -> Tensor:
    return torch.rand(rows, cols, generator=torch.Generator().manual_seed(rows + cols)) < density


def with_empty_rows_and_columns(rows: int, cols: int) -> Tensor:
    mask = random_mask(rows, cols, 0.3)
    mask[::3] = mask[-1] = False
    mask[:, ::4] = mask[:, -1] = False
    return mask


def skewed(rows: int, cols: int) -> Tensor:
    """One full row and one full column among sparse ones."""
    mask = random_mask(rows, cols, 0.02)
    mask[rows // 2] = True
    mask[:, cols // 3] = True
    return mask


PATTERNS: dict[str, Callable[[int, int], Tensor]] = {
    "no_weight": lambda rows, cols: random_mask(rows, cols, -1),
    "one_weight": lambda rows, cols: torch.arange(rows * cols).reshape(rows, cols) == rows * cols // 2,
    "tiny": lambda rows, cols: random_mask(rows, cols, 0.002),
    "third": lambda rows, cols: random_mask(rows, cols, 0.3),
    "all": lambda rows, cols: random_mask(rows, cols, 2),
    "empty_rows_and_columns": with_empty_rows_and_columns,
    "skewed": skewed,
}


def pattern_of(mask: Tensor, block_rows: int = 1) -> ops.Pattern:
    return ops.plans(*bsr_from_mask(mask, block_rows), mask.shape[1], block_rows)


def blocks_of(matrix: Tensor, mask: Tensor, block_rows: int) -> Tensor:
    """``values`` (nnzb, V): what the matrix holds in the blocks of the mask."""
    shape = (len(matrix) // block_rows, block_rows, matrix.shape[1])
    return matrix.reshape(shape).transpose(1, 2)[mask.reshape(shape)[:, 0]]


# ---- memory layouts of a (features, batch) activation with given numbers in it ----


def in_memory_of(whole: Tensor, part: Tensor, x: Tensor) -> Tensor:
    whole.fill_(float("nan"))  # what lies around the activation must not be read
    return part.copy_(x)


def spread(x: Tensor) -> Tensor:
    whole = x.new_empty(2 * x.shape[0] + 1, 3 * x.shape[1] + 2)
    return in_memory_of(whole, whole[1::2, 2::3], x)


def part_of_wider(x: Tensor) -> Tensor:
    whole = x.new_empty(x.shape[0] + 1, x.shape[1] + 5)
    return in_memory_of(whole, whole[1:, 3:-2], x)


def part_of_deeper(x: Tensor) -> Tensor:
    whole = x.new_empty(x.shape[1] + 1, x.shape[0] + 4)
    return in_memory_of(whole, whole[1:, 3:-1].t(), x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "feature_inner": lambda x: x.t().contiguous().t(),
    "batch_inner": lambda x: x.contiguous(),
    "spread": spread,
    "part_of_wider": part_of_wider,
    "part_of_deeper": part_of_deeper,
    "one_sample_expanded": lambda x: x[:, :1].expand(x.shape),
    "one_feature_expanded": lambda x: x[:1].expand(x.shape),
    "one_number_expanded": lambda x: x[:1, :1].expand(x.shape),
}


def is_batch_inner(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.stride(0) != 1


def strides(features: int, batch: int, batch_inner: bool) -> tuple[int, ...]:
    return (torch.empty(features, batch) if batch_inner else torch.empty(batch, features).t()).stride()


def layout_like(like: Tensor, features: int) -> tuple[int, ...]:
    """The documented strides of a result."""
    return strides(features, like.shape[1], is_batch_inner(like))


# ---- a problem and its answers ----


class Answers(NamedTuple):
    """What the operators give: y = W x + b, d_x = W^T g, d_values = (g x^T) at the blocks, d_bias = g 1."""

    y: Tensor
    y_without_bias: Tensor
    d_x: Tensor
    d_values: Tensor
    d_bias: Tensor


class Problem(NamedTuple):
    mask: Tensor
    block_rows: int
    pattern: ops.Pattern
    values: Tensor
    bias: Tensor
    x: Tensor
    g: Tensor
    exact: Answers  # in float64
    dense: Answers  # by torch's dense products in the problem's own dtype


def answers(weight: Tensor, mask: Tensor, block_rows: int, bias: Tensor, x: Tensor, g: Tensor) -> Answers:
    linear = torch.nn.functional.linear
    return Answers(
        linear(x.t(), weight, bias).t(),
        linear(x.t(), weight).t(),
        weight.t() @ g,
        blocks_of(g @ x.t(), mask, block_rows),
        g.sum(1),
    )


@functools.cache
def problem(
    kind: str,
    rows: int,
    cols: int,
    batch: int,
    layout: str = "feature_inner",
    dtype: torch.dtype = torch.float32,
    block_rows: int = 1,
) -> Problem:
    mask = PATTERNS[kind](rows // block_rows, cols).repeat_interleave(block_rows, 0)
    place = LAYOUTS[layout]
    x, g = place(noise(cols, batch).to(dtype)), place(noise(rows, batch, seed=1).to(dtype))
    weight = (noise(rows, cols, seed=2) * mask).to(dtype)
    bias = noise(rows, seed=3).to(dtype)
    exact = answers(weight.double(), mask, block_rows, bias.double(), x.double(), g.double())
    # Copies: torch's bfloat16 products of a part of a tensor may pick up what lies around it.
    dense = answers(weight, mask, block_rows, bias, x.contiguous(), g.contiguous())
    values = blocks_of(weight, mask, block_rows)
    return Problem(mask, block_rows, pattern_of(mask, block_rows), values, bias, x, g, exact, dense)


def check(actual: Tensor, exact: Tensor, dense: Tensor, scale: Tensor | None = None) -> None:
    """At most twice torch's error, but for a few roundings of numbers of this scale (the result's own)."""
    assert actual.shape == exact.shape
    assert actual.dtype == dense.dtype
    if exact.numel() == 0:
        return
    ours, theirs = ((t.double() - exact).abs().max() for t in (actual, dense))
    rounded_once = dense.dtype == torch.bfloat16
    scale = exact.abs().max() if scale is None else scale
    atol = (0.5 if rounded_once else 10) * torch.finfo(dense.dtype).eps * scale
    assert ours <= 2 * theirs + atol  # NaN is not


def check_operators(p: Problem) -> None:
    rows, cols = p.mask.shape
    y = ops.spmm(p.x, p.values, p.pattern, p.bias)
    check(y, p.exact.y, p.dense.y)
    without = ops.spmm(p.x, p.values, p.pattern)
    check(without, p.exact.y_without_bias, p.dense.y_without_bias)
    assert y.stride() == without.stride() == layout_like(p.x, rows)
    for batch_inner in (False, True):
        y = ops.spmm(p.x, p.values, p.pattern, p.bias, batch_inner)
        check(y, p.exact.y, p.dense.y)
        assert y.stride() == strides(rows, p.x.shape[1], batch_inner)

    positive = ops.spmm(p.x, p.values, p.pattern, p.bias, relu=True)
    assert torch.equal(positive, ops.spmm(p.x, p.values, p.pattern, p.bias).relu())
    assert positive.stride() == layout_like(p.x, rows)

    d_x = ops.spmm_t(p.g, p.values, p.pattern, cols)
    check(d_x, p.exact.d_x, p.dense.d_x)
    assert d_x.stride() == layout_like(p.g, cols)

    d_values = ops.sddmm(p.g, p.x, p.pattern, p.block_rows)
    check(d_values, p.exact.d_values, p.dense.d_values)
    assert d_values.is_contiguous()

    d_x, d_values, d_bias = ops.spmm_backward(p.g, p.x, p.values, p.pattern)
    check(d_x, p.exact.d_x, p.dense.d_x)
    check(d_values, p.exact.d_values, p.dense.d_values)
    # Torch sums pairwise; here one sample is added after the other.
    check(d_bias, p.exact.d_bias, p.dense.d_bias, p.g.double().abs().sum(1).max() if d_bias.numel() else None)
    assert d_x.stride() == layout_like(p.x, cols)
    assert d_values.is_contiguous()

    for y in (positive, positive.t().contiguous().t()):
        through = torch.ops.aten.threshold_backward(p.g, y, 0)  # torch's derivative of ReLU
        expected = ops.spmm_backward(through, p.x, p.values, p.pattern)
        gradients = ops.spmm_backward(p.g, p.x, p.values, p.pattern, y)
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
        assert [t.stride() for t in gradients] == [t.stride() for t in expected]


# ---- every operator against float64 ----


# The last three have more rows than a tile (2048), more columns than a block (4096), and both.
@pytest.mark.parametrize(
    ("rows", "cols", "kind"),
    [
        (1, 1, "all"),
        (1, 1100, "third"),
        (1100, 1, "third"),
        (7, 33, "third"),
        (33, 7, "all"),
        (96, 96, "third"),
        (257, 1100, "third"),
        (1100, 257, "tiny"),
        (257, 96, "all"),
        (2600, 33, "third"),
        (33, 9000, "tiny"),
        (2100, 4200, "tiny"),
    ],
)
def test_operators_over_shapes(rows: int, cols: int, kind: str, isa: str, threads: int) -> None:
    check_operators(problem(kind, rows, cols, 65))


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 130, 256])
def test_operators_over_batches(batch: int, isa: str, threads: int) -> None:
    check_operators(problem("third", 96, 257, batch))
    check_operators(problem("third", 33, 96, batch, "batch_inner"))
    check_operators(problem("third", 96, 257, batch, "batch_inner", torch.bfloat16))
    check_operators(problem("third", 72, 257, batch, "feature_inner", torch.float32, 4))
    check_operators(problem("third", 48, 33, batch, "feature_inner", torch.bfloat16, 8))


# Block rows: one, odd and many; more rows than a tile (2048) and more columns than a block (4096).
@pytest.mark.parametrize("block_rows", BLOCK_ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_over_blocks(dtype: torch.dtype, block_rows: int, isa: str, threads: int) -> None:
    for kind, block_count, cols, batch, layout in [
        ("all", 1, 1, 17, "feature_inner"),
        ("third", 1, 257, 65, "batch_inner"),
        ("third", 7, 33, 130, "feature_inner"),
        ("third", 37, 257, 64, "feature_inner"),
        ("skewed", 21, 1100, 5, "batch_inner"),
        ("tiny", 2112 // block_rows, 257, 17, "feature_inner"),
        ("tiny", 5, 4200, 17, "batch_inner"),
    ]:
        check_operators(problem(kind, block_count * block_rows, cols, batch, layout, dtype, block_rows))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operators_over_layouts(layout: str, isa: str, threads: int) -> None:
    for batch in (1, 17, 130):
        check_operators(problem("third", 96, 257, batch, layout))
        check_operators(problem("third", 48, 33, batch, layout, torch.bfloat16, 4))
    check_operators(problem("all", 7, 1, 33, layout))
    check_operators(problem("all", 1, 7, 33, layout))


@pytest.mark.parametrize("kind", PATTERNS)
def test_operators_over_patterns(kind: str, isa: str, threads: int) -> None:
    check_operators(problem(kind, 257, 1100, 65))
    check_operators(problem(kind, 1100, 33, 17, "batch_inner"))
    check_operators(problem(kind, 272, 257, 65, "feature_inner", torch.float32, 16))
    check_operators(problem(kind, 130, 1100, 17, "feature_inner", torch.bfloat16, 2))


@pytest.mark.parametrize("kind", PATTERNS)
def test_operators_in_float64(kind: str, threads: int) -> None:
    check_operators(problem(kind, 96, 257, 65, "feature_inner", torch.float64))
    check_operators(problem(kind, 33, 96, 17, "spread", torch.float64))
    check_operators(problem(kind, 96, 33, 17, "batch_inner", torch.float64, 8))


@pytest.mark.parametrize(("rows", "cols"), [(0, 5), (5, 0), (0, 0)])
def test_operators_without_rows_or_columns(rows: int, cols: int, isa: str) -> None:
    check_operators(problem("all", rows, cols, 17))
    check_operators(problem("all", 16 * rows, cols, 17, "batch_inner", torch.bfloat16, 16))


@functools.lru_cache(maxsize=1)
def results_by_threads(
    isa: str, kind: str, rows: int, cols: int, dtype: torch.dtype, block_rows: int, layout: str
) -> list[list[Answers]]:
    """What the operators give with 1, 2 and 3 threads, for several batches."""
    found = []
    for batch in (3, 65, 256):
        p = problem(kind, rows, cols, batch, layout, dtype, block_rows)
        found.append([])
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y, without = (ops.spmm(p.x, p.values, p.pattern, bias) for bias in (p.bias, None))
            found[-1].append(Answers(y, without, *ops.spmm_backward(p.g, p.x, p.values, p.pattern)))
            assert torch.equal(ops.spmm_t(p.g, p.values, p.pattern, cols), found[-1][-1].d_x)
            assert torch.equal(ops.sddmm(p.g, p.x, p.pattern, block_rows), found[-1][-1].d_values)
    return found


@pytest.mark.parametrize("results", [("y", "y_without_bias", "d_x"), ("d_values", "d_bias")])
@pytest.mark.parametrize("layout", ["feature_inner", "batch_inner", "spread"])
@pytest.mark.parametrize(
    ("kind", "rows", "cols", "dtype", "block_rows"),
    [
        ("third", 257, 1100, torch.float32, 1),
        ("skewed", 1100, 257, torch.float32, 1),
        ("tiny", 2600, 4200, torch.float32, 1),
        ("third", 260, 1100, torch.float32, 4),
        ("third", 257, 1100, torch.bfloat16, 1),
        ("skewed", 1104, 257, torch.bfloat16, 16),
    ],
)
def test_operators_same_bits_at_any_thread_count(
    kind: str,
    rows: int,
    cols: int,
    dtype: torch.dtype,
    block_rows: int,
    layout: str,
    results: tuple[str, ...],
    isa: str,
    restored_threads: None,
    needs_extension: None,
) -> None:
    for first, *others in results_by_threads(isa, kind, rows, cols, dtype, block_rows, layout):
        for other in others:
            assert all(torch.equal(getattr(first, name), getattr(other, name)) for name in results)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("layout", ["feature_inner", "batch_inner", "spread"])
@pytest.mark.parametrize(
    ("dtype", "block_rows"), [(torch.float32, 1), (torch.float32, 4), (torch.bfloat16, 2)]
)
def test_operators_spread_inf_and_nan_only_where_they_are_used(
    bad: float, layout: str, dtype: torch.dtype, block_rows: int, isa: str, needs_extension: None
) -> None:
    rows, cols, batch, sample = 36, 96, 83, 70
    p = problem("third", rows, cols, batch, layout, dtype, block_rows)
    place = LAYOUTS[layout]
    spoilt = torch.zeros(cols, batch, dtype=torch.bool)
    spoilt[5, sample] = spoilt[95, 0] = True
    x = place(p.x.masked_fill(spoilt, bad))
    y = ops.spmm(x, p.values, p.pattern)
    used = (p.mask.float() @ spoilt.float()) > 0
    assert torch.equal(~y.isfinite(), used)
    assert torch.equal(y[~used], ops.spmm(p.x, p.values, p.pattern)[~used])
    d_values = ops.sddmm(p.g, x, p.pattern, block_rows)
    assert torch.equal(~d_values.isfinite(), spoilt.any(1)[p.pattern.col][:, None].expand(d_values.shape))

    spoilt = torch.zeros(rows, batch, dtype=torch.bool)
    spoilt[7, sample] = True
    g = place(p.g.masked_fill(spoilt, bad))
    d_x, d_values, d_bias = ops.spmm_backward(g, p.x, p.values, p.pattern)
    assert torch.equal(~d_x.isfinite(), (p.mask.t().float() @ spoilt.float()) > 0)
    row_of = torch.arange(rows)[:, None].expand(rows, cols)
    assert torch.equal(~d_values.isfinite(), blocks_of(row_of, p.mask, block_rows) == 7)
    assert torch.equal(~d_bias.isfinite(), torch.arange(rows) == 7)


@pytest.mark.parametrize("batch", [1, 17, 64])
@pytest.mark.parametrize("layout", ["feature_inner", "batch_inner"])
@pytest.mark.parametrize(("dtype", "block_rows"), [(torch.float32, 1), (torch.bfloat16, 4)])
def test_relu_keeps_nan_and_infinities(
    dtype: torch.dtype, block_rows: int, layout: str, batch: int, isa: str, threads: int
) -> None:
    p = problem("third", 36, 96, batch, layout, dtype, block_rows)
    bias = p.bias.clone()
    bias[0], bias[13], bias[35] = float("nan"), float("inf"), float("-inf")
    y = ops.spmm(p.x, p.values, p.pattern, bias, relu=True)
    torch.testing.assert_close(
        y, ops.spmm(p.x, p.values, p.pattern, bias).relu(), rtol=0, atol=0, equal_nan=True
    )
    assert y[0].isnan().all()
    assert not y[35].any()
    *_, d_bias = ops.spmm_backward(p.g, p.x, p.values, p.pattern, y)
    *_, all_of_g = ops.spmm_backward(p.g, p.x, p.values, p.pattern)
    torch.testing.assert_close(d_bias[[0, 13]], all_of_g[[0, 13]])  # as in torch, NaN lets gradients through
    assert d_bias[35] == 0
    lost = p.g.masked_fill(y <= 0, float("nan"))  # what the ReLU stops does not count, whatever it is
    gradients = ops.spmm_backward(p.g, p.x, p.values, p.pattern, y)
    for a, b in zip(ops.spmm_backward(lost, p.x, p.values, p.pattern, y), gradients, strict=True):
        assert torch.equal(a, b)


def test_operators_leave_their_inputs_alone(isa: str) -> None:
    p = problem("third", 96, 257, 65)
    inputs = [p.x, p.g, p.values, p.bias, *p.pattern]
    before = [t.clone() for t in inputs]
    check_operators(p)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_operators_take_strided_values_and_bias(isa: str) -> None:
    p = problem("third", 33, 96, 17)
    strided = p._replace(values=spread(p.values), bias=spread(p.bias[:, None])[:, 0])
    assert not strided.values.is_contiguous()
    assert not strided.bias.is_contiguous()
    check_operators(strided)


def test_plans_keep_the_pattern_and_are_deterministic() -> None:
    crow, col = bsr_from_mask(random_mask(33, 96, 0.3))
    pattern = ops.plans(crow, col, 96)
    assert pattern.crow is crow
    assert pattern.col is col
    assert pattern.plan.dtype == pattern.plan_t.dtype == torch.int32
    again = ops.plans(crow, col, 96)
    assert torch.equal(pattern.plan, again.plan)
    assert torch.equal(pattern.plan_t, again.plan_t)


# ---- fake kernels, opcheck ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("cols", "batch"), [(96, 65), (1, 17), (96, 1), (96, 0), (1, 1)])
@pytest.mark.parametrize(("dtype", "block_rows"), [(torch.float32, 1), (torch.bfloat16, 4)])
def test_fake_kernels_agree(layout: str, cols: int, batch: int, dtype: torch.dtype, block_rows: int) -> None:
    p = problem("third", 36, cols, batch, layout, dtype, block_rows)
    real = [
        ops.spmm(p.x, p.values, p.pattern, p.bias),
        *(ops.spmm(p.x, p.values, p.pattern, None, batch_inner) for batch_inner in (False, True)),
        ops.spmm_t(p.g, p.values, p.pattern, cols),
        ops.sddmm(p.g, p.x, p.pattern, block_rows),
        *ops.spmm_backward(p.g, p.x, p.values, p.pattern),
    ]
    with FakeTensorMode() as mode:
        x, g, values, bias = (mode.from_tensor(t) for t in (p.x, p.g, p.values, p.bias))
        pattern = ops.Pattern(*(mode.from_tensor(t) for t in p.pattern))
        fake = [
            ops.spmm(x, values, pattern, bias),
            *(ops.spmm(x, values, pattern, None, batch_inner) for batch_inner in (False, True)),
            ops.spmm_t(g, values, pattern, cols),
            ops.sddmm(g, x, pattern, block_rows),
            *ops.spmm_backward(g, x, values, pattern),
        ]
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@pytest.mark.parametrize(("layout", "block_rows"), [("feature_inner", 1), ("batch_inner", 2)])
@pytest.mark.parametrize("name", ["spmm", "spmm_t", "sddmm", "spmm_backward"])
def test_opcheck(name: str, layout: str, block_rows: int) -> None:
    p = problem("third", 8, 33, 17, layout, torch.float32, block_rows)
    x, g, values, bias = (t.detach().requires_grad_() for t in (p.x, p.g, p.values, p.bias))
    arguments: dict[str, tuple[Any, ...]] = {
        "spmm": (x, values, *p.pattern, bias, layout == "feature_inner", block_rows == 2),
        "spmm_t": (g, values, *p.pattern, 33),
        "sddmm": (g, x, *p.pattern, block_rows),
        "spmm_backward": (g, x, values, *p.pattern, p.dense.y if block_rows == 2 else None),
    }
    torch.library.opcheck(getattr(torch.ops.sparseprune, name).default, arguments[name])


def test_opcheck_topk_masks() -> None:
    scores = [noise(5, 7).float(), noise(11, seed=1).float().reshape(1, 11).t()]
    torch.library.opcheck(torch.ops.sparseprune.topk_masks.default, (scores, 9))


def test_opcheck_plan() -> None:
    crow, col = bsr_from_mask(random_mask(7, 33, 0.3))
    # The size of a plan depends on the pattern: no fake kernel, plans are made outside of compiled graphs.
    tests = ("test_schema", "test_autograd_registration")
    torch.library.opcheck(torch.ops.sparseprune.plan.default, (crow, col, 33, 1, False), test_utils=tests)


# ---- gradients ----

FUNCTIONS: dict[str, Callable[[Problem], tuple[Callable[..., Any], tuple[Tensor, ...]]]] = {
    "spmm": lambda p: (lambda x, values, b: ops.spmm(x, values, p.pattern, b), (p.x, p.values, p.bias)),
    "spmm_with_relu": lambda p: (
        lambda x, values, b: ops.spmm(x, values, p.pattern, b, relu=True),
        (p.x, p.values, p.bias),
    ),
    "spmm_t": lambda p: (lambda g, v: ops.spmm_t(g, v, p.pattern, p.mask.shape[1]), (p.g, p.values)),
    "sddmm": lambda p: (lambda g, x: ops.sddmm(g, x, p.pattern, p.block_rows), (p.g, p.x)),
    "spmm_backward": lambda p: (
        lambda g, x, v: ops.spmm_backward(g, x, v, p.pattern),
        (p.g, p.x, p.values),
    ),
    "spmm_backward_with_relu": lambda p: (
        lambda g, x, v: ops.spmm_backward(g, x, v, p.pattern, p.dense.y),
        (p.g, p.x, p.values),
    ),
}


@pytest.mark.parametrize(
    ("rows", "layout", "block_rows"),
    [(5, "feature_inner", 1), (5, "batch_inner", 1), (8, "feature_inner", 2)],
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_first_and_second_order(name: str, rows: int, layout: str, block_rows: int) -> None:
    p = problem("empty_rows_and_columns", rows, 6, 3, layout, torch.float64, block_rows)
    function, inputs = FUNCTIONS[name](p)
    inputs = tuple(t.detach().requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_one_input_at_a_time(name: str) -> None:
    function, inputs = FUNCTIONS[name](problem("third", 8, 6, 3, "feature_inner", torch.float64, 4))
    for i in range(len(inputs)):
        some = tuple(t.detach().requires_grad_(i == j) for j, t in enumerate(inputs))
        assert torch.autograd.gradcheck(function, some)


@pytest.mark.parametrize(("dtype", "block_rows"), [(torch.float32, 1), (torch.bfloat16, 4)])
def test_gradients_equal_the_dense_ones(dtype: torch.dtype, block_rows: int, isa: str) -> None:
    p = problem("third", 96, 257, 65, "feature_inner", dtype, block_rows)
    x, values, bias = (t.detach().requires_grad_() for t in (p.x, p.values, p.bias))
    ops.spmm(x, values, p.pattern, bias).backward(p.g)
    assert x.grad is not None
    assert values.grad is not None
    assert bias.grad is not None
    check(x.grad, p.exact.d_x, p.dense.d_x)
    check(values.grad, p.exact.d_values, p.dense.d_values)
    check(bias.grad, p.exact.d_bias, p.dense.d_bias)


# ---- errors ----


def case(p: Problem, **changes: Tensor) -> dict[str, Any]:
    names = {"x": p.x, "g": p.g, "y": p.dense.y, "values": p.values, "bias": p.bias, **p.pattern._asdict()}
    return {**names, **changes}


def call(name: str, tensors: dict[str, Any], cols: int = 96) -> Any:
    pattern = [tensors[k] for k in ops.Pattern._fields]
    first, last = {
        "spmm": (("x", "values"), [tensors["bias"]]),
        "spmm_t": (("g", "values"), [cols]),
        "sddmm": (("g", "x"), [1]),
        "spmm_backward": (("g", "x", "values"), [tensors["y"]]),
    }[name]
    operator = getattr(torch.ops.sparseprune, name).default
    return operator(*(tensors[k] for k in first), *pattern, *last)


NAMES = ["spmm", "spmm_t", "sddmm", "spmm_backward"]


def bad(name: str, what: str, change: Callable[[Tensor], Tensor], message: str) -> Any:
    return pytest.param(name, what, change, message, id=f"{name}-{what}-{message[:40]}")


@pytest.mark.parametrize(
    ("name", "what", "change", "message"),
    [
        bad("spmm", "x", lambda t: t[1:], "x.shape == [96 (weight columns), batch], got [95, 17]"),
        bad("spmm", "x", lambda t: t[0], "x.shape == [96 (weight columns), batch], got [17]"),
        bad("spmm_t", "g", lambda t: t[1:], "g.shape == [33 (weight rows), batch], got [32, 17]"),
        bad("sddmm", "x", lambda t: t[1:], "x.shape == [96 (weight columns), batch], got [95, 17]"),
        bad("sddmm", "g", lambda t: t[None], "g.shape == [33 (weight rows), batch], got [1, 33, 17]"),
        bad("spmm_backward", "g", lambda t: t.t(), "g.shape == [33 (weight rows), batch], got [17, 33]"),
        bad("spmm_backward", "x", lambda t: t.t(), "x.shape == [96 (weight columns), batch], got [17, 96]"),
        bad("sddmm", "x", lambda t: t[:, 1:], "x and g of one batch size, got 16 and 17"),
        bad("spmm_backward", "g", lambda t: t[:, 2:], "x and g of one batch size, got 17 and 15"),
        bad("spmm_backward", "y", lambda t: t[1:], "y.shape == [33 (weight rows), 17 (batch)], got [32, 17]"),
        bad("spmm_backward", "y", lambda t: t.t(), "y.shape == [33 (weight rows), 17 (batch)], got [17, 33]"),
        bad("spmm_backward", "y", lambda t: t.double(), "y to be float32, got float64"),
        bad("spmm", "bias", lambda t: t[1:], "bias.shape == [33 (weight rows)], got [32]"),
        bad("spmm", "bias", lambda t: t[None], "bias.shape == [33 (weight rows)], got [1, 33]"),
        bad("spmm", "bias", lambda t: t.double(), "bias to be float32, got float64"),
        *(
            bad(name, "values", change, message)
            for name in ("spmm", "spmm_t", "spmm_backward")
            for change, message in [
                (lambda t: t[1:], "[964 (nonzero blocks of the pattern), 1 (rows of a block)], got [963, 1]"),
                (lambda t: t[:, 0], "(nonzero blocks of the pattern), 1 (rows of a block)], got [964]"),
                (lambda t: t.expand(-1, 2), "1 (rows of a block)], got [964, 2]"),
                (lambda t: t.double(), "values to be float32, got float64"),
            ]
        ),
        *(
            bad(
                name,
                what,
                lambda t: t.half(),
                f"{what} to be float32 or bfloat16 (or float64, slow, for checking gradients), got float16",
            )
            for name, what in [("spmm", "x"), ("spmm_t", "g"), ("sddmm", "g"), ("spmm_backward", "g")]
        ),
        bad("sddmm", "x", lambda t: t.bfloat16(), "x to be float32, got bfloat16"),
        bad("spmm_backward", "x", lambda t: t.double(), "x to be float32, got float64"),
        bad("spmm", "x", lambda t: t.int(), "got int32; convert with .float()"),
        *(
            bad(name, what, lambda t: t.long(), f"{what} to be int32, got int64")
            for name in NAMES
            for what in ("crow", "col")
        ),
    ],
)
def test_operators_refuse_bad_tensors(
    name: str, what: str, change: Callable[[Tensor], Tensor], message: str, needs_extension: None
) -> None:
    p = problem("third", 33, 96, 17)
    tensors = case(p)
    call(name, tensors)
    tensors[what] = change(tensors[what])
    with pytest.raises(ValueError, match=f"{name}: expected .*{re.escape(message)}"):
        call(name, tensors)


@pytest.mark.parametrize("name", NAMES)
def test_operators_refuse_wrong_plans(name: str, needs_extension: None) -> None:
    p = problem("third", 33, 96, 17)
    used = "plan" if name == "spmm" else "plan_t"
    of_what = "" if name == "spmm" else " of the transpose"
    no_plan = (
        f"{name}: expected a plan made by sparseprune::plan{of_what}, got another tensor; "
        "build it from crow and col"
    )
    plan = p.pattern._asdict()[used]
    swapped = p.pattern._asdict()["plan_t" if name == "spmm" else "plan"]
    too_long = torch.cat([plan, plan])
    for wrong in (torch.zeros_like(plan), plan[:-1], plan[:5], too_long, plan[None], plan[:0], swapped):
        with pytest.raises(ValueError, match=no_plan):
            call(name, case(p, **{used: wrong}))
    with pytest.raises(ValueError, match=f"{name}: expected plan to be int32, got int64"):
        call(name, case(p, **{used: plan.long()}))
    # A stale plan: the pattern has lost a weight since.
    mask = p.mask.clone()
    mask[tuple(mask.nonzero()[0])] = False
    crow, col = bsr_from_mask(mask)
    stale = case(p, crow=crow, col=col, values=p.values[1:])
    remedy = f"got one of 33 and {len(p.values)}; build it again after changing the pattern"
    with pytest.raises(ValueError, match=re.escape(remedy)):
        call(name, stale)


def test_spmm_t_refuses_other_columns(needs_extension: None) -> None:
    p = problem("third", 33, 96, 17)
    with pytest.raises(ValueError, match=re.escape("spmm_t: expected cols == 96 (the plan's), got 95")):
        call("spmm_t", case(p), cols=95)


@pytest.mark.parametrize("name", NAMES)
def test_operators_refuse_tensors_on_several_devices(name: str) -> None:
    p = problem("third", 33, 96, 17)
    for what in {"spmm": ("x", "values"), "spmm_t": ("g", "values")}.get(name, ("g", "x")):
        tensors = case(p)
        tensors[what] = tensors[what].to("meta")
        message = f"{name}: expected all tensors on one device, got cpu and meta; move them with .to()"
        with pytest.raises(ValueError, match=re.escape(message)):
            call(name, tensors)


@pytest.mark.parametrize(
    ("crow", "col", "cols", "message"),
    [
        ([0, 2, 1], [0], 3, "crow to ascend, but row 0 goes from 0 to 2"),
        ([0, 2, 1, 2], [0, 1], 3, "crow to ascend, but row 1 goes from 2 to 1"),
        ([0, 9, 2], [0, 1], 3, "crow to ascend, but row 0 goes from 0 to 9"),
        ([0, -1, 2], [0, 1], 3, "crow to ascend, but row 0 goes from 0 to -1"),
        ([1, 1, 2], [0, 1], 3, "crow to run from 0 to col.shape[0] == 2, got 1 to 2"),
        ([0, 1, 3], [0, 1], 3, "crow to run from 0 to col.shape[0] == 2, got 0 to 3"),
        ([0, 2], [1, 0], 3, "columns of a row to ascend within 0 .. 2, got 0 in row 0"),
        ([0, 2], [1, 1], 3, "columns of a row to ascend within 0 .. 2, got 1 in row 0"),
        ([0, 0, 1], [3], 3, "columns of a row to ascend within 0 .. 2, got 3 in row 1"),
        ([0, 1], [-1], 3, "columns of a row to ascend within 0 .. 2, got -1 in row 0"),
        ([], [], 3, "crow to hold rows / block_rows + 1 numbers, got none"),
        ([[0, 1]], [1], 3, "crow to be a 1-D int32 CPU tensor, got 2 dimensions of int32"),
        ([0, 1], [[1]], 3, "col to be a 1-D int32 CPU tensor, got 2 dimensions"),
        ([0, 0], [], -1, "rows and columns (int32 indices), got 1 x -1"),
        ([0, 0], [], 2**31, "rows and columns (int32 indices), got 1 x 2147483648"),
    ],
)
def test_plan_refuses_malformed_patterns(
    crow: list[Any], col: list[Any], cols: int, message: str, needs_extension: None
) -> None:
    with pytest.raises(ValueError, match=f"plan: expected .*{re.escape(message)}"):
        ops.plans(torch.tensor(crow, dtype=torch.int32), torch.tensor(col, dtype=torch.int32), cols)


@pytest.mark.parametrize("block_rows", [0, -1, 3, 5, 32])
def test_plan_refuses_other_blocks(block_rows: int, needs_extension: None) -> None:
    crow, col = bsr_from_mask(random_mask(7, 33, 0.3))
    message = f"plan: expected block_rows to be 1, 2, 4, 8 or 16, got {block_rows}"
    with pytest.raises(ValueError, match=message):
        ops.plans(crow, col, 33, block_rows)


def test_sddmm_refuses_other_blocks(needs_extension: None) -> None:
    p = problem("third", 32, 96, 17, block_rows=4)
    with pytest.raises(ValueError, match=re.escape("sddmm: expected block_rows == 4 (the plan's), got 2")):
        ops.sddmm(p.g, p.x, p.pattern, 2)


def test_plan_refuses_int64(needs_extension: None) -> None:
    crow, col = bsr_from_mask(random_mask(7, 33, 0.3))
    with pytest.raises(
        ValueError, match="plan: expected crow to be a 1-D int32 CPU tensor, got 1 dimensions of int64"
    ):
        ops.plans(crow.long(), col, 33)
    with pytest.raises(
        ValueError, match="plan: expected col to be a 1-D int32 CPU tensor, got 1 dimensions of int64"
    ):
        ops.plans(crow, col.long(), 33)


# ---- instruction sets ----


def test_set_isa_refuses_unknown_names(needs_extension: None) -> None:
    before = ops.extension.isa()
    available = ", ".join(ops.extension.available_isas())
    message = f'set_isa: expected one of {available} (what this processor and this build support), got "neon"'
    with pytest.raises(ValueError, match=re.escape(message)):
        ops.extension.set_isa("neon")
    assert ops.extension.isa() == before


def test_isa_fixture_selects(isa: str) -> None:
    assert ops.info()["isa"] == (None if ops.extension is None else isa)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_isa_from_the_environment(needs_extension: None) -> None:
    result = run_python("from sparseprune import ops; print(ops.info()['isa'])", SPARSEPRUNE_ISA="scalar")
    assert (result.stdout, result.stderr) == ("scalar\n", "")


def test_isa_from_the_environment_refuses_unknown_names(needs_extension: None) -> None:
    result = run_python("import sparseprune", SPARSEPRUNE_ISA="bogus")
    available = ", ".join(ops.extension.available_isas())
    message = f"SPARSEPRUNE_ISA: expected one of {available} (what this processor and this build support), "
    assert result.stderr.splitlines()[-1] == f'ValueError: {message}got "bogus"'
