"""|g| / Σ|g|"""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import nn

from sparseprune.scores.base import (
    Batches,
    Loss,
    Scores,
    as_float32,
    functional,
    normalised,
    pairs,
    prunable,
    sum_of_gradients,
)


def gradient(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    bn: str = "train",
    exclude: Iterable[str] = (),
) -> Scores:
    """Score weights by the normalised magnitude of their gradient, |g| / Σ|g|.

    g is the sum, with signs, over all batches of the gradient of ``loss`` (cross-entropy: the mean over a
    batch, so that every batch counts alike, a smaller last one too; for a sum over samples pass a loss that
    sums). Σ runs over all prunable weights.

    Args:
        model: the network.
        batches: iterable of (input, target); moved to the model's device one at a time.
        loss: ``loss(model(input), target)`` is a scalar.
        bn: statistics that batch-norm uses, ``"train"`` or ``"eval"``.
        exclude: parameters or modules to leave out; they do not count in Σ.
    Returns:
        ``{parameter name: float32 tensor of the weight's shape}``.
    Raises:
        ValueError: no batches, or ``loss`` is not a scalar that depends on the weights.
        TypeError: ``batches`` is not an iterable of (input, target).
    """
    weights = prunable(model, exclude)
    with functional(model, weights, bn) as (call, leaves):
        g = sum_of_gradients(call, leaves, pairs("gradient", batches), loss)
        return normalised(weights, [as_float32(g_l.abs_()) for g_l in g])
