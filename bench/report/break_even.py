"""Break-even sparsity: from where on sparse is as fast as the strongest dense."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class BreakEven(NamedTuple):
    """Density at which the speed-up is 1, and how that is known.

    ``how``: "measured", between two measured densities; "extrapolated" from the largest one; or
    "not reached", slower at all of them, where ``density`` is the smallest.
    """

    density: float
    how: str


def break_even(points: Sequence[tuple[float, float]]) -> BreakEven:
    """Find where the speed-up crosses 1.

    Between two densities, log speed-up is linear in log density. A layer that is faster at every density that
    was measured is continued as if its time grew in proportion to its weights, s(d) = s(d0) d0 / d. That
    understates it (fixed costs do not grow), so that the true break-even density is higher.

    Args:
        points: (density, speed-up), at least one, in any order.
    """
    by_density = sorted(points, reverse=True)
    density, speedup = by_density[0]
    if speedup >= 1:
        return BreakEven(min(1.0, density * speedup), "extrapolated")
    for next_density, next_speedup in by_density[1:]:
        if next_speedup >= 1:
            part = math.log(speedup) / (math.log(speedup) - math.log(next_speedup))
            logarithm = math.log(density) + part * (math.log(next_density) - math.log(density))
            return BreakEven(math.exp(logarithm), "measured")
        density, speedup = next_density, next_speedup
    return BreakEven(density, "not reached")
