"""``torch.nn.utils.prune``, which keeps ``weight_orig`` and ``weight_mask``, both ways."""

import copy

from torch import Tensor, nn
from torch.nn.utils import prune

from sparseprune._sparsify import densify
from sparseprune.nn.dialects import MASKED, SPARSE
from sparseprune.nn.sites import sites


def from_torch_prune(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model without the pruning of torch.nn.utils.prune, and its masks, for :func:`sparseprune.sparsify`.

    Args:
        model: pruned by torch's functions, all of its ``weight`` or some; it stays as it is. Other parameters
            that torch prunes, such as biases, stay pruned by torch.
    Returns:
        a copy with ordinary weights, zeros in place of pruned ones, and ``{parameter name: bool tensor}``.
    Raises:
        ValueError: torch prunes no weight of it.
    """
    pruned = {name: module for name, module in model.named_modules() if "weight_orig" in module._parameters}
    if not pruned:
        raise ValueError(
            "from_torch_prune: expected a model pruned by torch.nn.utils.prune (weight_orig and "
            "weight_mask), got one without; masks_from_zeros() finds masks where weights are 0"
        )
    # What torch computes from weight_orig is no leaf, which deepcopy refuses.
    memo = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and value.grad_fn is not None
    }
    result = copy.deepcopy(model, memo)
    masks = {}
    for name in pruned:
        module = result.get_submodule(name)
        masks[f"{name}.weight" if name else "weight"] = module.get_buffer("weight_mask") != 0
        prune.remove(module, "weight")
    return result, masks


def to_torch_prune(model: nn.Module) -> nn.Module:
    """A dense copy of a sparsified model, pruned by torch.nn.utils.prune with the same masks.

    Args:
        model: of :func:`sparseprune.sparsify`; it stays as it is.
    Returns:
        an ordinary torch model with ``weight_orig`` and ``weight_mask`` where layers were sparse or masked.
    """
    result = densify(model)
    for site in sites(model):
        if site.dialect in (SPARSE, MASKED) and (mask := site.mask) is not None:
            stem, _, attribute = site.name.rpartition(".")
            prune.custom_from_mask(result.get_submodule(stem), attribute, mask)
    return result
