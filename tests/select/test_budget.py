import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from selecting import select_masks, select_within
from torch import Tensor

from sparseprune.select.blocks import Blocks, check_blocks, mean_of_blocks
from sparseprune.select.budget import (
    BudgetError,
    LayerCost,
    costs_of,
    scores_for,
    select_blocks_within,
    total_cost,
)


def linear(per_weight: float, weights: int) -> LayerCost:
    """A layer in which sparse costs no more than dense."""
    return LayerCost(per_weight, 0.0, per_weight * weights)


def kept_score(scores: dict[str, Tensor], selected: dict[str, Tensor]) -> float:
    return sum(float(scores[name][mask].sum()) for name, mask in selected.items())


def best_of_all(values: Sequence[float], costs: Sequence[float], budget: float) -> float:
    """The knapsack problem by trying all subsets."""
    best = 0.0
    for chosen in itertools.product((False, True), repeat=len(values)):
        if math.fsum(c for c, keep in zip(costs, chosen, strict=True) if keep) <= budget:
            best = max(best, math.fsum(v for v, keep in zip(values, chosen, strict=True) if keep))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_greedy_is_the_knapsack_optimum(seed: int) -> None:
    """At every budget that the ranked weights fill exactly; otherwise within one weight's score."""
    torch.manual_seed(seed)
    per_weight = {"a": 5.0, "b": 1.0, "c": 2.0}
    scores = {name: torch.rand(size, 1) for name, size in (("a", 3), ("b", 5), ("c", 4))}
    costs = {name: linear(per_weight[name], score.numel()) for name, score in scores.items()}
    items = sorted(
        ((float(s) / per_weight[name], per_weight[name], float(s)) for name in scores for s in scores[name]),
        reverse=True,
    )
    values, prices = [item[2] for item in items], [item[1] for item in items]
    filled = set(itertools.accumulate(prices))
    for budget in range(1, int(sum(prices)) + 1):
        selected = select_within(scores, costs, budget, exponent=1, allow_empty=True)
        got, optimum = kept_score(scores, selected), best_of_all(values, prices, budget)
        assert total_cost(selected, costs) <= budget
        if budget in filled:
            assert got == pytest.approx(optimum)
        assert optimum - max(values) < got <= optimum + 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_the_knapsack_optimum_of_blocks(seed: int) -> None:
    """Blocks of 2 x 1, but for a layer of 3 rows, whose weights stand alone; negative scores too."""
    torch.manual_seed(seed)
    per_weight = {"a": 3.0, "b": 1.0, "c": 2.0}
    scores = {"a": torch.randn(4, 2), "b": torch.randn(6, 1), "c": torch.randn(3, 1)}
    costs = {name: linear(per_weight[name], score.numel()) for name, score in scores.items()}
    items = []
    for name, score in scores.items():
        rows = 1 if name == "c" else 2
        sums = mean_of_blocks(score.double(), rows).flatten() * rows
        items += [(float(s), rows * per_weight[name]) for s in sums]
    positive = sorted((item for item in items if item[0] > 0), key=lambda item: -item[0] / item[1])
    filled = set(itertools.accumulate(price for _, price in positive))
    values, prices = zip(*items, strict=True)
    for budget in range(1, int(sum(prices)) + 1):
        selected = select_within(scores, costs, budget, exponent=1, block=(2, 1), allow_empty=True)
        assert total_cost(selected, costs) <= budget
        # What scores below zero fills up what is left; it is not part of the knapsack.
        got = sum(
            max(float(s), 0)
            for name, score in scores.items()
            for s in mean_of_blocks(
                torch.where(selected[name], score, -1e9).double(), 1 if name == "c" else 2
            ).flatten()
            * (1 if name == "c" else 2)
        )
        optimum = best_of_all(values, prices, budget)
        if budget in filled:
            assert got == pytest.approx(optimum)
        assert optimum - max(values) < got + 1e-6
        assert got <= optimum + 1e-6


def test_exponent_zero_and_equal_costs_are_the_global_ranking() -> None:
    torch.manual_seed(0)
    scores = {"a": torch.rand(8, 5), "b": torch.rand(4, 9).round(decimals=1)}
    for exponent, price in ((0.0, 1.0), (1.0, 3.0)):
        costs = {name: linear(price, score.numel()) for name, score in scores.items()}
        for kept in (1, 30, 76):
            selected = select_within(scores, costs, kept * price, exponent=exponent, allow_empty=True)
            expected = select_masks(scores, 1 - kept / 76, allow_empty=True)
            assert all(torch.equal(selected[name], expected[name]) for name in scores)


def test_ties_go_to_the_earlier_layer_and_position() -> None:
    scores = {"a": torch.ones(2, 3), "b": torch.ones(2, 2)}
    costs = {name: linear(1.0, score.numel()) for name, score in scores.items()}
    selected = select_within(scores, costs, 7, allow_empty=True)
    assert selected["a"].all()
    assert selected["b"].tolist() == [[True, False], [False, False]]


def test_an_exponent_in_between_favours_cheap_weights_less() -> None:
    scores = {"dear": torch.full((10, 1), 3.0), "cheap": torch.ones(10, 1)}
    costs = {"dear": linear(4.0, 10), "cheap": linear(1.0, 10)}
    # 3 / 4 < 1, but 3 / 4^0.5 > 1
    assert select_within(scores, costs, 10, exponent=1, allow_empty=True)["cheap"].all()
    selected = select_within(scores, costs, 10, exponent=0.5, allow_empty=True)
    assert (int(selected["dear"].sum()), int(selected["cheap"].sum())) == (2, 2)


def test_a_layer_that_costs_as_much_as_dense_keeps_all_its_weights() -> None:
    scores = {"early": torch.rand(4, 5) + 10, "late": torch.rand(4, 5)}
    costs = {"early": LayerCost(3.0, 2.0, 20.0), "late": linear(1.0, 20)}
    selected = select_within(scores, costs, 25, exponent=0)
    assert selected["early"].all()  # 6 weights would cost 20
    assert int(selected["late"].sum()) == 5
    frozen = {"early": LayerCost(0.0, 7.0, 7.0), "late": linear(1.0, 20)}  # no sparse kernels
    selected = select_within(scores, frozen, 9, exponent=1)
    assert selected["early"].all()
    assert int(selected["late"].sum()) == 2


def test_negative_scores_keep_their_order_whatever_they_cost() -> None:
    scores = {"dear": torch.tensor([[-1.0], [-3.0]]), "cheap": torch.tensor([[-2.0], [-4.0]])}
    costs = {"dear": linear(1.0, 2), "cheap": linear(1e-3, 2)}
    selected = select_within(scores, costs, 1.001, exponent=0, allow_empty=True)
    assert selected["dear"].tolist() == [[True], [False]]
    assert selected["cheap"].tolist() == [[True], [False]]
    # -1 · 1 and -2 · 0.001
    selected = select_within(scores, costs, 0.0011, exponent=1, allow_empty=True)
    assert not selected["dear"].any()
    assert selected["cheap"].tolist() == [[True], [False]]


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
def test_no_negative_score_is_kept_in_place_of_a_positive_one(exponent: float) -> None:
    scores = {"dear": torch.tensor([[2.0], [1.0], [-1.0]]), "cheap": torch.tensor([[1.0], [-1.0], [-1e6]])}
    costs = {"dear": linear(1000.0, 3), "cheap": linear(1.0, 3)}
    kept = [
        [int(mask.sum()) for mask in select_within(scores, costs, budget, exponent=exponent).values()]
        for budget in (2001, 2002, 2003, 3003)
    ]
    assert kept == [[2, 1], [2, 2], [2, 3], [3, 3]]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_of_equal_scores_the_cheaper_weights_are_kept(sign: float) -> None:
    scores = {"dear": torch.full((1, 1), sign), "cheap": torch.full((10, 1), sign)}
    costs = {"dear": linear(10.0, 1), "cheap": linear(1.0, 10)}
    selected = select_within(scores, costs, 10, allow_empty=True)
    assert not selected["dear"].any()
    assert selected["cheap"].all()


def test_an_outlier_does_not_make_the_ranking_that_of_the_costs() -> None:
    torch.manual_seed(0)
    scores = {"dear": torch.randn(20, 10), "cheap": torch.randn(20, 10)}  # as those of GraSP
    costs = {"dear": linear(64.0, 200), "cheap": linear(1.0, 200)}
    everything = sum(cost.dense for cost in costs.values())
    without = select_within(scores, costs, 0.3 * everything)
    least = torch.tensor(-1e4)
    scores["dear"].view(-1)[scores["dear"].argmin()] = least
    scores["cheap"].view(-1)[scores["cheap"].argmin()] = least
    selected = select_within(scores, costs, 0.3 * everything)
    assert all(torch.equal(selected[name], without[name]) for name in scores)
    assert 0.2 < selected["dear"].float().mean() < selected["cheap"].float().mean() < 1


def test_the_unit_of_costs_does_not_matter() -> None:
    torch.manual_seed(0)
    scores = {"a": torch.randn(8, 5), "b": torch.randn(6, 7)}
    costs = {"a": LayerCost(3.0, 2.0, 100.0), "b": LayerCost(0.25, 1.0, 9.0)}
    selected = select_within(scores, costs, 50)
    scaled = {name: LayerCost(*(2.0**-30 * number for number in cost)) for name, cost in costs.items()}
    again = select_within(scores, scaled, 2.0**-30 * 50)
    assert all(torch.equal(selected[name], again[name]) for name in scores)


def test_the_smallest_budget_is_that_of_the_floors() -> None:
    scores = {"a": torch.rand(4, 3), "b": torch.rand(5, 1), "c": torch.rand(4, 2)}
    costs = {"a": LayerCost(2.0, 1.0, 50.0), "b": LayerCost(1.0, 0.5, 3.0), "c": LayerCost(0.0, 7.0, 7.0)}
    options = {"block": (4, 1), "min_per_layer": 3}
    shapes = {name: score.shape for name, score in scores.items()}
    rows = check_blocks(shapes, **options)
    least = costs_of(Blocks.unscored(shapes, rows, 3).floors, rows, costs)
    assert least == {"a": 1 + 2 * 4, "b": 3, "c": 7}  # a block of 4; 3.5, but dense is 3
    selected = select_within(scores, costs, 19, **options)
    assert [int(mask.sum()) for mask in selected.values()] == [4, 5, 8]
    with pytest.raises(BudgetError, match=r"at least 19, .* got 18\.9; most of it is 'a' \(9\), 'c' \(7\)"):
        select_within(scores, costs, 18.9, **options)


@pytest.mark.parametrize("seed", range(6))
def test_blocks_are_chosen_for_each_layer_where_they_buy_more_score(seed: int) -> None:
    torch.manual_seed(seed)
    smooth = torch.rand(4, 30).repeat_interleave(4, 0)  # alike within blocks of 4
    scores = {"smooth": smooth, "spiky": torch.rand(16, 30) ** 3, "odd": torch.rand(15, 10)}
    costs = {
        v: {name: LayerCost(per_weight, 2.0, 1e3) for name in scores}
        for v, per_weight in ((1, 1.0), (4, 0.6), (16, 0.59))
    }
    for budget in (150, 250, 400):
        selected = select_blocks_within(scores, costs, budget, exponent=1)
        chosen = {name: cost.per_weight for name, cost in selected.costs.items()}
        assert chosen == {"smooth": 0.6, "spiky": 1.0, "odd": 1.0}
        assert total_cost(*selected) <= budget
        blocks = selected.masks["smooth"].view(4, 4, 30)
        assert torch.equal(blocks.any(1), blocks.all(1))
        single = select_within(scores, costs[1], budget, exponent=1)
        assert sum_of(scores, selected.masks) > sum_of(scores, single)


def test_one_kind_of_blocks_is_as_without_a_choice() -> None:
    torch.manual_seed(0)
    scores = {"a": torch.randn(8, 5), "b": torch.randn(6, 7)}
    costs = {"a": LayerCost(3.0, 2.0, 100.0), "b": LayerCost(0.25, 1.0, 9.0)}
    selected = select_blocks_within(scores, {2: costs}, 50)
    expected = select_within(scores, costs, 50, block=(2, 1))
    assert all(torch.equal(selected.masks[name], expected[name]) for name in scores)
    assert selected.costs == costs


def test_blocks_for_which_the_budget_is_too_small_are_passed_over() -> None:
    scores = {"a": torch.rand(16, 4)}
    costs = {1: {"a": LayerCost(1.0, 20.0, 90.0)}, 4: {"a": LayerCost(1.0, 5.0, 90.0)}}
    selected = select_blocks_within(scores, costs, 15, min_per_layer=3)
    assert selected.costs["a"] == costs[4]["a"]
    assert int(selected.masks["a"].sum()) == 8
    with pytest.raises(BudgetError, match=r"at least 21, .* got 4"):  # of the first V
        select_blocks_within(scores, costs, 4, min_per_layer=1)
    with pytest.raises(ValueError, match="every layer to keep a weight, got none kept in 'a'"):
        select_blocks_within({"a": torch.rand(16, 4)}, {16: costs[4]}, 10)


def sum_of(scores: dict[str, Tensor], selected: dict[str, Tensor]) -> float:
    return sum(float(score[selected[name]].sum()) for name, score in scores.items())


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
def test_random_scores_keep_a_density_in_proportion_to_the_power_of_the_cost(exponent: float) -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = {name: torch.rand(300, 400, generator=generator) for name in ("dear", "cheap")}
    costs = {"dear": linear(16.0, 120_000), "cheap": linear(1.0, 120_000)}
    scores = scores_for("random", uniform)
    assert all(torch.equal(scores[name].argsort(0), uniform[name].argsort(0)) for name in uniform)
    selected = select_within(scores, costs, 0.03 * 17 * 120_000, exponent=exponent)
    ratio = selected["cheap"].sum() / selected["dear"].sum()
    # At least 1,900 weights are kept in each layer. Four standard deviations are 4 / sqrt(1900) = 9 %.
    assert float(ratio) == pytest.approx(16**exponent, rel=0.1)


def test_floors_come_first() -> None:
    scores = {"a": torch.rand(4, 5) + 10, "b": torch.rand(4, 5)}
    costs = {name: linear(1.0, 20) for name in scores}
    with pytest.raises(ValueError, match=r"none kept in 'b'"):
        select_within(scores, costs, 10)
    selected = select_within(scores, costs, 10, min_per_layer=3)
    assert [int(mask.sum()) for mask in selected.values()] == [7, 3]
    with pytest.raises(ValueError, match=r"budget: expected at least 6, .* got 5; most of it is 'a' \(3\)"):
        select_within(scores, costs, 5, min_per_layer=3)


def test_an_exponent_is_a_number() -> None:
    with pytest.raises(TypeError, match="cost_exponent: expected a number from 0 to 1, got str"):
        select_within({"a": torch.ones(1, 1)}, {"a": linear(1.0, 1)}, 1.0, exponent="0.5")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exponent": 1.5}, "cost_exponent: expected a number from 0 to 1, got 1.5"),
        ({"limit": math.nan}, "budget: expected a number, got nan"),
        ({"costs": {"a": LayerCost(1.0, -1.0, 1.0)}}, r"costs of 0 or more, got .*fixed=-1\.0.* for 'a'"),
        ({"costs": {}}, "expected a cost for every layer, got none for a"),
        ({"scores": {"a": torch.tensor([[torch.nan]])}}, "expected finite scores, got nan in 'a'"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    arguments = {"scores": {"a": torch.ones(1, 1)}, "costs": {"a": linear(1.0, 1)}, "limit": 1.0}
    with pytest.raises(ValueError, match=message):
        select_within(**{**arguments, **changes})


@given(data=st.data())
def test_never_above_the_budget_and_nothing_more_fits(data: st.DataObject) -> None:
    rows = data.draw(st.sampled_from([1, 2, 4]))
    scores, costs = {}, {}
    for i in range(data.draw(st.integers(1, 4))):
        shape = (4 * data.draw(st.integers(1, 2)), data.draw(st.integers(1, 5)))
        torch.manual_seed(data.draw(st.integers(0, 9)))
        score = torch.randn(shape)
        scores[f"{i}"] = score.round() if data.draw(st.booleans()) else score
        per_weight = data.draw(st.sampled_from([0.25, 0.3, 1.0, 7.0]))
        fixed = data.draw(st.sampled_from([0.0, 0.5, 3.0]))
        dense = data.draw(st.sampled_from([0.5, 1.0, 2.0])) * per_weight * score.numel()
        costs[f"{i}"] = LayerCost(per_weight, fixed, dense)
    most = math.fsum(cost.total(scores[name].numel()) for name, cost in costs.items())
    budget = data.draw(st.floats(0, 1.1)) * most
    floor = data.draw(st.sampled_from([0, 2]))
    exponent = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    arguments = {"exponent": exponent, "block": (rows, 1), "min_per_layer": floor, "allow_empty": True}
    try:
        selected = select_within(scores, costs, budget, **arguments)
    except ValueError:
        blocks = {name: min(-(-floor // rows), score.numel() // rows) for name, score in scores.items()}
        assert math.fsum(cost.total(blocks[name] * rows) for name, cost in costs.items()) > budget
        return
    assert total_cost(selected, costs) <= budget
    for name, mask in selected.items():
        kept = int(mask.sum())
        assert kept % rows == 0
        assert kept >= min(floor, mask.numel())
        if kept < mask.numel():
            more = total_cost(selected, costs) - costs[name].total(kept) + costs[name].total(kept + rows)
            assert more > budget - 1e-9 * most
            blocks = mean_of_blocks(scores[name], rows).flatten()
            of_block = mask.reshape(mask.shape[0] // rows, rows, -1).all(1).flatten()
            if of_block.any():
                assert blocks[of_block].min() >= blocks[~of_block].max()
    again = select_within(scores, costs, budget, **arguments)
    assert all(torch.equal(selected[name], again[name]) for name in selected)
