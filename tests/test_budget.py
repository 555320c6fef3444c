import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparseprune import masks
from sparseprune.budget import select_within, total_cost
from sparseprune.cost import LayerCost


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


def test_exponent_zero_and_equal_costs_are_the_global_ranking() -> None:
    torch.manual_seed(0)
    scores = {"a": torch.rand(8, 5), "b": torch.rand(4, 9).round(decimals=1)}
    for exponent, price in ((0.0, 1.0), (1.0, 3.0)):
        costs = {name: linear(price, score.numel()) for name, score in scores.items()}
        for kept in (1, 30, 76):
            selected = select_within(scores, costs, kept * price, exponent=exponent, allow_empty=True)
            expected = masks.select_masks(scores, 1 - kept / 76, allow_empty=True)
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
    # less the least score, 3 / 1 and 2 / 0.001
    selected = select_within(scores, costs, 0.0011, exponent=1, allow_empty=True)
    assert not selected["dear"].any()
    assert selected["cheap"].tolist() == [[True], [False]]


def test_floors_come_first() -> None:
    scores = {"a": torch.rand(4, 5) + 10, "b": torch.rand(4, 5)}
    costs = {name: linear(1.0, 20) for name in scores}
    with pytest.raises(ValueError, match=r"none kept in 'b'"):
        select_within(scores, costs, 10)
    selected = select_within(scores, costs, 10, min_per_layer=3)
    assert [int(mask.sum()) for mask in selected.values()] == [7, 3]
    with pytest.raises(ValueError, match=r"budget: expected at least 6, .* got 5; most of it is 'a' \(3\)"):
        select_within(scores, costs, 5, min_per_layer=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exponent": 1.5}, "cost_exponent: expected a number from 0 to 1, got 1.5"),
        ({"costs": {}}, "expected a cost for every layer, got none for a"),
        ({"scores": {"a": torch.tensor([[torch.nan]])}}, "expected finite scores, got nan in 'a'"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    arguments = {"scores": {"a": torch.ones(1, 1)}, "costs": {"a": linear(1.0, 1)}, "budget": 1.0}
    with pytest.raises(ValueError, match=message):
        select_within(**{**arguments, **changes})


@settings(max_examples=150, deadline=None)
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
    most = math.fsum(cost.of(scores[name].numel()) for name, cost in costs.items())
    budget = data.draw(st.floats(0, 1.1)) * most
    floor = data.draw(st.sampled_from([0, 2]))
    exponent = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    arguments = {"exponent": exponent, "block": (rows, 1), "min_per_layer": floor, "allow_empty": True}
    try:
        selected = select_within(scores, costs, budget, **arguments)
    except ValueError:
        blocks = {name: min(-(-floor // rows), score.numel() // rows) for name, score in scores.items()}
        assert math.fsum(cost.of(blocks[name] * rows) for name, cost in costs.items()) > budget
        return
    assert total_cost(selected, costs) <= budget
    for name, mask in selected.items():
        kept = int(mask.sum())
        assert kept % rows == 0
        assert kept >= min(floor, mask.numel())
        if kept < mask.numel():
            more = total_cost(selected, costs) - costs[name].of(kept) + costs[name].of(kept + rows)
            assert more > budget - 1e-9 * most
            blocks = masks.mean_of_blocks(scores[name], rows).flatten()
            of_block = mask.reshape(mask.shape[0] // rows, rows, -1).all(1).flatten()
            if of_block.any():
                assert blocks[of_block].min() >= blocks[~of_block].max()
    again = select_within(scores, costs, budget, **arguments)
    assert all(torch.equal(selected[name], again[name]) for name in selected)
