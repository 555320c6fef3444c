"""|∂L(θ_M)/∂c|: the gradient through the first steps of training"""

import itertools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.scores.base import Masks, Scores, prunable, score_dtype
from sparseprune.scores.batches import Batches, items
from sparseprune.scores.frozen import check_scalar, check_used, differentiable_twice, functional, normalised
from sparseprune.scores.losses import Loss, of_batch
from sparseprune.scores.ranks import sum_over_ranks


def prospr(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    steps: int = 3,
    lr: float = 0.1,
    momentum: float = 0.0,
    detach_first: bool = False,
    bn: str = "train",
    exclude: Iterable[str] = (),
    masks: Masks | None = None,
) -> Scores:
    """Score weights by the meta-gradient of their gates, ``|∂L(θ_M)/∂c| / Σ`` at c = 1 (ProsPr).

    θ₀ = c ⊙ θ, and θ_i = θ_{i-1} − lr · v_i with v_i = momentum · v_{i-1} + ∂L_i/∂θ_{i-1}: M ``steps`` of SGD
    on all parameters, each on the next of the batches, which start over where they run out. L is the loss of
    the batch after them. Since c scales the weights, ∂L/∂c = θ ⊙ ∂L/∂θ₀. The graph of all steps is held in
    memory, so no micro-batches are offered.

    The paper's code runs with a rate of 0.5 and momentum 0.9, and does not differentiate through the first
    gradient that enters the momentum: ``preset="authors"``.

    Args:
        model, batches, loss, bn, exclude, masks: see :mod:`sparseprune.scores`.
        steps: M, 1 or more.
        lr: learning rate of the steps.
        momentum: momentum of the steps.
        detach_first: whether the first velocity counts as a constant.
    Returns:
        see :mod:`sparseprune.scores`.
    Reference:
        Alizadeh, Tailor, Zintgraf, van Amersfoort, Farquhar, Lane, Gal, "Prospect pruning: finding trainable
        weights at initialization using meta-gradients", 2022, arXiv:2202.08132, algorithm 1.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"prospr: expected steps to be a whole number, 1 or more, got {steps!r}")
    weights = prunable(model, exclude)
    of_model = of_batch(loss)
    taken = list(itertools.islice(items("prospr", batches, loss), steps + 1))
    data = itertools.cycle(taken)
    with functional(model, weights, bn, masks=masks) as frozen, differentiable_twice():
        others = {name: p.requires_grad_(p.is_floating_point()) for name, p in frozen.others.items()}
        names = [*frozen.leaves, *(name for name, p in others.items() if p.requires_grad)]
        theta: list[Tensor] = [frozen.leaves[n] if n in frozen.leaves else others[n] for n in names]

        def loss_at(theta: Sequence[Tensor]) -> Tensor:
            now = dict(zip(names, theta, strict=True))
            free = {name: now.get(name, p) for name, p in others.items()}
            value = frozen.loss(of_model, next(data), [now[name] for name in frozen.leaves], free)
            check_scalar(value)
            return value

        velocity: list[Tensor] | None = None
        for _ in range(steps):
            g = torch.autograd.grad(loss_at(theta), theta, create_graph=True, materialize_grads=True)
            if velocity is None:
                velocity = [g_i.detach() if detach_first else g_i for g_i in g]
            else:
                velocity = [momentum * v_i + g_i for v_i, g_i in zip(velocity, g, strict=True)]
            theta = [theta_i - lr * v_i for theta_i, v_i in zip(theta, velocity, strict=True)]
        leaves = list(frozen.leaves.values())
        meta = torch.autograd.grad(loss_at(theta), leaves, allow_unused=True)
        check_used(frozen, meta)
        scores = [(g_l * w_l).detach().to(score_dtype(w_l)) for g_l, w_l in zip(meta, leaves, strict=True)]
        sum_over_ranks(scores)
        return normalised(frozen, [score.abs_() for score in scores])
