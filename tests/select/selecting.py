"""From scores to masks in one call, as ``prune`` does it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparseprune.select import budget, quotas
from sparseprune.select.blocks import Blocks, check_blocks


def select_masks(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: quotas.Scope = "global",
    block: tuple[int, int] = (1, 1),
    min_per_layer: int = 0,
    allow_empty: bool = False,
) -> dict[str, Tensor]:
    rows = check_blocks({n: s.shape for n, s in scores.items()}, block, min_per_layer, allow_empty)
    blocks = Blocks.of(scores, rows, min_per_layer)
    quotas.check_scope(blocks, sparsity, scope)
    return blocks.masks(quotas.of_scope(blocks, sparsity, scope), allow_empty=allow_empty)


def select_within(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, budget.LayerCost],
    limit: float,
    *,
    exponent: float = budget.EXPONENT,
    block: tuple[int, int] = (1, 1),
    min_per_layer: int = 0,
    allow_empty: bool = False,
) -> dict[str, Tensor]:
    rows = check_blocks({n: s.shape for n, s in scores.items()}, block, min_per_layer, allow_empty)
    blocks = Blocks.of(scores, rows, min_per_layer)
    return blocks.masks(budget.within(blocks, costs, limit, exponent), allow_empty=allow_empty)
