"""θ ⊙ Hg, and |θ ⊙ Hg|"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.scores.base import Masks, Scores, dtype_of, prunable
from sparseprune.scores.batches import Batches, pairs, parts, repeatable
from sparseprune.scores.frozen import Frozen, differentiable_twice, functional, gradients, sum_of_gradients
from sparseprune.scores.losses import BatchLoss, Loss, check_logits, of_batch, takes_model
from sparseprune.scores.ranks import several_ranks

TEMPERATURE = 200.0  # of the paper


def grasp(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    temperature: float | None = None,
    halves: bool = False,
    bn: str = "train",
    exclude: Iterable[str] = (),
    masks: Masks | None = None,
    micro_batch_size: int | None = None,
) -> Scores:
    """Score weights by what their removal does to the gradient flow (GraSP), θ ⊙ Hg.

    The paper's S(−θ) = −θ ⊙ Hg removes the highest; this is −S(−θ), so that the highest stay. g is the
    gradient and H the Hessian of L = Σ over batches of ``loss(model(input) / T, target)``; Hg is computed
    as ∂/∂θ (stopgrad(g)ᵀ ∂L/∂θ), batch by batch. The paper scores 10 samples a class (25 for Tiny-ImageNet)
    and keeps batch-norm in training mode. The authors' code differs by splitting the batch, ordered by
    class, in two halves that hold different classes (``halves``, which ``preset="authors"`` sets), by drawing
    the last layer anew, and by keeping one weight too many; these two are not offered.

    Args:
        model, batches, loss, bn, exclude, masks, micro_batch_size: see :mod:`sparseprune.scores`; g does not
            include what is excluded. Batches are iterated twice; an iterator, which can be used only once,
            is first held in memory as a list.
        temperature: T, above 0; 200 where None. A loss of (model, batch) sees the logits, so that it is for
            it to divide them by 200: T is 1 then.
        halves: whether each batch is ordered by class and scored as two.
    Returns:
        see :mod:`sparseprune.scores`.
    Raises:
        ValueError: ``temperature`` is not positive, or another than 1 beside a loss of (model, batch), or
            targets of ``halves`` are no classes; all else see :mod:`sparseprune.scores`.
    Reference:
        Wang, Zhang, Grosse, "Picking winning tickets before training by preserving gradient flow", 2020,
        arXiv:2002.07376.
    """
    of_model = _tempered(loss, temperature)
    batches = list(_halves(batches, loss)) if halves else repeatable(batches)
    weights = prunable(model, exclude)
    with functional(model, weights, bn, masks=masks) as frozen, differentiable_twice():
        g = None
        # With one batch, g is the gradient at hand in the second pass, and the first would compute it twice.
        one = isinstance(batches, list | tuple) and len(batches) == 1
        if not one or micro_batch_size is not None or several_ranks():
            g = sum_of_gradients(frozen, parts("grasp", batches, loss, micro_batch_size), of_model)

        def flow(model: nn.Module, batch: Any) -> Tensor:
            return _flow(frozen, of_model(model, batch), g)

        hg = sum_of_gradients(frozen, parts("grasp", batches, loss, micro_batch_size), flow, may_vanish=True)
        leaves = (leaf.detach() for leaf in frozen.leaves.values())
        return {name: hg_l.mul_(w_l) for name, hg_l, w_l in zip(weights, hg, leaves, strict=True)}


def grasp_abs(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    temperature: float | None = None,
    halves: bool = False,
    bn: str = "train",
    exclude: Iterable[str] = (),
    masks: Masks | None = None,
    micro_batch_size: int | None = None,
) -> Scores:
    """Score weights by how much their removal changes the gradient flow, either way: ``|θ ⊙ Hg|``.

    Args:
        model, batches, loss, temperature, halves, bn, exclude, masks, micro_batch_size: see :func:`grasp`.
    Returns:
        see :func:`grasp`.
    Reference:
        Frankle, Dziugaite, Roy, Carbin, "Pruning neural networks at initialization: why are we missing the
        mark?", 2021, arXiv:2009.08576, which found it better than GraSP.
    """
    signed = grasp(
        model,
        batches,
        loss,
        temperature=temperature,
        halves=halves,
        bn=bn,
        exclude=exclude,
        masks=masks,
        micro_batch_size=micro_batch_size,
    )
    return {name: score.abs_() for name, score in signed.items()}


def _tempered(loss: Loss, temperature: float | None) -> BatchLoss:
    """The loss of logits / T as a function of (model, batch)."""
    given = takes_model(loss)
    t = (1.0 if given else TEMPERATURE) if temperature is None else temperature
    if not 0 < t < math.inf:
        raise ValueError(f"grasp: expected temperature > 0, got {t}")
    if given and t != 1:
        raise ValueError(
            f"grasp: expected no temperature beside a loss that takes the model, got {t}; divide the logits "
            "by it in that loss"
        )
    if given:
        return of_batch(loss)

    def of_logits(output: Tensor, target: Tensor) -> Tensor:
        check_logits(output)
        return loss(output / t, target)

    return of_batch(of_logits)


def _flow(frozen: Frozen, value: Tensor, g: list[Tensor] | None) -> Tensor:
    """stopgrad(g)ᵀ ∂L/∂θ, with the gradient of this batch where g is None."""
    g_batch = gradients(value, frozen, create_graph=True)
    # So that a loss without curvature gives Hg = 0.
    total = value.new_zeros((), requires_grad=True)
    for i, g_l in enumerate(g_batch):
        if g_l is not None:
            fixed = g_l if g is None else g[i]
            total = total + (fixed.detach().to(g_l.dtype) * g_l).sum()
    return total


def _halves(batches: Batches | None, loss: Loss) -> Iterator[tuple[Tensor, Tensor]]:
    """Each batch in the order of its classes, first half and second half."""
    if takes_model(loss):
        raise ValueError(
            'grasp: expected a loss of (output, target) beside preset="authors", which orders batches by '
            'class, got one that takes the model; use preset="paper"'
        )
    for x, target in pairs("grasp", batches):
        if target.dim() != 1 or target.is_floating_point() or len(target) < 2:
            raise ValueError(
                "grasp: expected the targets of two halves to be classes, integers of shape (batch,), 2 or "
                f"more, got {dtype_of(target)} {list(target.shape)}"
            )
        order = torch.argsort(target, stable=True)
        for rows in order.tensor_split([len(order) // 2]):
            yield x[rows], target[rows]
