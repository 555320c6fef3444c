"""Controls: what of a mask matters, its places or only how many weights each layer keeps?"""

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy
import torch
from torch import Tensor, nn

from sparseprune.format.bsr import largest_block
from sparseprune.format.masks import MasksLike
from sparseprune.format.weights import as_stored, outputs_first, stored_otherwise
from sparseprune.scores.base import numbers, reordered
from sparseprune.select.apply import checked_masks


class Control(NamedTuple):
    """A network and masks, to be trained in place of the pruned network.

    Attributes:
        model: the network; the given one itself where its weights stay.
        masks: ``{parameter name: bool tensor}``, True = keep.
    """

    model: nn.Module
    masks: dict[str, Tensor]


def controls(
    masks: MasksLike, model: nn.Module, *, scores: Mapping[str, Tensor] | None = None, seed: int = 0
) -> dict[str, Control]:
    """Give the networks that a pruned one should be compared with; every layer keeps as many weights in each.

    - ``"shuffled"``: each layer's mask in a random order. If it trains as well, only the layers' densities
      matter.
    - ``"reinitialised"``: the masks as they are, on other initial weights: each layer's own in a random
      order, which is a fresh draw for weights that were drawn independently.
    - ``"inverted"``: the weights that the method ranks last: those with the lowest ``scores``, or without
      them a random choice among the removed ones (all of these and some others, where more are kept).
    - ``"random"``: fresh random masks of the same densities: as "shuffled" in distribution, another draw.

    Blocks of V × 1 that a layer's mask is made of stay whole. All are drawn anew from ``seed``.

    Args:
        masks: ``{parameter name: bool tensor of the weight's shape}``, as :func:`sparseprune.prune` gives, or
            in any other form that :func:`sparseprune.sparsify` takes.
        model: the network that they were made for, at its initial weights; left untouched.
        scores: scores that the masks were made of, higher = keep.
        seed: seed of all random choices, 0 or more.
    Returns:
        ``{"shuffled" | "reinitialised" | "inverted" | "random": (model, masks)}``.
    Raises:
        TypeError: a mask is no tensor or array.
        ValueError: a mask holds something other than 0 and 1, a name is not a parameter of the model, a shape
            differs, or a score is missing.
    Reference:
        Frankle, Dziugaite, Roy, Carbin, "Pruning neural networks at initialization: why are we missing the
        mark?", 2021, arXiv:2009.08576, section 5.
    """
    normal = checked_masks(model, masks, "controls")
    for name, mask in normal.items():
        if scores is not None and (name not in scores or scores[name].shape != mask.shape):
            raise ValueError(
                f"controls: expected scores of every mask's shape, got none of {list(mask.shape)} "
                f"for {name!r}"
            )
    generator = numbers(seed, "controls")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name in normal:
            weight = other.get_parameter(name)
            weight.copy_(reordered(weight.flatten(), generator).view_as(weight))
    stored = stored_otherwise(model)
    rows = outputs_first(normal, stored)
    ranks = None if scores is None else outputs_first({name: scores[name] for name in normal}, stored)

    def masks_by(change: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        return as_stored({name: change(name, mask) for name, mask in rows.items()}, stored)

    return {
        "shuffled": Control(model, masks_by(lambda _, mask: _shuffled(mask, generator))),
        "reinitialised": Control(other, {name: mask.clone() for name, mask in normal.items()}),
        "inverted": Control(
            model,
            masks_by(lambda name, mask: _inverted(mask, None if ranks is None else ranks[name], generator)),
        ),
        "random": Control(model, masks_by(lambda _, mask: _shuffled(mask, generator))),
    }


def shuffled_masks(masks: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Keep as many weights in every layer, anywhere in it: what is left is how sparse each layer is.

    Args:
        masks: bool tensors by parameter name, True = keep; the blocks of V × 1 that they are made of stay
            whole.
        seed: seed of the new order.
    """
    # Torch takes negative seeds, and so do those who train with them.
    generator = numbers(seed % 2**64, "shuffled_masks")
    return {name: _shuffled(mask, generator) for name, mask in masks.items()}


def _shuffled(mask: Tensor, generator: numpy.random.Generator) -> Tensor:
    blocks, rows = _blocks(mask)
    return _whole(reordered(blocks, generator), rows, mask)


def _inverted(mask: Tensor, score: Tensor | None, generator: numpy.random.Generator) -> Tensor:
    blocks, rows = _blocks(mask)
    if score is None:
        # Any order among the removed, and among the kept after them.
        worth = torch.from_numpy(generator.random(len(blocks))).to(mask.device) + blocks
    else:
        worth = score.detach().flatten(1).unflatten(0, (-1, rows)).double().mean(1).flatten()
    lowest = worth.argsort(stable=True)[: int(blocks.sum())]
    return _whole(torch.zeros_like(blocks).index_fill(0, lowest, True), rows, mask)


def _blocks(mask: Tensor) -> tuple[Tensor, int]:
    """The blocks of a mask, flat, and their rows V."""
    rows = largest_block(mask.flatten(1))
    return mask.flatten(1)[::rows].flatten(), rows


def _whole(blocks: Tensor, rows: int, mask: Tensor) -> Tensor:
    return blocks.view(len(mask) // rows, -1).repeat_interleave(rows, 0).view_as(mask)
