"""How much two sets of masks have in common."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from sparseprune.format.bsr import check_mask


def overlap(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[dict[str, "Overlap"], "Overlap"]:
    """Compare the masks of two methods: what both keep, as a part of what either keeps,

        ``J = |A ∩ B| / |A ∪ B|``,

    and what that would be for random masks of the same densities, d_A d_B / (d_A + d_B - d_A d_B). Of all
    layers together both are sums of the layers' numerators over sums of their denominators.

    Args:
        one, other: ``{parameter name: bool tensor of the weight's shape}`` of the same network.
    Returns:
        ``{parameter name: overlap}``, and that of all layers. Two masks that keep nothing are equal: 1.
    Raises:
        TypeError: a mask is no bool tensor.
        ValueError: the names or shapes differ.
    """
    if one.keys() != other.keys():
        names = ", ".join(sorted(one.keys() ^ other.keys()))
        raise ValueError(f"overlap: expected masks of the same layers, got {names} in one of both alone")
    layers, sums = {}, [0.0] * 4
    for name, a in one.items():
        check_mask(a, a.shape, f"overlap: {name!r}")
        check_mask(other[name], a.shape, f"overlap: {name!r}")
        b = other[name].to(a.device)
        kept_a, kept_b, both = int(a.sum()), int(b.sum()), int((a & b).sum())
        chance = kept_a * kept_b / max(a.numel(), 1)
        parts = [both, kept_a + kept_b - both, chance, kept_a + kept_b - chance]
        layers[name] = _overlap(*parts)
        sums = [total + part for total, part in zip(sums, parts, strict=True)]
    return layers, _overlap(*sums)


def _overlap(both: float, either: float, both_by_chance: float, either_by_chance: float) -> "Overlap":
    if either == 0:
        return Overlap(1.0, 1.0)
    return Overlap(both / either, both_by_chance / either_by_chance)


class Overlap(NamedTuple):
    """What two masks have in common.

    Attributes:
        jaccard: what both keep over what either keeps, 0 ... 1.
        expected: the same of random masks that keep as many.
    """

    jaccard: float
    expected: float
