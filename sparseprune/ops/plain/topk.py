"""The k largest of many scores in plain torch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparseprune.format.bsr import row_of_blocks


def topk_masks(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    n = sum(s.numel() for s in scores)
    if n >= 2**60:
        raise ValueError("topk_masks: expected fewer than 2^60 scores, got more")
    if not 0 <= k <= n:
        raise ValueError(f"topk_masks: expected k in 0..{n} (number of scores), got {k}")
    for i, s in enumerate(scores):
        if not torch.isfinite(s).all():
            found = "nan" if torch.isnan(s).any() else "inf"
            raise ValueError(f"topk_masks: expected finite scores, got {found} in scores[{i}]")
    if n == 0:
        return [torch.zeros_like(s, dtype=torch.bool) for s in scores]
    keys = ordered_as_integers(torch.cat([s.reshape(-1) for s in scores]))
    # Stable: ties to the earlier position.
    kept = torch.argsort(keys, descending=True, stable=True)[:k]
    mask = torch.zeros(n, dtype=torch.bool, device=keys.device)
    mask[kept] = True
    parts = mask.split([s.numel() for s in scores])
    return [part.reshape(s.shape).clone() for part, s in zip(parts, scores, strict=True)]


def ordered_as_integers(x: Tensor) -> Tensor:
    """Integers that compare as ``x`` (float32 or float64) does, -0.0 equal to 0.0.

    Sorted as floats, denormals would be zeros where the processor flushes them.
    """
    bits = x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int64)
    return torch.where(bits < 0, torch.iinfo(bits.dtype).min - bits, bits)


def topk_outside(
    scores: Tensor, crow: Tensor, col: Tensor, first_row: int, best: Tensor, best_at: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    rows, cols = scores.shape
    if not 0 <= first_row <= first_row + rows <= len(crow) - 1:
        raise ValueError(
            f"topk_outside: expected rows of the pattern's {len(crow) - 1}, got {rows} from row {first_row}"
        )
    if k < len(best):
        raise ValueError(f"topk_outside: expected k >= {len(best)} (number of the best so far), got {k}")
    if k > 0 and not torch.isfinite(scores).all():
        raise ValueError("topk_outside: expected finite scores, got nan or inf")
    starts = crow[first_row : first_row + rows + 1]
    its_col = col[int(starts[0]) : int(starts[-1])]
    outside = torch.ones(rows * cols, dtype=torch.bool, device=scores.device)
    outside[row_of_blocks(starts, its_col) * cols + its_col] = False
    found = outside.nonzero()[:, 0]
    all_scores = torch.cat([best, scores.reshape(-1)[found]])
    all_positions = torch.cat([best_at, found + first_row * cols])
    # Stable: ties to the earlier position.
    order = torch.argsort(ordered_as_integers(all_scores), descending=True, stable=True)[:k]
    order = order.sort().values
    return all_scores[order], all_positions[order]


SCHEMAS: dict[Callable[..., Any], str] = {
    topk_masks: "topk_masks(Tensor[] scores, int k) -> Tensor[]",
    topk_outside: "topk_outside(Tensor scores, Tensor crow, Tensor col, int first_row, Tensor best, "
    "Tensor best_at, int k) -> (Tensor, Tensor)",
}
