"""How many each layer keeps: tiny literal scores to literal counts, and totals that are exact."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from selecting import select_masks
from torch import nn

import sparseprune as sp
from sparseprune.select import quotas
from sparseprune.select.blocks import Blocks, rows_of_blocks

SCORES = {"a": torch.tensor([[9.0, 1.0, 8.0], [2.0, 7.0, 0.0]]), "b": torch.tensor([[3.0, 4.0], [5.0, 6.0]])}


def blocks(block_rows: int = 1, min_per_layer: int = 0) -> Blocks:
    rows = rows_of_blocks({name: score.shape for name, score in SCORES.items()}, block_rows)
    return Blocks.of(SCORES, rows, min_per_layer)


def test_blocks_are_means_of_their_rows() -> None:
    of = blocks(2, min_per_layer=3)
    assert of.scores["a"].tolist() == [[5.5, 4.0, 4.0]]
    assert of.scores["b"].tolist() == [[4.0, 5.0]]
    assert of.numbers == {"a": 3, "b": 2}
    assert of.floors == {"a": 2, "b": 2}  # blocks, rounded up
    assert of.weights_of({"a": 1, "b": 2}) == 6


def test_masks_are_the_best_blocks_of_each_layer() -> None:
    masks = blocks(2).masks({"a": 2, "b": 1})
    assert masks["a"].tolist() == [[True, True, False], [True, True, False]]  # a tie: the earlier position
    assert masks["b"].tolist() == [[False, True], [False, True]]


def test_masks_are_those_of_the_counts_whatever_was_ranked_before() -> None:
    of = blocks()
    assert quotas.global_(of, 5) == {"a": 3, "b": 2}
    assert of.masks({"a": 1, "b": 2})["a"].tolist() == [[True, False, False], [False, False, False]]
    assert of.masks({"a": 3, "b": 2})["a"].tolist() == [[True, False, True], [False, True, False]]


def test_global_counts_the_best_of_all_layers() -> None:
    assert quotas.global_(blocks(), 3) == {"a": 3, "b": 0}
    assert quotas.global_(blocks(min_per_layer=1), 3) == {"a": 2, "b": 1}
    assert quotas.global_(blocks(2), 4) == {"a": 1, "b": 1}


def test_uniform_and_by_hand_round_each_layer() -> None:
    assert quotas.uniform(blocks(), 0.5) == {"a": 3, "b": 2}
    assert quotas.uniform(blocks(min_per_layer=3), 0.9) == {"a": 3, "b": 3}
    assert quotas.by_hand(blocks(), {"a": 0.5, "b": 1.0}) == {"a": 3, "b": 4}


def test_erk_gives_small_layers_more() -> None:
    scores = {"wide": torch.rand(100, 100), "narrow": torch.rand(10, 100), "kernel": torch.rand(4, 4, 3, 3)}
    of = Blocks.of(scores, dict.fromkeys(scores, 1))
    counts = quotas.erk(of, 1000)
    assert sum(counts.values()) == 1000
    # Sums of the sizes, 200, 110 and 14, are the ratio of what stays: 617.3, 339.5 and 43.2 weights.
    assert counts == {"wide": 617, "narrow": 340, "kernel": 43}


def test_erk_leaves_layers_dense_and_divides_the_rest() -> None:
    scores = {"wide": torch.rand(100, 100), "tiny": torch.rand(2, 2)}
    of = Blocks.of(scores, dict.fromkeys(scores, 1))
    assert quotas.erk(of, 504) == {"wide": 500, "tiny": 4}


def test_erk_density_is_the_sum_over_the_product_of_the_sizes() -> None:
    assert quotas.erk_density(torch.Size((10, 20))) == 30 / 200
    assert quotas.erk_density(torch.Size((8, 4, 3, 3))) == 18 / 288


def test_balanced_gives_all_layers_equally_many() -> None:
    scores = {"wide": torch.rand(100, 100), "tiny": torch.rand(2, 2), "narrow": torch.rand(10, 100)}
    of = Blocks.of(scores, dict.fromkeys(scores, 1))
    assert quotas.balanced(of, 9) == {"wide": 3, "tiny": 3, "narrow": 3}
    # The tiny layer stays dense; of what two cannot share equally the earlier has one more.
    assert quotas.balanced(of, 505) == {"wide": 251, "tiny": 4, "narrow": 250}
    assert quotas.balanced(of, 11_004) == {"wide": 10_000, "tiny": 4, "narrow": 1000}


def test_smart_ratio_falls_with_depth() -> None:
    scores = {"a": torch.rand(100, 100), "b": torch.rand(100, 100), "c": torch.rand(10, 10)}
    of = Blocks.of(scores, dict.fromkeys(scores, 1))
    # 30 of the last; 1800 at densities as 12 (3 * 3 + 3) to 6 (2 * 2 + 2).
    assert quotas.smart_ratio(of, 1830) == {"a": 1200, "b": 600, "c": 30}
    # The first would exceed density 1.
    assert quotas.smart_ratio(of, 16_030) == {"a": 10_000, "b": 6000, "c": 30}


@pytest.mark.parametrize(
    ("k", "floor", "counts"),
    [
        (20, 0, {"a": 0, "b": 0, "c": 20}),  # 0.3 of the last is more than all that stays
        (20, 3, {"a": 3, "b": 3, "c": 14}),  # ... and floors come first
        (20_050, 0, {"a": 10_000, "b": 10_000, "c": 50}),  # the others can hold no more
        (1840, 40, {"a": 1200, "b": 600, "c": 40}),  # a floor above 0.3
    ],
)
def test_smart_ratio_moves_the_last_layer_only_where_it_must(
    k: int, floor: int, counts: dict[str, int]
) -> None:
    scores = {"a": torch.rand(100, 100), "b": torch.rand(100, 100), "c": torch.rand(10, 10)}
    assert quotas.smart_ratio(Blocks.of(scores, dict.fromkeys(scores, 1), floor), k) == counts


def test_smart_ratio_of_a_single_layer_is_all_there_is() -> None:
    assert quotas.smart_ratio(Blocks.of({"a": torch.rand(4, 5)}, {"a": 1}), 13) == {"a": 13}


@given(
    shapes=st.lists(st.tuples(st.integers(1, 24), st.integers(1, 12)), min_size=1, max_size=5),
    block_rows=st.sampled_from([1, 2, 4]),
    floor=st.integers(0, 3),
    kept=st.sets(st.sampled_from("01234")),
    sparsity=st.floats(0, 0.99),
    rule=st.sampled_from([quotas.erk, quotas.balanced, quotas.smart_ratio]),
)
def test_shares_add_up_to_exactly_k(
    shapes: list[tuple[int, int]],
    block_rows: int,
    floor: int,
    kept: set[str],
    sparsity: float,
    rule: Callable[[Blocks, int], quotas.Counts],
) -> None:
    scores = {str(i): torch.rand(shape) for i, shape in enumerate(shapes)}
    rows = rows_of_blocks({name: score.shape for name, score in scores.items()}, block_rows)
    of = Blocks.of(scores, rows, floor, kept)
    k = of.kept_at(sparsity)
    if k < of.weights_of(of.floors):
        return
    counts = rule(of, k)
    assert list(counts) == list(scores)
    assert all(of.floors[name] <= count <= of.numbers[name] for name, count in counts.items())
    missing = k - of.weights_of(counts)
    # Only what no block fits into, where there are no single weights left, may be missing.
    assert 0 <= missing < max(rows.values())
    assert missing == 0 or all(rows[name] > 1 or counts[name] == of.numbers[name] for name in counts)


def test_the_largest_scale_is_found_to_the_last_bit() -> None:
    assert quotas.largest(lambda scale: scale * scale <= 2, 10.0) == math.nextafter(math.sqrt(2), 0)
    assert quotas.largest(lambda scale: True, 3.0) == 3.0


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), nn.Flatten(), nn.Linear(8 * 4, 10)
    )


def test_prune_with_erk_densities() -> None:
    masks = sp.prune(network(), method="magnitude", sparsity=0.8, scope="erk")
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.2 * (216 + 576 + 320))
    density = {name: float(mask.float().mean()) for name, mask in masks.items()}
    ratio = {"0.0.weight": 17 / 216, "0.1.weight": 22 / 576, "2.weight": 42 / 320}
    scale = density["2.weight"] / ratio["2.weight"]
    assert density == pytest.approx({name: scale * of for name, of in ratio.items()}, rel=0.02)


def test_prune_with_densities_by_hand() -> None:
    masks = sp.prune(network(), method="magnitude", scope={"0": 0.5, "0.1.weight": 0.25, "2": 1.0})
    assert [int(mask.sum()) for mask in masks.values()] == [108, 144, 320]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scope": {"0": 0.5}}, ValueError, "expected a density for every layer, got none for '2.weight'"),
        (
            {"scope": {"0": 0.5, "2": 1.5}},
            ValueError,
            "expected the fraction kept, in [0, 1], got 1.5 for '2'",
        ),
        ({"scope": {"0": 0.5, "2": "all"}}, TypeError, "expected densities in [0, 1], got str for '2'"),
        (
            {"scope": {"": 0.5, "0": 0.5, "2": 0.5, "head": 0.5}},
            ValueError,
            "expected names of prunable layers ('0.0.weight', '0.1.weight', '2.weight'), got ''",
        ),
        (
            {"scope": {"0": 0.5, "2": 0.5}, "sparsity": 0.5},
            ValueError,
            "sparsity: expected none beside scope={layer: density}, which says what stays, got 0.5",
        ),
        ({"scope": {"0": 0.5, "2": 0.0}}, ValueError, "got none kept in '2.weight'"),
        ({"scope": "ERK"}, ValueError, "or {layer: density}, got 'ERK'"),
    ],
)
def test_densities_that_cannot_be(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        sp.prune(network(), method="magnitude", **options)


def test_select_masks_takes_every_scope() -> None:
    for scope in (*quotas.SCOPES, {"a": 0.5, "b": 0.5}):
        masks = select_masks(SCORES, 0.5, scope=scope)
        assert sum(int(mask.sum()) for mask in masks.values()) == 5
