"""Exactly the k largest scores of many tensors."""

import re
from collections.abc import Mapping, Sequence
from numbers import Integral

import torch
from torch import Tensor

from sparseprune import ops


def topk_masks(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Select exactly the k largest scores over all tensors together; ties go to the earlier position.

    The earlier tensor wins a tie, then the lower flat index, so that the result does not depend on the
    number of threads; -0.0 equals 0.0. float16 and bfloat16 are compared as float32, mixed precisions as
    float64.

    Args:
        scores: tensors of any shapes, floating point, on one device, finite.
        k: number of scores to select, 0 to the number of all.
    Returns:
        bool tensors of the scores' shapes, True = selected, with k True in total.
    Raises:
        TypeError: a score is not a floating-point tensor, or k is not an int.
        ValueError: k is out of range, devices differ, or a score is NaN or infinite (the error has the
            tensor's index).
    """
    if isinstance(scores, Tensor):
        raise TypeError("topk_masks: expected a sequence of tensors, got one tensor; wrap it in a list")
    if isinstance(k, bool) or not isinstance(k, Integral):
        raise TypeError(f"topk_masks: expected k to be an int, got {type(k).__name__}")
    for i, score in enumerate(scores):
        if not isinstance(score, Tensor) or not score.is_floating_point():
            got = score.dtype if isinstance(score, Tensor) else type(score).__name__
            raise TypeError(f"topk_masks: expected floating-point tensors, got {got} in scores[{i}]")
        if score.device != scores[0].device:
            raise ValueError(
                f"topk_masks: expected all scores on {scores[0].device}, got {score.device} in scores[{i}]"
            )
    n = sum(score.numel() for score in scores)
    if not 0 <= k <= n:
        raise ValueError(f"topk_masks: expected k in 0..{n} (number of scores), got {k}")
    if not scores:
        return []
    widest = torch.float64 if any(score.dtype == torch.float64 for score in scores) else torch.float32
    return ops.topk_masks([score.detach().to(widest) for score in scores], int(k))


def topk_named(scores: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    try:
        return dict(zip(scores, topk_masks(list(scores.values()), k), strict=True))
    except ValueError as error:
        found = re.search(r"got (\S+) in scores\[(\d+)\]$", str(error))
        if found is None:
            raise
        value, name = found[1], list(scores)[int(found[2])]
        raise ValueError(
            f"masks: expected finite scores, got {value} in {name!r}; "
            "look at the loss and the inputs of the scored batches"
        ) from None
