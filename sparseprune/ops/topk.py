"""The k largest of many scores: wrappers and fake kernels of the operators."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def topk_masks(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Exactly ``k`` True over all masks together: the ``k`` largest scores, ties to the earlier position."""
    return torch.ops.sparseprune.topk_masks.default(list(scores), k)


def topk_outside(
    scores: Tensor, crow: Tensor, col: Tensor, first_row: int, best: Tensor, best_at: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The ``k`` largest scores outside a pattern, of a matrix that is looked at some rows at a time.

    Args:
        scores: ``(r, cols)`` of the block rows from ``first_row`` on, float32 or float64, finite.
        crow, col: the pattern, int32; see :class:`sparseprune.ops.Pattern`.
        first_row: number of the first block row.
        best, best_at: scores and positions, block row * cols + column, of what earlier rows gave; empty at
            first.
        k: how many are wanted.
    Returns:
        the best ``min(k, all)`` scores, and int64 positions, ascending. Ties go to the earlier position.
    Raises:
        ValueError: the pattern has no such rows, or a score is not finite.
    """
    return torch.ops.sparseprune.topk_outside.default(scores, crow, col, first_row, best, best_at, k)


def _fake_topk_outside(scores: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    found = torch.library.get_ctx().new_dynamic_size()
    return scores.new_empty(found), scores.new_empty(found, dtype=torch.int64)


def _fake_topk_masks(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    return [torch.empty_like(s, dtype=torch.bool, memory_format=torch.contiguous_format) for s in scores]


FAKES: dict[str, Callable[..., Any]] = {"topk_masks": _fake_topk_masks, "topk_outside": _fake_topk_outside}
