"""|g(w ⊙ m) ⊙ w|"""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import nn

from sparseprune.scores.base import Masks, Scores, prunable
from sparseprune.scores.batches import Batches, parts
from sparseprune.scores.frozen import functional, normalised, sum_of_gradients
from sparseprune.scores.losses import Loss


def force(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    bn: str = "train",
    exclude: Iterable[str] = (),
    masks: Masks | None = None,
    micro_batch_size: int | None = None,
) -> Scores:
    """Score all weights by their sensitivity in the pruned network (FORCE), ``|g(w ⊙ m) ⊙ w| / Σ``.

    g(w ⊙ m) is the gradient of the loss at the pruned network with respect to every weight, those that are
    zero there as well, summed with signs over the batches; w is the weight of the dense network. So what one
    round removed may return in a later one. In :func:`sparseprune.prune` it takes 60 rounds, as in the paper.
    The authors' code takes another batch in every round: ``preset="authors"``. In the first round, without
    masks, this is SNIP.

    Args:
        model, batches, loss, bn, exclude, masks, micro_batch_size: see :mod:`sparseprune.scores`.
    Returns:
        see :mod:`sparseprune.scores`.
    Reference:
        de Jorge, Sanyal, Behl, Torr, Rogez, Dokania, "Progressive skeletonization: trimming more fat from a
        network at initialization", 2021, arXiv:2006.09081, section 4.
    """
    weights = prunable(model, exclude)
    with functional(model, weights, bn, masks=masks) as frozen:
        g = sum_of_gradients(frozen, parts("force", batches, loss, micro_batch_size), loss)
        dense = (weight.detach() for weight in weights.values())
        return normalised(frozen, [g_l.mul_(w_l).abs_() for g_l, w_l in zip(g, dense, strict=True)])
