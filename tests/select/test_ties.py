"""Weights that only their position decided about."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseprune.select import quotas
from sparseprune.select.blocks import Blocks
from sparseprune.select.ties import decided_by_position, rankings


def blocks_of(scores: dict[str, list[list[float]]], v: int = 1, floor: int = 0) -> Blocks:
    tensors = {name: torch.tensor(score) for name, score in scores.items()}
    return Blocks.of(tensors, dict.fromkeys(tensors, v), floor)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (1, (0, [])),
        (2, (1, ["a", "b"])),
        (3, (2, ["a", "b"])),
        (4, (1, ["a", "b"])),
        (5, (0, [])),
        (6, (0, [])),
    ],
)
def test_kept_weights_whose_score_removed_ones_have(kept: int, expected: tuple[int, list[str]]) -> None:
    # One 3, four 2 (of which 1, 2, 3 and 4 are kept in turn), one 1.
    blocks = blocks_of({"a": [[2.0, 1.0, 2.0]], "b": [[3.0, 2.0, 2.0]]})
    masks = blocks.masks(quotas.global_(blocks, kept), allow_empty=True)
    assert decided_by_position(blocks, masks, ["a", "b"]) == expected


def test_blocks_count_their_weights() -> None:
    blocks = blocks_of({"a": [[1.0, 1.0, 3.0], [1.0, 1.0, 3.0]]}, v=2)
    masks = blocks.masks({"a": 2})
    assert decided_by_position(blocks, masks, ["a"]) == (2, ["a"])


def test_layers_at_their_floors_have_a_ranking_of_their_own() -> None:
    blocks = blocks_of({"low": [[0.0, 0.0, 0.0]], "a": [[5.0, 4.0]], "b": [[4.0, 3.0]]}, floor=1)
    counts = quotas.global_(blocks, 3)
    assert counts == {"low": 1, "a": 1, "b": 1}
    assert rankings(blocks, counts, True) == [[], ["low"], ["a"], ["b"]]
    counts = quotas.global_(blocks, 4)
    assert counts == {"low": 1, "a": 2, "b": 1}
    assert rankings(blocks, counts, True) == [["a"], ["low"], ["b"]]
    assert rankings(blocks, counts, False) == [[], ["low"], ["a"], ["b"]]
    masks = blocks.masks(counts)
    assert [decided_by_position(blocks, masks, names)[0] for names in rankings(blocks, counts, True)] == [
        0,
        1,
        0,
    ]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_an_exchange_of_so_many_weights_keeps_the_sum_of_scores(
    scores: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(scores)))
    blocks = blocks_of({"a": [[float(score) for score in scores]]})
    mask = blocks.masks({"a": count}, allow_empty=True)["a"]
    exchanged, _ = decided_by_position(blocks, {"a": mask}, ["a"])
    kept, removed = blocks.scores["a"][mask], blocks.scores["a"][~mask]
    # The lowest kept, and the highest removed: as many of them as are equal, pair by pair.
    low, high = kept.sort().values, removed.sort(descending=True).values
    pairs = min(len(low), len(high))
    assert exchanged == int((low[:pairs] == high[:pairs]).sum())
