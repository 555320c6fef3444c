"""What a set of masks keeps in each layer, and what of that the network can use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sparseprune.scores.paths import NoPathsError, dead_units, live, paths


@dataclass(frozen=True)
class Layer:
    """A layer's mask in numbers.

    Attributes:
        name: name of the weight.
        shape: its shape.
        weights, kept: how many weights there are, and how many stay.
        alive: how many of these are on a path from the input to the output; None where that is unknown.
        dead_units: how many of its outputs no such weight leads to; None where that is unknown.
        log10_paths: logarithm of the number of paths through the layer; None if unknown, or there is none.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    alive: int | None = None
    dead_units: int | None = None
    log10_paths: float | None = None

    @property
    def density(self) -> float:
        return self.kept / max(self.weights, 1)

    @property
    def alive_density(self) -> float | None:
        return None if self.alive is None else self.alive / max(self.weights, 1)


def layers_of(
    masks: Mapping[str, Tensor], model: nn.Module | None, sample: Sequence[int]
) -> tuple[list[Layer], str]:
    """Count what is kept and alive.

    Args:
        masks: ``{parameter name: bool tensor}``, True = keep.
        model: the network that they belong to; None leaves out what its paths tell.
        sample: shape of one of its samples.
    Returns:
        the layers, and why anything is unknown; empty where nothing is.
    """
    alive: dict[str, Tensor] = {}
    through: dict[str, Tensor] = {}
    why = ""
    if model is not None:
        try:
            alive = live(model, masks, sample)
            through = paths(model, masks, sample)
        except NoPathsError as error:
            why = str(error)
    dead = dead_units(alive)
    layers = []
    for name, mask in masks.items():
        total = float(through[name].sum()) if name in through else 0.0
        layers.append(
            Layer(
                name,
                tuple(mask.shape),
                mask.numel(),
                int(mask.sum()),
                int(alive[name].sum()) if name in alive else None,
                dead.get(name),
                math.log10(total) if 0 < total < math.inf else None,
            )
        )
    return layers, why


def pixels_of(masks: Mapping[str, Tensor], sample: Sequence[int]) -> Tensor | None:
    """Kept weights per pixel of a linear first layer over images, ``(height, width)``; None if it is none.

    Args:
        masks: ``{parameter name: bool tensor}``.
        sample: shape of one sample; an image is (channels, height, width).
    """
    first = next(iter(masks.values()), None)
    if first is None or first.dim() != 2 or len(sample) != 3 or first.shape[1] != math.prod(sample):
        return None
    return first.sum(0).reshape(tuple(sample)).sum(0)
