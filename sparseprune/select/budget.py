"""Masks that cost no more than a budget: the best scores for what weights cost.

A layer that keeps k weights costs min(fixed + per_weight · k, dense); see :mod:`sparseprune.cost.seconds`.
Weights are ranked by score / per_weight^exponent, negative scores by score · per_weight^exponent: with
exponent 1 this is the greedy rule for the knapsack problem (Dantzig, 1957), optimal up to the one item that
no longer fits; with exponent 0 the plain global ranking.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from sparseprune.select.blocks import Blocks, mean_of_blocks, rows_of_blocks
from sparseprune.select.quotas import Counts
from sparseprune.select.topk import topk_named

# Between the global ranking, which keeps early convolutions whole, and score per cost, which empties them. By
# experiment (bench/results/frontier) within half a point of the best everywhere; others fail on LeNet-5.
EXPONENT = 0.5


class LayerCost(NamedTuple):
    """What one layer costs in a training step, in operations or seconds.

    Attributes:
        per_weight: cost of one weight that is kept.
        fixed: cost of the sparse layer without weights.
        dense: cost of the layer left dense.
    """

    per_weight: float
    fixed: float
    dense: float

    def total(self, weights: int) -> float:
        """min(fixed + per_weight · weights, dense)"""
        return min(self.fixed + self.per_weight * weights, self.dense)


class BudgetError(ValueError):
    """The budget is below what the layers cost with the weights that they must keep."""


class Selected(NamedTuple):
    """Masks, and what weights cost in the blocks that they are made of."""

    masks: dict[str, Tensor]
    costs: dict[str, LayerCost]


def within(blocks: Blocks, costs: Mapping[str, LayerCost], limit: float, exponent: float) -> Counts:
    """As many blocks as the best scores for their costs have within a limit: a quota; see quotas.py.

    All blocks above one threshold of score / per_weight^exponent are kept, the lowest threshold that the
    limit allows; then, best first, those that still fit. Ties go to the earlier layer and position. A layer
    that costs as much as dense keeps all its weights: they are free.

    A negative score, of a weight that is better removed, is multiplied by per_weight^exponent instead, so
    that of two such weights the dearer goes first. Layers keep their order, nothing negative ranks above
    anything positive, and of equal scores the cheaper weight is kept. (Taking the least score of all off
    first would not do: one outlier makes all differences alike, and the ranking that of the costs alone.)

    Args:
        blocks: scores of the blocks, finite, and the floors of the layers.
        costs: costs of a weight, by the names of the layers.
        limit: what the kept weights may cost, in the unit of the costs.
        exponent: power of the costs, 0 to 1.
    Returns:
        ``{parameter name: number of blocks}``. No block of any layer could be added within the limit.
    Raises:
        BudgetError: the limit is too small; the error says what is needed, and by which layers.
        ValueError: the exponent is out of range, the limit is not a number, a name has no cost or a negative
            one, or a score is not finite.
    """
    check_exponent(exponent)
    if math.isnan(limit):
        raise ValueError(f"budget: expected a number, got {limit}")
    if missing := [name for name in blocks.scores if name not in costs]:
        raise ValueError(f"budget: expected a cost for every layer, got none for {', '.join(missing)}")
    if wrong := [name for name in blocks.scores if not all(number >= 0 for number in costs[name])]:
        raise ValueError(f"budget: expected costs of 0 or more, got {costs[wrong[0]]} for {wrong[0]!r}")
    _check_reachable(limit, costs_of(blocks.floors, blocks.block_rows, costs))
    # Refuses what is not finite.
    topk_named(blocks.scores, 0)
    layers = [_Ranked.of(name, blocks, costs[name], exponent) for name in blocks.scores]
    return dict(zip(blocks.scores, _counts_within(layers, limit), strict=True))


def select_blocks_within(
    scores: Mapping[str, Tensor],
    costs: Mapping[int, Mapping[str, LayerCost]],
    limit: float,
    exponent: float = EXPONENT,
    min_per_layer: int = 0,
    allow_empty: bool = False,
    keep: Collection[str] = (),
) -> Selected:
    """Masks by :func:`within`, of blocks of V rows × 1 column where V is chosen for each layer.

    The budget is divided among the layers with one V for all, the first one that it suffices for. Each layer
    then takes the V whose best blocks have the largest sum of scores for that share, a tie the first such V;
    with these the budget is divided anew.

    Args:
        scores: ``{parameter name: score}``, higher = keep, finite.
        costs: ``{V: {parameter name: cost of a weight in such blocks}}``.
        limit: what the masks may cost, in the unit of the costs.
        exponent: see :func:`within`.
        min_per_layer, allow_empty: see :func:`sparseprune.prune`.
        keep: names of the parameters that keep all their weights.
    Returns:
        the masks, and the layers' costs in their blocks.
    Raises:
        BudgetError, ValueError: see :func:`within`; a layer would keep no weight.
    """
    shapes = {name: score.shape for name, score in scores.items()}
    by_rows = {v: Blocks.of(scores, rows_of_blocks(shapes, v), min_per_layer, keep) for v in costs}
    error: BudgetError | None = None
    for v, blocks in by_rows.items():
        try:
            counts = within(blocks, costs[v], limit, exponent)
        except BudgetError as too_small:
            error = error or too_small
            continue
        chosen = dict.fromkeys(counts, v)
        for name, count in counts.items():
            # The V with which the budget was divided comes first: it wins ties.
            fitting = [v, *(u for u in costs if u != v and by_rows[u].block_rows[name] == u)]
            if len(fitting) > 1:
                share = costs[v][name].total(count * blocks.block_rows[name])
                worth = {u: _best_sum(by_rows[u], scores[name], name, costs[u][name], share) for u in fitting}
                chosen[name] = max(worth, key=lambda u: worth[u])
        own = {name: costs[u][name] for name, u in chosen.items()}
        if any(u != v for u in chosen.values()):
            block_rows = {name: by_rows[u].block_rows[name] for name, u in chosen.items()}
            blocks = Blocks.of(scores, block_rows, min_per_layer, keep)
            counts = within(blocks, own, limit, exponent)
        return Selected(blocks.masks(counts, allow_empty=allow_empty), own)
    assert error is not None
    raise error


def _best_sum(blocks: Blocks, score: Tensor, name: str, cost: LayerCost, share: float) -> float:
    """Sum of a layer's best scores, in these blocks, within a share; -inf where its floor costs more."""
    block_rows, floor = blocks.block_rows[name], blocks.floors[name]
    if cost.total(floor * block_rows) > share:
        return -math.inf
    if cost.dense <= share:
        return float(score.sum(dtype=torch.float64))
    affordable = (share - cost.fixed) / cost.per_weight if cost.per_weight > 0 else math.inf
    sums = mean_of_blocks(score.detach().double(), block_rows).flatten() * block_rows
    count = int(min(max(affordable / block_rows, floor), len(sums)))
    return float(sums.topk(count).values.sum())


def scores_for(method: object, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Scores by a method as :func:`within` is to rank them: random ones u in [0, 1) become 1 / (1 - u).

    Their order stays. Of these the fraction cost^-e / t lies above a threshold t of score / cost^e: every
    layer has a density in proportion to cost^-e. Uniform scores would leave layers empty whose weights cost
    much.
    """
    return {n: 1 / (1 - s.double()) for n, s in scores.items()} if method == "random" else scores


def total_cost(masks: Mapping[str, Tensor], costs: Mapping[str, LayerCost]) -> float:
    """Sum over layers of min(fixed + per_weight · k, dense)."""
    return math.fsum(costs[name].total(int(mask.sum())) for name, mask in masks.items())


def check_exponent(exponent: float) -> None:
    """Raise TypeError or ValueError for what is no exponent of the costs."""
    if isinstance(exponent, bool) or not isinstance(exponent, Real):
        raise TypeError(f"cost_exponent: expected a number from 0 to 1, got {type(exponent).__name__}")
    if not 0 <= exponent <= 1:
        raise ValueError(f"cost_exponent: expected a number from 0 to 1, got {exponent}")


def costs_of(
    counts: Mapping[str, int], block_rows: Mapping[str, int], costs: Mapping[str, LayerCost]
) -> dict[str, float]:
    """What each layer costs with so many blocks of V rows."""
    return {name: costs[name].total(count * block_rows[name]) for name, count in counts.items()}


def limit_of_flops(
    flops: float, costs: Mapping[str, LayerCost], blocks: Blocks, keep: Collection[str] = ()
) -> float:
    """So many operations as a fraction of all; ValueError where the weights that must stay take more."""
    everything = math.fsum(cost.dense for cost in costs.values())
    least = costs_of(blocks.floors, blocks.block_rows, costs)
    if math.fsum(least.values()) > flops * everything:
        # Rounded up, so that what the error names suffices.
        needed = math.ceil(math.fsum(least.values()) / everything * 1e4) / 1e4
        shares = {name: cost / everything for name, cost in least.items()}
        takes = "keep and min_per_layer take" if keep else "min_per_layer takes"
        raise ValueError(
            f"flops: expected at least {needed:g}, what {takes}, got {flops:g}; "
            f"most of it is {_dearest(shares, '.2g')}"
        )
    return flops * everything


def _check_reachable(limit: float, least: Mapping[str, float]) -> None:
    if (needed := math.fsum(least.values())) > limit:
        raise BudgetError(
            f"budget: expected at least {needed:.4g}, what the layers cost with the weights that they must "
            f"keep, got {limit:.4g}; most of it is {_dearest(least, '.4g')}"
        )


def _dearest(costs: Mapping[str, float], digits: str) -> str:
    names = sorted(costs, key=lambda name: -costs[name])[:3]
    return ", ".join(f"{name!r} ({costs[name]:{digits}})" for name in names)


@dataclass(frozen=True)
class _Ranked:
    """A layer's blocks, best first, by what they are worth for their cost."""

    keys: Tensor  # float64 (blocks,), rising: minus what each is worth
    cost: LayerCost
    block_rows: int
    floor: int  # blocks

    @classmethod
    def of(cls, name: str, blocks: Blocks, cost: LayerCost, exponent: float) -> "_Ranked":
        worth = blocks.scores[name].detach().flatten().double().cpu()
        if cost.per_weight > 0:
            weight = cost.per_weight**exponent
            worth = torch.where(worth < 0, worth * weight, worth / weight)
        return cls(worth.neg().sort().values, cost, blocks.block_rows[name], blocks.floors[name])

    @property
    def blocks(self) -> int:
        return len(self.keys)

    def cost_of(self, count: int) -> float:
        return self.cost.total(count * self.block_rows)

    def filled(self, count: int) -> int:
        """So many blocks, or all where they cost no more than that."""
        return self.blocks if self.cost_of(count) >= self.cost_of(self.blocks) else count

    def above(self, threshold: float) -> int:
        """Blocks worth more than the threshold, the floor at least."""
        count = int(torch.searchsorted(self.keys, -threshold, right=False))
        return self.filled(max(count, self.floor))

    def equal_to_next(self, count: int) -> int:
        """Blocks that are worth as much as the first that is not among so many."""
        return int(torch.searchsorted(self.keys, self.keys[count], right=True)) - count


def _counts_within(layers: list[_Ranked], limit: float) -> list[int]:
    """Blocks to keep of each layer."""
    counts = [layer.above(_lowest_threshold(layers, limit)) for layer in layers]
    # What is left goes to the best blocks that still fit, ties to the earlier layer.
    spent = math.fsum(layer.cost_of(count) for layer, count in zip(layers, counts, strict=True))
    open_layers = {i for i, layer in enumerate(layers) if counts[i] < layer.blocks}
    while open_layers:
        i = min(open_layers, key=lambda i: (float(layers[i].keys[counts[i]]), i))
        layer, count = layers[i], counts[i]
        more = _most_that_fit(layer, count, limit - spent)
        if more > 0:
            counts[i] = layer.filled(count + more)
            spent = math.fsum(layers[j].cost_of(counts[j]) for j in range(len(layers)))
        if counts[i] == layer.blocks or more == 0:
            open_layers.discard(i)
    return counts


def _most_that_fit(layer: _Ranked, count: int, left: float) -> int:
    """How many of the equally good next blocks fit into what is left of the budget."""
    now, most = layer.cost_of(count), layer.equal_to_next(count)
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if layer.cost_of(count + middle) - now <= left else (low, middle - 1)
    return low


def _lowest_threshold(layers: list[_Ranked], limit: float) -> float:
    """The least number for which all that is worth more fits; infinite where only the floors do."""

    def fits(threshold: float) -> bool:
        return math.fsum(layer.cost_of(layer.above(threshold)) for layer in layers) <= limit

    keys = [layer.keys for layer in layers if layer.blocks]
    # Nothing lies below it.
    low = min((-float(rising[-1]) for rising in keys), default=0.0) - 1
    high = max((-float(rising[0]) for rising in keys), default=0.0)
    if fits(low):
        return low
    if not fits(high):
        return math.inf
    # fits(high) and not fits(low) hold, down to neighbouring floats.
    while True:
        middle = low + (high - low) / 2
        if not low < middle < high:
            return high
        low, high = (low, middle) if fits(middle) else (middle, high)
