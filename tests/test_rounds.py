"""Pruning in several rounds."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.cost.flops import flops_costs
from sparseprune.scores import ROUNDS
from sparseprune.select.budget import total_cost
from sparseprune.select.rounds import in_rounds, never_again, sparsity_after

ITERATIVE = ("gradient", "snip", "iter_snip", "force", "grasp", "grasp_abs", "synflow", "prospr", "ntk_sap")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )


def data(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(9, 2, 5, 5, generator=generator), torch.arange(9) % 3) for _ in range(count)]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def kept(masks: dict[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def test_a_round_removes_the_same_share_of_what_is_left() -> None:
    left = [1 - sparsity_after(number / 5, 0.9) for number in range(6)]
    assert left[0] == 1
    for before, after in pairwise(left):
        # Three roundings.
        assert math.isclose(after / before, 0.1 ** (1 / 5), rel_tol=1e-14)
    assert sparsity_after(1, 0.9) == 0.9


def test_never_again_ranks_what_was_removed_below_everything() -> None:
    scores = {"a": torch.tensor([[3.0, -1e30, 2.0]]), "b": torch.tensor([[-5.0, 0.0]], dtype=torch.float16)}
    masks = {"a": torch.tensor([[False, True, True]]), "b": torch.tensor([[True, False]])}
    result = never_again(scores, masks)
    left, removed = result["a"][masks["a"]], result["a"][~masks["a"]]
    assert torch.equal(left, torch.tensor([-1e30, 2.0]))
    assert removed.max() < left.min()
    assert result["b"].dtype == torch.float32
    assert result["b"][0, 1] < result["a"][0, 1]
    # As the mean of a block of 16.
    assert torch.full((16,), float(removed[0])).mean().isfinite()


def test_in_rounds_scores_the_network_that_is_left() -> None:
    seen = []

    def score(masks: dict[str, Tensor] | None) -> dict[str, Tensor]:
        seen.append(None if masks is None else masks["w"].tolist())
        return {"w": torch.tensor([1.0, 4.0, 3.0, 2.0])}

    def select(scores: dict[str, Tensor], part: float) -> dict[str, Tensor]:
        return dict(
            zip(scores, sp.topk_masks(list(scores.values()), round(4 * (1 - part * 0.75))), strict=True)
        )

    assert in_rounds(3, score, select)["w"].tolist() == [False, True, False, False]
    assert seen == [None, [False, True, True, True], [False, True, True, False]]


@pytest.mark.parametrize("revives", [False, True])
def test_in_rounds_what_is_removed_returns_only_where_it_may(revives: bool) -> None:
    rounds = iter([torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 2.0, 3.0])])
    masks = in_rounds(
        2,
        lambda masks: {"w": next(rounds)},
        lambda scores, part: {"w": sp.topk_masks([scores["w"]], 2 if part < 1 else 1)[0]},
        revives=revives,
    )
    assert masks["w"].tolist() == ([True, False, False] if revives else [False, False, True])


# Tiny networks have ties.
@pytest.mark.filterwarnings("ignore:prune. expected scores that tell weights apart")
@pytest.mark.parametrize("scope", ["global", "layer", "erk", "balanced"])
@pytest.mark.parametrize("method", ITERATIVE)
def test_prune_in_rounds_keeps_exactly_what_one_round_does(method: str, scope: str) -> None:
    options = {"method": method, "sparsity": 0.8, "scope": scope, "min_per_layer": 1}
    once = sp.prune(network(), data(), **options, rounds=1)
    masks = sp.prune(network(), data(), **options, rounds=4)
    assert kept(masks) == kept(once)


@pytest.mark.parametrize("method", ["snip", "iter_snip", "grasp", "synflow"])
def test_prune_in_rounds_is_scoring_and_selecting_in_turn(method: str) -> None:
    model, batches = network(), data()
    n = sum(weight.numel() for weight in sp.scores.prunable(model).values())
    left = torch.ones(n, dtype=torch.bool)
    masks = None
    for number in (1, 2, 3):
        scored = sp.scores.METHODS[method](model, batches, masks=masks)
        flat = torch.cat([score.flatten() for score in scored.values()])
        flat[~left] = -math.inf
        left = torch.zeros(n, dtype=torch.bool)
        left[flat.argsort(descending=True, stable=True)[: round(n * 0.2 ** (number / 3))]] = True
        parts = left.split([score.numel() for score in scored.values()])
        masks = {
            name: part.view(score.shape) for part, (name, score) in zip(parts, scored.items(), strict=True)
        }
    assert equal(sp.prune(model, batches, method=method, sparsity=0.8, rounds=3, allow_empty=True), masks)


def test_force_takes_back_what_it_removed_and_iter_snip_does_not() -> None:
    model, batches = network(), data()
    for method, nested in (("iter_snip", True), ("force", False)):
        masks = [
            sp.prune(
                model,
                batches,
                method=method,
                sparsity=1 - 0.1 ** (number / 3),
                rounds=number,
                min_per_layer=1,
            )
            for number in (1, 2, 3)
        ]
        for earlier, later in pairwise(masks):
            back = sum(int((later[name] & ~earlier[name]).sum()) for name in later)
            assert (back == 0) == nested


def test_rounds_by_default_are_those_of_the_papers() -> None:
    model, batches = network(), data(1)
    assert ROUNDS == {"iter_snip": 60, "force": 60, "synflow": 100, "ntk_sap": 20}
    for method, rounds in (("synflow", 100), ("snip", 1)):
        assert equal(
            sp.prune(model, batches, method=method, sparsity=0.8),
            sp.prune(model, batches, method=method, sparsity=0.8, rounds=rounds),
        )


def test_an_iterator_of_batches_is_scored_in_every_round() -> None:
    options = {"method": "snip", "sparsity": 0.8, "rounds": 3}
    assert equal(sp.prune(network(), iter(data()), **options), sp.prune(network(), data(), **options))


def test_a_function_of_ones_own_is_given_the_pruned_network() -> None:
    zeros = []
    model = network()

    def method(given: nn.Module, batches: object, loss: object) -> dict[str, Tensor]:
        weights = sp.scores.prunable(given)
        zeros.append(sum(int((weight == 0).sum()) for weight in weights.values()))
        return {name: weight.detach().abs() for name, weight in weights.items()}

    masks = sp.prune(model, method=method, sparsity=0.75, rounds=2)
    assert equal(masks, sp.prune(model, method="magnitude", sparsity=0.75))
    n = sum(mask.numel() for mask in masks.values())
    assert zeros == [0, n - round(n * 0.5)]
    assert all(weight.all() for weight in sp.scores.prunable(model).values())


@pytest.mark.parametrize("options", [{"block": (8, 1), "exclude": ["6"]}, {"pattern": "fan_in"}])
def test_blocks_and_rows_stay_whole_in_rounds(options: dict) -> None:
    masks = sp.prune(network(), data(), method="iter_snip", sparsity=0.75, rounds=3, **options)
    for mask in masks.values():
        if "block" in options:
            blocks = mask.flatten(1).unflatten(0, (-1, 8))
            assert torch.equal(blocks.any(1), blocks.all(1))
        else:
            assert len(set(mask.flatten(1).sum(1).tolist())) == 1


def test_n_of_m_in_rounds_has_exactly_n() -> None:
    masks = sp.prune(network(), data(), method="iter_snip", pattern="1:4", rounds=3)
    assert all(masks["4.weight"].unflatten(1, (-1, 4)).sum(2).flatten() == 1)


def test_flops_in_rounds_are_within_the_budget() -> None:
    model, batches = network(), data()
    once = sp.prune(model, batches, flops=0.3, rounds=1)
    masks = sp.prune(model, batches, method="iter_snip", flops=0.3, rounds=4)

    costs = flops_costs(model, (2, 5, 5))
    limit = 0.3 * sum(cost.dense for cost in costs.values())
    # No weight more would fit.
    dearest = max(cost.per_weight for cost in costs.values())
    assert not equal(once, masks)
    assert limit - dearest < total_cost(masks, costs) <= limit


def test_synflow_in_rounds_leaves_no_layer_empty_where_one_round_does() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 4))
    options = {"method": "synflow", "input_size": (64,), "sparsity": 0.998, "scope": "global"}
    with pytest.raises(
        ValueError, match=r"got none kept in '2\.weight'; choose scope=\"balanced\" or \"erk\" or"
    ):
        sp.prune(model, **options, rounds=1)
    assert all(mask.any() for mask in sp.prune(model, **options).values())
