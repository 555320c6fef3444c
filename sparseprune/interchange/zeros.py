"""The masks of a model that was pruned elsewhere."""

from torch import Tensor, nn

from sparseprune.format.bsr import check_block
from sparseprune.nn.sites import sites
from sparseprune.scores import prunable


def masks_from_zeros(model: nn.Module, *, block: tuple[int, int] = (1, 1)) -> dict[str, Tensor]:
    """The masks of a pruned model, for :func:`sparseprune.sparsify`: True where a weight is not 0.

    A layer without a zero has no mask. A layer that knows its mask (sparse, masked, or pruned by
    ``torch.nn.utils.prune``) has that one, and a weight that it keeps may be 0.

    Args:
        model: the network; it stays as it is.
        block: (V, 1): V rows x 1 column are kept together if any of them is not 0.
    Returns:
        ``{parameter name: bool tensor of the weight's shape}``.
    Raises:
        ValueError: the block is none that can be stored, or does not divide the rows of a layer with zeros.
    """
    rows = check_block(block, "masks_from_zeros")
    weights = {name: weight.detach() for name, weight in prunable(model).items()}
    masks: dict[str, Tensor] = {}
    for site in sites(model):
        if (mask := site.mask) is not None:
            masks[site.name] = mask
            continue
        weight = weights.get(site.prefix + site.parts[0])
        if weight is not None and (weight == 0).any():
            keep = weight != 0
            if len(keep) % rows:
                raise ValueError(
                    f"masks_from_zeros: expected rows of {site.name!r} divisible by {rows} (rows of a "
                    f"block), got {len(keep)}"
                )
            blocks = keep.reshape(len(keep) // rows, rows, -1).any(1, keepdim=True)
            masks[site.name] = blocks.expand(-1, rows, -1).reshape(keep.shape).clone()
    return masks
