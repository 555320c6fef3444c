"""|g ⊙ w| / Σ|g ⊙ w|, once or in rounds"""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import nn

from sparseprune.scores.base import Masks, Scores, prunable
from sparseprune.scores.batches import Batches, parts
from sparseprune.scores.frozen import functional, normalised, sum_of_gradients
from sparseprune.scores.losses import Loss


def snip(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    bn: str = "train",
    exclude: Iterable[str] = (),
    masks: Masks | None = None,
    micro_batch_size: int | None = None,
) -> Scores:
    """Score weights by SNIP's connection sensitivity, ``|g ⊙ w| / Σ|g ⊙ w|``.

    g = ∂L/∂w is the sum, with signs, over all batches of the gradient of ``loss`` (cross-entropy: the mean
    over a batch, so that every batch counts alike, a smaller last one too). Σ runs over all prunable weights.
    The paper uses one batch of 100 (MNIST) or 128 (CIFAR-10) samples. The authors' code differs by having
    batch-norm in inference mode, which ``preset="authors"`` does, by pruning biases as well, and by training
    other initial weights than those it scored; these two are not offered.

    Args:
        model, batches, loss, bn, exclude, masks, micro_batch_size: see :mod:`sparseprune.scores`; what is
            excluded does not count in Σ.
    Returns:
        see :mod:`sparseprune.scores`.
    Reference:
        Lee, Ajanthan, Torr, "SNIP: Single-shot network pruning based on connection sensitivity", 2019,
        arXiv:1810.02340.
    """
    weights = prunable(model, exclude)
    with functional(model, weights, bn, masks=masks) as frozen:
        g = sum_of_gradients(frozen, parts("snip", batches, loss, micro_batch_size), loss)
        leaves = (leaf.detach() for leaf in frozen.leaves.values())
        return normalised(frozen, [g_l.mul_(w_l).abs_() for g_l, w_l in zip(g, leaves, strict=True)])


def iter_snip(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    bn: str = "train",
    exclude: Iterable[str] = (),
    masks: Masks | None = None,
    micro_batch_size: int | None = None,
) -> Scores:
    """Score weights by SNIP in the network that earlier rounds left, ``|g(w ⊙ m) ⊙ w ⊙ m|`` (Iter SNIP).

    In :func:`sparseprune.prune` it takes 60 rounds, as in the paper, each of which removes the same share of
    what is left; what is removed stays so. The gradient of a round is that of all batches. The authors' code
    takes another batch in every round: ``preset="authors"``.

    Args:
        model, batches, loss, bn, exclude, masks, micro_batch_size: see :mod:`sparseprune.scores`.
    Returns:
        see :mod:`sparseprune.scores`.
    Reference:
        de Jorge, Sanyal, Behl, Torr, Rogez, Dokania, "Progressive skeletonization: trimming more fat from a
        network at initialization", 2021, arXiv:2006.09081, section 4.
    """
    return snip(model, batches, loss, bn=bn, exclude=exclude, masks=masks, micro_batch_size=micro_batch_size)
