"""Which rows share blocks: tiny scores whose best groups are known, and what is never lost."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseprune.select.grouping import captured, order_of_rows


def test_captured_is_the_sum_of_the_best_blocks() -> None:
    score = torch.tensor([[1.0, 5.0, 0.0], [2.0, 1.0, 0.0], [9.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert captured(score, 2, 4) == 15.0
    assert captured(score, 2, 5) == 15.0
    assert captured(score, 2, 6) == 18.0


def test_rows_with_the_same_columns_are_put_together() -> None:
    left, right = [3.0, 3.0, 0.0, 0.0], [0.0, 0.0, 2.0, 2.0]
    score = torch.tensor([left, right, left, right, right, left, right, left])
    order = order_of_rows(score, 4, 16)
    assert order.tolist() == [0, 2, 5, 7, 1, 3, 4, 6]
    assert captured(score, 4, 16) == 24.0
    assert captured(score[order], 4, 16) == 40.0


def test_rows_are_compared_with_all_of_their_group() -> None:
    score = torch.tensor(
        [[9.0, 9.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    )
    assert order_of_rows(score, 2, 9).tolist() == [0, 3, 1, 2]


def test_an_order_that_is_no_better_stays() -> None:
    for score in (torch.ones(8, 5), torch.zeros(8, 5), torch.eye(4), torch.empty(8, 0), torch.rand(4, 3)):
        assert order_of_rows(score, 4, 4).tolist() == list(range(len(score)))


@given(
    groups=st.integers(1, 5),
    block_rows=st.sampled_from([2, 4]),
    cols=st.integers(1, 8),
    seed=st.integers(0, 99),
    share=st.floats(0, 1),
    negative=st.booleans(),
)
def test_an_order_is_a_permutation_that_never_captures_less(
    groups: int, block_rows: int, cols: int, seed: int, share: float, negative: bool
) -> None:
    score = torch.randn(groups * block_rows, cols, generator=torch.Generator().manual_seed(seed))
    score = score if negative else score.abs().pow(3)
    count = round(share * score.numel())
    order = order_of_rows(score, block_rows, count)
    assert sorted(order.tolist()) == list(range(len(score)))
    count = max(count, block_rows)
    assert captured(score[order], block_rows, count) >= captured(score, block_rows, count)
    assert torch.equal(order, order_of_rows(score.double(), block_rows, count))
