"""θ ⊙ Hg"""

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.scores.base import (
    Batches,
    Loss,
    Scores,
    functional,
    gradients,
    pairs,
    prunable,
    sum_of_gradients,
)


def grasp(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    temperature: float = 200.0,
    bn: str = "train",
    exclude: Iterable[str] = (),
) -> Scores:
    """Score weights by what their removal does to the gradient flow (GraSP), θ ⊙ Hg.

    The paper's S(−θ) = −θ ⊙ Hg removes the highest; this is −S(−θ), so that the highest stay. g is the
    gradient and H the Hessian of L = Σ over batches of ``loss(model(input) / T, target)``; Hg is computed
    as ∂/∂θ (stopgrad(g)ᵀ ∂L/∂θ), batch by batch. The paper scores 10 samples a class (25 for Tiny-ImageNet)
    and keeps batch-norm in training mode.

    Args:
        model, batches, loss, bn, exclude: see :mod:`sparseprune.scores`; g does not include what is excluded.
            Batches are iterated twice; an iterator, which can be used only once, is first held in memory as a
            list.
        temperature: T, above 0.
    Returns:
        see :mod:`sparseprune.scores`.
    Raises:
        ValueError: ``temperature`` is not positive; all else see :mod:`sparseprune.scores`.
    Reference:
        Wang, Zhang, Grosse, "Picking winning tickets before training by preserving gradient flow", 2020,
        arXiv:2002.07376.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"grasp: expected temperature > 0, got {temperature}")

    def tempered(output: Tensor, target: Tensor) -> Tensor:
        return loss(output / temperature, target)

    if isinstance(batches, Iterator):
        batches = list(batches)
    weights = prunable(model, exclude)
    with functional(model, weights, bn) as (call, leaves):
        # With one batch, g is the gradient at hand in the second pass, and the first would compute it twice.
        one = isinstance(batches, list | tuple) and len(batches) == 1
        g = None if one else sum_of_gradients(call, leaves, pairs("grasp", batches), tempered)

        def flow(output: Tensor, target: Tensor) -> Tensor:
            g_batch = gradients(tempered(output, target), leaves, create_graph=True)
            total = leaves[0].new_zeros(
                (), requires_grad=True
            )  # so that a loss without curvature gives Hg = 0
            for g_l, fixed in zip(g_batch, g_batch if g is None else g, strict=True):
                total = total + (fixed.detach() * g_l).sum()
            return total

        hg = sum_of_gradients(call, leaves, pairs("grasp", batches), flow)
        with torch.no_grad():
            scores = [hg_l.mul_(w_l).detach().float() for hg_l, w_l in zip(hg, leaves, strict=True)]
        return dict(zip(weights, scores, strict=True))
