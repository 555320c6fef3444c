"""|g ⊙ w| / Σ|g ⊙ w|"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from sparseprune.scores.base import (
    Batches,
    Loss,
    Scores,
    functional,
    normalised,
    pairs,
    prunable,
    sum_of_gradients,
)


def snip(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    bn: str = "train",
    exclude: Iterable[str] = (),
) -> Scores:
    """Score weights by SNIP's connection sensitivity, |g ⊙ w| / Σ|g ⊙ w|.

    g = ∂L/∂w is the sum, with signs, over all batches of the gradient of ``loss`` (cross-entropy: the mean
    over a batch, so that every batch counts alike, a smaller last one too). Σ runs over all prunable
    weights. The paper
    uses one batch of 100 (MNIST) or 128 (CIFAR-10) samples. The authors' code has batch-norm in inference
    mode: ``bn="eval"``.

    Args:
        model, batches, loss, bn, exclude: see :mod:`sparseprune.scores`; what is excluded does not count in
        Σ.
    Returns, raises:
        see :mod:`sparseprune.scores`.
    Reference:
        Lee, Ajanthan, Torr, "SNIP: Single-shot network pruning based on connection sensitivity", 2019,
        arXiv:1810.02340.
    """
    weights = prunable(model, exclude)
    with functional(model, weights, bn) as (call, leaves):
        g = sum_of_gradients(call, leaves, pairs("snip", batches), loss)
        with torch.no_grad():
            scores = [g_l.mul_(w_l).abs_() for g_l, w_l in zip(g, leaves, strict=True)]
        return normalised(weights, scores)
