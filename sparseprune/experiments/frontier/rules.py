"""Networks of equal training FLOPs: how a budget of operations is divided among layers, and small dense ones.

A budget is a fraction of the dense network's floating-point operations in a training step, as counted by
:func:`sparseprune.cost.flops.flops_per_step`. No rule exceeds it; what is left over is less than one block of
the costliest layer, or one in each layer where a rule sets the layers' densities. The rule "time" spends, in
place of the operations, the measured seconds that they take where all layers have one density.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sparseprune.cost.flops import flops_per_step
from sparseprune.cost.seconds import LayerCost
from sparseprune.experiments.models.registry import MODELS, WIDTHS, Network
from sparseprune.select import masks as selection
from sparseprune.select.budget import EXPONENT, BudgetError, select_within, total_cost

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
) -> dict[str, Tensor]:
    """Masks of the best scores that cost no more than a budget, by one of five rules.

    "uniform": all layers have one density. "erk": densities of Erdos-Renyi-kernel graphs, see
    :func:`erk_density`. "global": one threshold for all scores. "cost": one threshold for all of
    score / cost^exponent, see :func:`sparseprune.select.budget.select_within`. "time": the same with measured
    costs, within the seconds that the masks of "uniform" take. Every layer keeps one block at least.

    Args:
        rule: one of `RULES`.
        scores: ``{parameter name: score}``, higher = keep, finite.
        costs: of the same names; see :func:`sparseprune.cost.seconds.flops_costs`.
        budget: fraction of the cost of all weights, in (0, 1].
        block: (V, 1); see :func:`sparseprune.select.masks.select_masks`.
        exponent: of the rules "cost" and "time", 0 to 1.
        seconds: measured costs, for the rule "time"; see :func:`sparseprune.cost.seconds.measured_costs`.
    Returns:
        ``{parameter name: bool tensor of the score's shape}``, True = keep.
    Raises:
        ValueError: an unknown rule, a budget out of range, or below one block in each layer (BudgetError).
    """
    if rule not in RULES:
        raise ValueError(f"frontier: expected a rule of {', '.join(RULES)}, got {rule!r}")
    check_budget({name: score.shape for name, score in scores.items()}, costs, budget, block)
    limit = budget * math.fsum(costs[name].dense for name in scores)
    if rule == "uniform":
        return _layerwise(scores, dict.fromkeys(scores, 1.0), costs, limit, block)
    if rule == "erk":
        densities = {name: erk_density(score.shape) for name, score in scores.items()}
        return _layerwise(scores, densities, costs, limit, block)
    if rule == "global":
        return _global(scores, costs, limit, block)
    if rule == "time":
        assert seconds is not None
        uniform = _layerwise(scores, dict.fromkeys(scores, 1.0), costs, limit, block)
        costs, limit = seconds, total_cost(uniform, seconds)
    return select_within(scores, costs, limit, exponent=exponent, block=block, min_per_layer=1)


def erk_density(shape: torch.Size) -> float:
    """A layer's density up to a factor that all layers share: the sum of the weight's sizes by their product.

    (n_in + n_out + k_h + k_w) / (n_in n_out k_h k_w) for convolutions, without kernel sizes for linear
    layers. (The paper writes sparsities, 1 - this; its code sets densities, which is what is meant.)

    Args:
        shape: of the weight.
    Returns:
        the density before it is scaled and capped at 1.
    Reference:
        Evci, Gale, Menick, Castro, Elsen, "Rigging the lottery: making all tickets winners", 2020,
        arXiv:1911.11134, section 3.
    """
    return sum(shape) / shape.numel()


def check_budget(
    shapes: Mapping[str, torch.Size], costs: Mapping[str, LayerCost], budget: float, block: tuple[int, int]
) -> None:
    """Raise ValueError for a budget that no rule can meet with weights of these shapes and such blocks."""
    if not 0 < budget <= 1:
        raise ValueError(
            f"frontier: expected budgets in (0, 1], fractions of the dense training FLOPs, got {budget}"
        )
    selection.check_selection(shapes, 0.0, "global", block)
    needed = _cost(selection.rows_of_blocks(shapes, block[0]), costs)
    total = math.fsum(costs[name].dense for name in shapes)
    if needed > budget * total:
        raise BudgetError(
            f"frontier: expected a budget of at least {needed / total:.3g}, "
            f"that of one block of {block[0]}x1 in each layer, got {budget}"
        )


def training_flops(network: Network) -> int:
    """Floating-point operations of one sample in a training step of the dense network."""
    with torch.device("meta"):
        model = MODELS[network.name](network.sample, network.classes, network.width)
        return flops_per_step(model, network.sample, 1)


def small_dense(network: Network, budget: float) -> Network:
    """Shrink a network's width until a training step takes about this fraction of the operations.

    Args:
        network: the large network.
        budget: fraction of its training FLOPs, in (0, 1].
    Returns:
        the network of the same depth whose operations are nearest; a tie goes to the smaller one. Few
        channels leave few widths to choose from, so that it may be several per cent off.
    """
    wanted = budget * training_flops(network)

    def candidate(part: int) -> Network:
        return replace(network, width=network.width * part / WIDTHS)

    parts = range(1, WIDTHS + 1)
    # The first that takes more than that, and the one before it: more width never means fewer operations.
    i = bisect.bisect_right(parts, wanted, key=lambda part: training_flops(candidate(part)))
    nearest = [candidate(part) for part in parts[max(i - 1, 0) : i + 1]]
    return min(nearest, key=lambda small: abs(training_flops(small) - wanted))


def _cost(kept: Mapping[str, int], costs: Mapping[str, LayerCost]) -> float:
    return math.fsum(costs[name].of(count) for name, count in kept.items())


def _layerwise(
    scores: Mapping[str, Tensor],
    densities: Mapping[str, float],
    costs: Mapping[str, LayerCost],
    limit: float,
    block: tuple[int, int],
) -> dict[str, Tensor]:
    """The best of each layer at min(1, scale · density), with the largest scale that the limit allows."""
    rows = selection.rows_of_blocks({name: score.shape for name, score in scores.items()}, block[0])
    blocks = {name: score.numel() // rows[name] for name, score in scores.items()}

    def kept(scale: float) -> dict[str, int]:  # blocks
        return {
            name: max(round(count * min(1.0, scale * densities[name])), 1) for name, count in blocks.items()
        }

    def fits(scale: float) -> bool:
        return _cost({name: count * rows[name] for name, count in kept(scale).items()}, costs) <= limit

    low, high = 0.0, 1 / min(densities.values())
    if fits(high):
        low = high
    while low < (middle := low + (high - low) / 2) < high:
        low, high = (middle, high) if fits(middle) else (low, middle)
    masks: dict[str, Tensor] = {}
    for name, count in kept(low).items():
        sparsity = 1 - count / blocks[name]
        masks |= selection.select_masks({name: scores[name]}, sparsity, block=(rows[name], 1))
    return masks


def _global(
    scores: Mapping[str, Tensor], costs: Mapping[str, LayerCost], limit: float, block: tuple[int, int]
) -> dict[str, Tensor]:
    """The best of all layers, with the lowest sparsity that the limit allows."""
    shapes = {name: score.shape for name, score in scores.items()}
    total = sum(score.numel() for score in scores.values())

    def masks(kept: int) -> dict[str, Tensor]:
        return selection.select_masks(scores, 1 - kept / total, block=block, min_per_layer=1)

    low, high = sum(selection.rows_of_blocks(shapes, block[0]).values()), total + 1
    best = masks(low)
    while high - low > 1:
        middle = (low + high) // 2
        found = masks(middle)
        if _cost({name: int(mask.sum()) for name, mask in found.items()}, costs) <= limit:
            low, best = middle, found
        else:
            high = middle
    return best
