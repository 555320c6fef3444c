"""Networks of equal training FLOPs: how a budget of operations is divided among layers, and small dense ones.

A budget is a fraction of the dense network's floating-point operations in a training step, as counted by
:func:`sparseprune.cost.flops.flops_per_step`. No rule exceeds it; what is left over is less than one block of
the costliest layer, or one in each layer where a rule sets the layers' densities. The rule "time" spends, in
place of the operations, the measured seconds that they take where all layers have one density.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sparseprune.cost.flops import flops_per_step
from sparseprune.experiments.models import Network, narrowed, outline
from sparseprune.select import quotas
from sparseprune.select.blocks import Blocks, check_blocks
from sparseprune.select.budget import EXPONENT, BudgetError, LayerCost, costs_of, within

RULES = ("uniform", "erk", "global", "cost", "time")
LAYERWISE = ("uniform", "erk")  # rules that do not compare scores of different layers
WEIGHTED = ("cost", "time")  # rules with an exponent


def masks_within(
    rule: str,
    scores: Mapping[str, Tensor],
    costs: Mapping[str, LayerCost],
    budget: float,
    *,
    block: tuple[int, int] = (1, 1),
    exponent: float = EXPONENT,
    seconds: Mapping[str, LayerCost] | None = None,
    whole: float | None = None,
) -> dict[str, Tensor]:
    """Masks of the best scores that cost no more than a budget, by one of five rules.

    "uniform": all layers have one density. "erk": densities of Erdos-Renyi-kernel graphs, see
    :func:`erk_density`. "global": one threshold for all scores. "cost": one threshold for all of
    score / cost^exponent, see :func:`sparseprune.select.budget.within`. "time": the same with measured
    costs, within the seconds that the masks of "uniform" take. Every layer keeps one block at least.

    Args:
        rule: one of `RULES`.
        scores: ``{parameter name: score}``, higher = keep, finite.
        costs: of the same names; see :func:`sparseprune.cost.seconds.flops_costs`.
        budget: fraction of `whole`, in (0, 1].
        block: (V, 1); see :func:`sparseprune.prune`.
        exponent: of the rules "cost" and "time", 0 to 1.
        seconds: measured costs, for the rule "time"; see :func:`sparseprune.cost.seconds.measured_costs`.
        whole: cost of the network that the budget is a fraction of; of all these weights when None.
    Returns:
        ``{parameter name: bool tensor of the score's shape}``, True = keep.
    Raises:
        ValueError: an unknown rule, a budget out of range, or below one block in each layer (BudgetError).
    """
    if rule not in RULES:
        raise ValueError(f"frontier: expected a rule of {', '.join(RULES)}, got {rule!r}")
    shapes = {name: score.shape for name, score in scores.items()}
    whole = total_of(costs) if whole is None else whole
    block_rows = check_budget(shapes, costs, budget, block, whole)
    blocks = Blocks.of(scores, block_rows, floor=1)
    limit = budget * whole
    if rule == "uniform":
        counts = _layerwise(blocks, dict.fromkeys(scores, 1.0), costs, limit)
    elif rule == "erk":
        counts = _layerwise(blocks, {name: quotas.erk_density(shapes[name]) for name in shapes}, costs, limit)
    elif rule == "global":
        counts = _global(blocks, costs, limit)
    else:
        if rule == "time":
            assert seconds is not None
            uniform = _layerwise(blocks, dict.fromkeys(scores, 1.0), costs, limit)
            costs, limit = seconds, _cost(blocks, uniform, seconds)
        counts = within(blocks, costs, limit, exponent)
    return blocks.masks(counts)


def check_budget(
    shapes: Mapping[str, torch.Size],
    costs: Mapping[str, LayerCost],
    budget: float,
    block: tuple[int, int],
    whole: float,
) -> dict[str, int]:
    """Rows of each layer's blocks; ValueError for a budget that no rule can meet with such blocks."""
    if not 0 < budget <= 1:
        raise ValueError(
            f"frontier: expected budgets in (0, 1], fractions of the dense training FLOPs, got {budget}"
        )
    block_rows = check_blocks(shapes, block)
    needed = math.fsum(costs_of(dict.fromkeys(shapes, 1), block_rows, costs).values())
    if needed > budget * whole:
        raise BudgetError(
            f"frontier: expected a budget of at least {needed / whole:.3g}, "
            f"that of one block of {block[0]}x1 in each layer, got {budget}"
        )
    return block_rows


def total_of(costs: Mapping[str, LayerCost]) -> float:
    """What the layers cost with all their weights."""
    return math.fsum(cost.dense for cost in costs.values())


def training_flops(network: Network) -> int:
    """Floating-point operations of one sample in a training step of the dense network."""
    model = outline(network)
    # Also of the sample.
    with next(model.parameters()).device:
        return flops_per_step(model, network.sample, 1)


def small_dense(network: Network, budget: float) -> Network:
    """Shrink a network's width until a training step takes about this fraction of the operations.

    Args:
        network: the large network; it has a width.
        budget: fraction of its training FLOPs, in (0, 1].
    Returns:
        the network of the same depth whose operations are nearest; a tie goes to the smaller one. Few
        channels leave few widths to choose from, so that it may be several per cent off.
    """
    return narrowed(network, budget * training_flops(network), training_flops)


def _cost(blocks: Blocks, counts: Mapping[str, int], costs: Mapping[str, LayerCost]) -> float:
    return math.fsum(costs_of(counts, blocks.block_rows, costs).values())


def _layerwise(
    blocks: Blocks, densities: Mapping[str, float], costs: Mapping[str, LayerCost], limit: float
) -> quotas.Counts:
    """As many of each layer as min(1, scale · density) says, with the largest scale that the limit allows."""

    def at(scale: float) -> quotas.Counts:
        return quotas.by_hand(blocks, {name: min(1.0, scale * of) for name, of in densities.items()})

    def fits(scale: float) -> bool:
        return _cost(blocks, at(scale), costs) <= limit

    return at(quotas.largest(fits, 1 / min(densities.values())))


def _global(blocks: Blocks, costs: Mapping[str, LayerCost], limit: float) -> quotas.Counts:
    """The best of all layers, with the lowest sparsity that the limit allows."""
    total = blocks.weights_of(blocks.numbers)

    def at(kept: int) -> quotas.Counts:
        return quotas.global_(blocks, blocks.kept_at(1 - kept / total))

    low, high = sum(blocks.block_rows.values()), total + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = _cost(blocks, at(middle), costs) <= limit
        low, high = (middle, high) if fits else (low, middle)
    return at(low)
