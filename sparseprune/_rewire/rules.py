"""Which blocks of a layer go, and which come: rules, and their application."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from sparseprune.select.topk import topk_masks


class Candidates(NamedTuple):
    """Where a layer may have weights after it was rewired.

    Attributes:
        positions: int64 (n + m,), row of blocks · columns + column of the weight as a matrix: those of the n
            blocks that the layer has, ascending, and of the m best others, ascending.
        gradient: (n + m,), mean of ``|dL/dW|`` over each block.
    """

    positions: Tensor
    gradient: Tensor


# (weights (n, V), candidates, (crow, col)) -> how much each of the n blocks is worth keeping, and how much
# each of the n + m candidates is worth having, where it is not kept.
Rule: TypeAlias = Callable[[Tensor, Candidates, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]


def by_magnitude(
    weights: Tensor, candidates: Candidates, pattern: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Blocks with the smallest mean |w| go, those with the largest gradient come: RigL, and SET where the
    gradient is random."""
    return weights.abs().mean(1), candidates.gradient


def is_constant_fan_in(crow: Tensor) -> bool:
    """Whether every row of blocks has as many."""
    return len(crow) > 1 and bool((crow.diff() == crow[1]).all())


def rewired(
    stay: Tensor, grow: Tensor, candidates: Candidates, kept: int, grown: int, rows: int | None = None
) -> Tensor:
    """The positions that a layer has next, int64 (kept + grown,), ascending.

    Args:
        stay: (n,) worth of its blocks.
        grow: (n + m,) worth of each candidate that is not kept.
        candidates: those.
        kept, grown: how many stay, and how many others come.
        rows: number of rows of blocks of which each keeps and gets as many; None where they may differ.
    """
    n = len(stay)
    own, others = candidates.positions[:n], candidates.positions[n:]
    # Of equals, what was just lost comes first, then the earlier position.
    if rows is None:
        stays = topk_masks([stay], kept)[0]
        back, new = topk_masks([grow[:n][~stays], grow[n:]], grown)
        stays[~stays] = back
        return merged(own[stays], others[new])
    stays = _best_of_rows(stay.view(rows, -1), kept // rows).flatten()
    positions = torch.cat([own[~stays].view(rows, -1), others.view(rows, -1)], 1)
    comes = _best_of_rows(
        torch.cat([grow[:n][~stays].view(rows, -1), grow[n:].view(rows, -1)], 1), grown // rows
    )
    return torch.cat([own[stays].view(rows, -1), positions[comes].view(rows, -1)], 1).sort(1).values.flatten()


def merged(a: Tensor, b: Tensor) -> Tensor:
    """Two lists of positions, ascending, as one; none is in both."""
    result = a.new_empty(len(a) + len(b))
    # Each comes after those of its own list and of the other that are smaller.
    for one, other in ((a, b), (b, a)):
        result[torch.searchsorted(other, one).add_(torch.arange(len(one), device=one.device))] = one
    return result


def _best_of_rows(worth: Tensor, count: int) -> Tensor:
    """The best so many of each row, ties to the earlier one, as a mask."""
    order = worth.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(worth, dtype=torch.bool).scatter_(1, order, True)


def pattern_at(positions: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """``(crow, col)``, int32, of blocks at positions."""
    row = positions // max(cols, 1)
    counts = torch.bincount(row, minlength=rows)
    crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return crow.int(), (positions - row * cols).int()
