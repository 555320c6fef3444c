"""Pruning in several rounds: the network is scored anew after each; what was removed stays so, or may return.

After round r of T a fraction density^(r / T) of the weights stays: every round removes the same share of what
is left.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Masks = dict[str, Tensor]


def in_rounds(
    rounds: int,
    score: Callable[[Masks | None], Mapping[str, Tensor]],
    select: Callable[[Mapping[str, Tensor], float], Masks],
    *,
    revives: bool = False,
) -> Masks:
    """Score and select in turn, so many times.

    Args:
        rounds: T, 1 or more.
        score: function from the masks of the round before (None in the first) to the scores of all weights.
        select: function from scores and the part of the way that is done, r / T, to masks.
        revives: whether a weight that one round removed may return in the next.
    Returns:
        the masks of the last round.
    """
    masks: Masks | None = None
    for number in range(1, rounds + 1):
        scores = score(masks)
        if masks is not None and not revives:
            scores = never_again(scores, masks)
        masks = select(scores, number / rounds)
    assert masks is not None
    return masks


def sparsity_after(part: float, sparsity: float) -> float:
    """The fraction that is removed when this part of the rounds is done, 1 − density^part."""
    return sparsity if part == 1 else 1 - math.pow(1 - sparsity, part)


def never_again(scores: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scores, with those of removed weights below all others, finite, so that they stay removed.

    Args:
        scores: floating point, higher = keep; in float32 at least afterwards.
        masks: bool tensors of the same names and shapes, True = keep.
    """
    result = {}
    for name, score in scores.items():
        wide = score.to(torch.promote_types(score.dtype, torch.float32))
        # The mean of a block of up to 16 is computed from their sum, which must stay finite as well.
        result[name] = wide.masked_fill(~masks[name], torch.finfo(torch.float32).min / 64)
    return result
