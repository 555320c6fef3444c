"""topk_outside against sorted lists."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparseprune.format.bsr import bsr_from_mask
from sparseprune.ops import topk_outside
from sparseprune.ops.plain import topk as plain


def in_parts(
    operator: object, scores: Tensor, crow: Tensor, col: Tensor, k: int, step: int
) -> tuple[Tensor, Tensor]:
    found = scores.new_empty(0), torch.empty(0, dtype=torch.int64)
    for first in range(0, len(scores), step):
        found = operator(scores[first : first + step], crow, col, first, *found, k)  # type: ignore[operator]
    return found


def expected(scores: Tensor, mask: Tensor, k: int) -> tuple[list[float], list[int]]:
    flat = scores.flatten().tolist()
    free = sorted(
        (at for at, kept in enumerate(mask.flatten().tolist()) if not kept), key=lambda at: (-flat[at], at)
    )
    positions = sorted(free[:k])
    return [flat[at] for at in positions], positions


@given(
    rows=st.integers(1, 40),
    cols=st.integers(0, 150),
    density=st.floats(0, 1),
    levels=st.sampled_from([1, 3, 2**20]),
    wanted=st.floats(0, 1.2),
    step=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_the_best_outside_a_pattern(
    rows: int, cols: int, density: float, levels: int, wanted: float, step: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, cols, generator=generator) < density
    crow, col = bsr_from_mask(mask)
    scores = torch.randint(-levels, levels + 1, (rows, cols), generator=generator).to(dtype) / 8
    k = int(wanted * rows * cols)
    for operator in (topk_outside, plain.topk_outside):
        values, positions = in_parts(operator, scores, crow, col, k, step)
        assert values.dtype == dtype
        assert positions.dtype == torch.int64
        assert (values.tolist(), positions.tolist()) == expected(scores, mask, k)


@pytest.mark.parametrize("threads", [1, 2])
def test_many_scores_of_which_few_are_wanted(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    scores = torch.randn(300, 2000)
    # What a sample does not see: all of the best are in one row, or in the pattern.
    scores[17] += 10
    mask = torch.rand(300, 2000) < 0.1
    mask[18:40] = scores[18:40] > 0.5
    for k in (1, 100, 1900, 5000, 200_000):
        values, positions = in_parts(topk_outside, scores, *bsr_from_mask(mask), k, 100)
        found, at = in_parts(plain.topk_outside, scores, *bsr_from_mask(mask), k, 300)
        assert torch.equal(values, found)
        assert torch.equal(positions, at)
    torch.set_num_threads(before)


@pytest.mark.parametrize("operator", [topk_outside, plain.topk_outside])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_scores_that_are_not_finite(operator: object, bad: float) -> None:
    scores = torch.zeros(4, 5)
    scores[3, 4] = bad
    with pytest.raises(ValueError, match="topk_outside: expected finite scores"):
        in_parts(operator, scores, *bsr_from_mask(scores > 0), 3, 2)


@pytest.mark.parametrize("operator", [topk_outside, plain.topk_outside])
def test_rows_of_another_pattern(operator: object) -> None:
    crow, col = bsr_from_mask(torch.eye(4) > 0)
    none = torch.empty(0), torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="expected rows of the pattern's 4, got 3 from row 2"):
        operator(torch.zeros(3, 4), crow, col, 2, *none, 1)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"expected k >= 2 \(number of the best so far\), got 1"):
        operator(torch.zeros(1, 4), crow, col, 2, torch.zeros(2), torch.tensor([0, 1]), 1)  # type: ignore[operator]


def test_patterns_that_are_none(needs_extension: None) -> None:
    crow, col = bsr_from_mask(torch.eye(4) > 0)
    none = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for its_crow, its_col, cols, message in (
        (crow, col, 3, "expected col to ascend within a row"),
        (crow.flip(0), col, 4, "expected crow to ascend"),
        (crow + 1, col, 4, "expected crow to ascend"),
        (crow.long(), col, 4, "expected crow and col to be contiguous int32"),
    ):
        with pytest.raises(ValueError, match=message):
            topk_outside(torch.zeros(4, cols), its_crow, its_col, 0, *none, 1)
    with pytest.raises(ValueError, match=r"expected scores \(rows, columns\) on the CPU"):
        topk_outside(torch.zeros(4, 4).bfloat16(), crow, col, 0, *none, 1)


def test_opcheck() -> None:
    crow, col = bsr_from_mask(torch.rand(9, 7) < 0.3)
    none = torch.empty(0), torch.empty(0, dtype=torch.int64)
    torch.library.opcheck(
        torch.ops.sparseprune.topk_outside.default, (torch.rand(9, 7), crow, col, 0, *none, 5)
    )
