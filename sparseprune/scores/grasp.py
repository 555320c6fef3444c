"""θ ⊙ Hg, and |θ ⊙ Hg|"""

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.scores.base import Batches, Loss, Masks, Scores, dtype_of, pairs, parts, prunable, repeatable
from sparseprune.scores.frozen import Frozen, functional, gradients, sum_of_gradients
from sparseprune.scores.ranks import several_ranks


def grasp(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    temperature: float = 200.0,
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
        temperature: T, above 0.
        halves: whether each batch is ordered by class and scored as two.
    Returns:
        see :mod:`sparseprune.scores`.
    Raises:
        ValueError: ``temperature`` is not positive, or targets of ``halves`` are no classes; all else see
            :mod:`sparseprune.scores`.
    Reference:
        Wang, Zhang, Grosse, "Picking winning tickets before training by preserving gradient flow", 2020,
        arXiv:2002.07376.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"grasp: expected temperature > 0, got {temperature}")

    def tempered(output: Tensor, target: Tensor) -> Tensor:
        return loss(output / temperature, target)

    batches = list(_halves(batches)) if halves else repeatable(batches)
    weights = prunable(model, exclude)
    with functional(model, weights, bn, masks=masks) as frozen:
        g = None
        # With one batch, g is the gradient at hand in the second pass, and the first would compute it twice.
        one = isinstance(batches, list | tuple) and len(batches) == 1
        if not one or micro_batch_size is not None or several_ranks():
            g = sum_of_gradients(frozen, parts("grasp", batches, micro_batch_size), tempered)

        def flow(output: Tensor, target: Tensor) -> Tensor:
            return _flow(frozen, tempered(output, target), g)

        hg = sum_of_gradients(frozen, parts("grasp", batches, micro_batch_size), flow, may_vanish=True)
        leaves = (leaf.detach() for leaf in frozen.leaves.values())
        return {name: hg_l.mul_(w_l) for name, hg_l, w_l in zip(weights, hg, leaves, strict=True)}


def grasp_abs(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    temperature: float = 200.0,
    halves: bool = False,
    bn: str = "train",
    exclude: Iterable[str] = (),
    masks: Masks | None = None,
    micro_batch_size: int | None = None,
) -> Scores:
    """Score weights by how much their removal changes the gradient flow, either way: |θ ⊙ Hg|.

    Args:
        model, batches, loss, temperature, halves, bn, exclude, masks, micro_batch_size: see :func:`grasp`.
    Returns, raises:
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


def _halves(batches: Batches | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Each batch in the order of its classes, first half and second half."""
    for x, target in pairs("grasp", batches):
        if target.dim() != 1 or target.is_floating_point() or len(target) < 2:
            raise ValueError(
                "grasp: expected the targets of two halves to be classes, integers of shape (batch,), 2 or "
                f"more, got {dtype_of(target)} {list(target.shape)}"
            )
        order = torch.argsort(target, stable=True)
        for rows in order.tensor_split([len(order) // 2]):
            yield x[rows], target[rows]
