"""The masks of a model that was pruned elsewhere."""

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from sparseprune.format.bsr import check_block
from sparseprune.format.weights import all_weights, as_stored, outputs_first, stored_otherwise
from sparseprune.nn.sites import sites


def masks_from_zeros(model: nn.Module, *, block: tuple[int, int] = (1, 1)) -> dict[str, Tensor]:
    """The masks of a pruned model, for :func:`sparseprune.sparsify`: True where a weight is not 0.

    A layer without a zero has no mask, nor has what cannot be pruned, such as a layer of complex weights. One
    that knows its mask (sparse, masked, or pruned by ``torch.nn.utils.prune``) has that, and a weight that it
    keeps may be 0.

    Args:
        model: the network; it stays as it is.
        block: (V, 1): V outputs x 1 input are kept together if any of them is not 0.
    Returns:
        ``{parameter name: bool tensor of the weight's shape}``.
    Raises:
        ValueError: the block is none that can be stored, or does not divide the rows of a layer with zeros.
    """
    rows = check_block(block, "masks_from_zeros")
    weights = {
        weight.name: weight.parameter.detach()
        for weight in all_weights(model)
        if not (
            weight.why_not
            or isinstance(weight.parameter, UninitializedParameter)
            or weight.parameter.is_complex()
        )
    }
    stored = stored_otherwise(model)
    masks: dict[str, Tensor] = {}
    for site in sites(model):
        if (mask := site.mask) is not None:
            masks[site.name] = mask
            continue
        name = site.prefix + site.parts[0]
        weight = weights.get(name)
        if weight is not None and (weight == 0).any():
            keep = outputs_first({name: weight != 0}, stored)[name]
            if len(keep) % rows:
                raise ValueError(
                    f"masks_from_zeros: expected rows of {site.name!r} divisible by {rows} (rows of a "
                    f"block), got {len(keep)}"
                )
            blocks = keep.reshape(len(keep) // rows, rows, -1).any(1, keepdim=True)
            whole = blocks.expand(-1, rows, -1).reshape(keep.shape).clone()
            masks[site.name] = as_stored({name: whole}, stored)[name]
    return masks
