"""Masks on the weights of a dense model."""

import torch
from torch import Tensor, nn

from sparseprune.format.bsr import check_mask
from sparseprune.format.masks import MasksLike, masks_of


def apply_masks(model: nn.Module, masks: MasksLike) -> None:
    """Zero the pruned weights of a dense model in place, w ← w ⊙ mask.

    All masks are checked before the first weight changes.

    Args:
        model: the network.
        masks: ``{parameter name: mask of the parameter's shape}``, True or 1 = keep, or in any other form
            that :func:`sparseprune.sparsify` takes.
    Raises:
        TypeError: a mask is no tensor or array.
        ValueError: a mask holds something other than 0 and 1, a name is not a parameter of the model, or a
            shape differs.
    """
    with torch.no_grad():
        for weight, mask in masked_weights(model, masks, "apply_masks"):
            weight.masked_fill_(~mask, 0)


def rescale_weights(model: nn.Module, masks: MasksLike) -> None:
    """Scale each layer in place so that the weights it keeps have the norm of all: w ← w · ‖w‖ / ‖w ⊙ mask‖.

    Masks make a layer's outputs smaller, by the square root of its density if they are random; ten layers
    deep nothing is left. Scaled, their mean square is that of the dense layer, for inputs that are
    independent and of mean square 1. Worth trying where no batch-norm follows: with one, outputs do not
    depend on the scale, and larger weights only learn more slowly. For a model that is not trained yet,
    between :func:`sparseprune.prune` and :func:`sparseprune.sparsify`.

    All masks are checked before the first weight changes. A layer whose mask keeps nothing but zeros stays.

    Args:
        model: the network.
        masks: see :func:`apply_masks`.
    Raises:
        TypeError, ValueError: see :func:`apply_masks`.
    Reference:
        He, Zhang, Ren, Sun, "Delving deep into rectifiers", 2015, arXiv:1502.01852, section 2.2, with the
        connections that are there; for sparse networks Evci, Ioannou, Keskin, Dauphin, "Gradient flow in
        sparse neural networks and how lottery tickets win", 2020, arXiv:2010.03533, section 3.1, neuron by
        neuron (here layer by layer: a neuron with one weight keeps its size).
    """
    with torch.no_grad():
        for weight, mask in masked_weights(model, masks, "rescale_weights"):
            kept = (weight * mask).norm()
            if kept > 0:
                weight.mul_(weight.norm() / kept)


def masked_weights(model: nn.Module, masks: MasksLike, caller: str) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter with its mask, on its device; TypeError or ValueError for masks of another model."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    normal = checked_masks(model, masks, caller)
    return [(parameters[name], mask.to(parameters[name].device)) for name, mask in normal.items()]


def checked_masks(model: nn.Module, masks: MasksLike, caller: str) -> dict[str, Tensor]:
    """Masks of any form by parameter name, in their shapes; TypeError or ValueError for another model's."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    normal = masks_of(model, masks, caller)
    for name, mask in normal.items():
        if name not in parameters:
            raise ValueError(
                f"{caller}: expected names of the model's parameters, got {name!r}; "
                "were the masks made for another model?"
            )
        check_mask(mask, parameters[name].shape, f"{caller}: {name!r}")
    return normal
