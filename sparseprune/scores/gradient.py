"""|g| / Σ|g|"""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import nn

from sparseprune.scores.base import Masks, Scores, prunable
from sparseprune.scores.batches import Batches, parts
from sparseprune.scores.frozen import functional, normalised, sum_of_gradients
from sparseprune.scores.losses import Loss


def gradient(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    bn: str = "train",
    exclude: Iterable[str] = (),
    masks: Masks | None = None,
    micro_batch_size: int | None = None,
) -> Scores:
    """Score weights by the normalised magnitude of their gradient, ``|g| / Σ|g|``.

    g is the sum, with signs, over all batches of the gradient of ``loss`` (cross-entropy: the mean over a
    batch, so that every batch counts alike, a smaller last one too; for a sum over samples pass a loss that
    sums). Σ runs over all prunable weights.

    Args:
        model, batches, loss, bn, exclude, masks, micro_batch_size: see :mod:`sparseprune.scores`; what is
            excluded does not count in Σ.
    Returns:
        see :mod:`sparseprune.scores`.
    """
    weights = prunable(model, exclude)
    with functional(model, weights, bn, masks=masks) as frozen:
        g = sum_of_gradients(frozen, parts("gradient", batches, loss, micro_batch_size), loss)
        return normalised(frozen, [g_l.abs_() for g_l in g])
