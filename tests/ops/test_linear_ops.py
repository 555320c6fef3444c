"""The operators of sparse matrix products: every number within its error bound of float64's."""

import functools

import pytest
import torch
from bounds import integers
from linear_problems import (
    LAYOUTS,
    PATTERNS,
    Answers,
    blocks_of,
    check_operators,
    problem,
    random_mask,
    spread,
)

from sparseprune import ops
from sparseprune.format.bsr import BLOCK_ROWS, bsr_from_mask

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
    check_operators(problem(kind, rows, cols, 65, numbers=integers))


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 130, 256])
def test_operators_over_batches(batch: int, isa: str, threads: int) -> None:
    check_operators(problem("third", 96, 257, batch))
    check_operators(problem("third", 33, 96, batch, "batch_inner"))
    check_operators(problem("third", 96, 257, batch, "batch_inner", torch.bfloat16))
    check_operators(problem("third", 72, 257, batch, "feature_inner", torch.float32, 4))
    check_operators(problem("third", 48, 33, batch, "feature_inner", torch.bfloat16, 8))
    check_operators(problem("third", 48, 33, batch, "batch_inner", torch.bfloat16, 2, integers))


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
    assert torch.equal(y.nan_to_num(7), ops.spmm(p.x, p.values, p.pattern, bias).relu().nan_to_num(7))
    assert y[0].isnan().all()
    assert not y[35].any()
    *_, d_bias = ops.spmm_backward(p.g, p.x, p.values, p.pattern, y)
    *_, all_of_g = ops.spmm_backward(p.g, p.x, p.values, p.pattern)
    assert torch.equal(d_bias[[0, 13]], all_of_g[[0, 13]])  # as in torch, NaN lets gradients through
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
