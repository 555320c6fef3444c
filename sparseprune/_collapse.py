"""What to say where a mask would leave a layer empty: the floor that brings it back to life."""

from collections.abc import Callable, Iterator, Sequence

from torch import nn

from sparseprune.scores.base import Batches, pairs
from sparseprune.scores.paths import NoPathsError, live
from sparseprune.select.blocks import Blocks
from sparseprune.select.quotas import Counts


def living_floor(
    model: nn.Module,
    batches: Batches | None,
    input_size: Sequence[int] | None,
    blocks: Blocks,
    count: Callable[[Blocks], Counts],
) -> int:
    """The least power of two for min_per_layer with which paths from input to output lead through all layers.

    One weight keeps a layer from being empty, but the layer after it may not use that very weight's output.

    Args:
        model: the network.
        batches: batches to take the shape of a sample from, where ``input_size`` is None.
        input_size: shape of one sample.
        blocks: scored blocks, with the floors that were too low.
        count: quota, from blocks to the numbers that layers keep.
    Returns:
        the floor; 1 where paths cannot be followed, or no floor would do.
    """
    if input_size is None and batches is not None and not isinstance(batches, Iterator):
        input_size = next(pairs("prune", batches))[0].shape[1:]
    if input_size is None:
        return 1
    kept, floor = blocks.weights_of(count(blocks)), 1
    while floor <= max(shape.numel() for shape in blocks.shapes.values()):
        raised = blocks.with_floor(floor)
        if raised.weights_of(raised.floors) > kept:
            return 1
        masks = raised.masks(count(raised), allow_empty=True)
        try:
            alive = live(model, masks, input_size)
        except NoPathsError:
            return 1
        if all(alive[name].any() for name in masks):
            return floor
        floor *= 2
    return 1
