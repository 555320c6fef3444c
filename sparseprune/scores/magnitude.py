"""|w|"""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import nn

from sparseprune.scores.base import Scores, prunable, score_dtype
from sparseprune.scores.batches import Batches
from sparseprune.scores.losses import Loss


def magnitude(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    exclude: Iterable[str] = (),
) -> Scores:
    """Score weights by magnitude, ``|w|``.

    Args:
        model, exclude: see :mod:`sparseprune.scores`.
        batches, loss: not used.
    Returns:
        see :mod:`sparseprune.scores`.
    """
    return {
        name: weight.detach().abs().to(score_dtype(weight))
        for name, weight in prunable(model, exclude).items()
    }
