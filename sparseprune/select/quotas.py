"""How many blocks each layer keeps: one function a rule, ``(blocks, ...) -> {parameter name: count}``.

The rule that spends a budget, :func:`sparseprune.select.budget.within`, has a file of its own.
"""

import math
from collections.abc import Callable, Mapping
from numbers import Real

from sparseprune.select.blocks import Blocks, Shapes

Counts = dict[str, int]
Scope = str | Mapping[str, float]


def of_scope(blocks: Blocks, sparsity: float, scope: Scope) -> Counts:
    """The counts by the rule of a scope: ``"global"``, ``"layer"``, ``"erk"`` or densities by hand."""
    if isinstance(scope, Mapping):
        return by_hand(blocks, densities_of(blocks.shapes, scope))
    if scope == "layer":
        return uniform(blocks, sparsity)
    k = blocks.kept_at(sparsity)
    return erk(blocks, k) if scope == "erk" else global_(blocks, k)


def check_scope(blocks: Blocks, sparsity: float, scope: Scope) -> None:
    """Raise TypeError or ValueError for what :func:`of_scope` cannot do; the scores do not matter."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise TypeError(f"sparsity: expected a number in [0, 1), got {type(sparsity).__name__}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity: expected the fraction removed, in [0, 1), got {sparsity}")
    if isinstance(scope, Mapping):
        densities_of(blocks.shapes, scope)
    elif scope not in ("global", "layer", "erk"):
        raise ValueError(f'scope: expected "global", "layer", "erk" or {{layer: density}}, got {scope!r}')
    elif scope != "layer" and (floor := blocks.weights_of(blocks.floors)) > blocks.kept_at(sparsity):
        raise ValueError(
            f"min_per_layer: expected floors of {blocks.kept_at(sparsity)} weights in total at most "
            f"(kept at sparsity {sparsity}), got {floor}; lower min_per_layer or the sparsity"
        )


def global_(blocks: Blocks, k: int) -> Counts:
    """As many as each layer has among the best k weights of all layers ranked together.

    A layer that falls below its floor keeps that, and the others share less: the total stays k. Where blocks
    of V and single weights are ranked together and the next block does not fit, the best single weights make
    up the number (where they run out, up to V - 1 fewer than k stay).
    """
    counts: Counts = {}
    free = list(blocks.scores)
    while True:
        taken, missing = _best(blocks, free, k)
        below = [name for name in free if taken[name] < blocks.floors[name]]
        if not below:
            break
        # The others share less, so they are ranked again.
        for name in below:
            free.remove(name)
            counts[name] = blocks.floors[name]
            k -= counts[name] * blocks.block_rows[name]
    counts |= taken
    return _with_single_weights(blocks, counts, missing) if missing else counts


def uniform(blocks: Blocks, sparsity: float) -> Counts:
    """The same share of every layer, each layer's count rounded; floors come on top."""
    return by_hand(blocks, dict.fromkeys(blocks.shapes, 1 - float(sparsity)))


def by_hand(blocks: Blocks, density: Mapping[str, float]) -> Counts:
    """Of every layer the share that it was given, rounded; floors come on top."""
    return {n: max(round(number * density[n]), blocks.floors[n]) for n, number in blocks.numbers.items()}


def densities_of(shapes: Shapes, scope: Mapping[str, float]) -> dict[str, float]:
    """The density of every layer, from ``{name of a parameter or of a module: density}``.

    A module's density is that of all layers in it; the longest name that fits counts.

    Raises:
        TypeError, ValueError: a density is no number in [0, 1], a layer has none, or a name fits no layer.
    """
    for name, density in scope.items():
        if isinstance(density, bool) or not isinstance(density, Real):
            raise TypeError(f"scope: expected densities in [0, 1], got {type(density).__name__} for {name!r}")
        if not 0 <= density <= 1:
            raise ValueError(f"scope: expected the fraction kept, in [0, 1], got {density} for {name!r}")
    fitting = {
        name: [given for given in scope if name == given or name.startswith(f"{given}.")] for name in shapes
    }
    known = ", ".join(map(repr, shapes))
    if unused := [given for given in scope if not any(given in names for names in fitting.values())]:
        raise ValueError(f"scope: expected names of prunable layers ({known}), got {unused[0]!r}")
    if missing := [name for name, names in fitting.items() if not names]:
        raise ValueError(
            f"scope: expected a density for every layer, got none for {', '.join(map(repr, missing))}; "
            "give them 1.0 or a density, or exclude them"
        )
    return {name: float(scope[max(names, key=len)]) for name, names in fitting.items()}


def erk(blocks: Blocks, k: int) -> Counts:
    """Exactly k weights, at the densities of Erdős-Rényi-kernel graphs: min(1, ε · Σ sizes / Π sizes).

    ε solves Σ over layers of min(1, ε · d) · n = k, so a layer that would exceed density 1 stays dense and
    the others share the rest. Layers get whole blocks, rounded down; what is left goes to the largest
    remainders, ties to the earlier layer.

    Reference:
        Evci, Gale, Menick, Castro, Elsen, "Rigging the lottery: making all tickets winners", 2020,
        arXiv:1911.11134, section 3.
    """
    return in_proportion(blocks, {name: erk_density(shape) for name, shape in blocks.shapes.items()}, k)


def erk_density(shape: tuple[int, ...]) -> float:
    """Return a layer's density in :func:`erk` up to the factor ε: the sum of the sizes over their product.

    That is (n_in + n_out + k_h + k_w) / (n_in n_out k_h k_w) for convolutions, without kernel sizes for
    linear layers. (The paper writes sparsities, 1 - this; its code sets densities, which is what is meant.)

    Args:
        shape: shape of the weight.
    """
    return sum(shape) / max(math.prod(shape), 1)


def in_proportion(blocks: Blocks, density: Mapping[str, float], k: int) -> Counts:
    """Exactly k weights, at densities in proportion to these and at most 1; see :func:`erk`."""
    block_rows, numbers = blocks.block_rows, blocks.numbers

    # Not rounded, between the floor and all.
    def weights(epsilon: float) -> dict[str, float]:
        return {
            name: min(max(epsilon * density[name] * n, blocks.floors[name]), n) * block_rows[name]
            for name, n in numbers.items()
        }

    everything = 1 / min(density.values(), default=1.0)
    share = weights(largest(lambda epsilon: math.fsum(weights(epsilon).values()) <= k, everything))
    counts = {name: int(share[name] // block_rows[name]) for name in share}
    left = k - blocks.weights_of(counts)
    for name in sorted(share, key=lambda name: counts[name] * block_rows[name] - share[name]):
        if counts[name] < numbers[name] and block_rows[name] <= left:
            counts[name] += 1
            left -= block_rows[name]
    # What is too little for a block of V goes to single weights.
    for name in share:
        more = min(left // block_rows[name], numbers[name] - counts[name])
        counts[name] += more
        left -= more * block_rows[name]
    return counts


def largest(fits: Callable[[float], bool], high: float) -> float:
    """The largest scale from 0 to ``high`` that fits, to neighbouring floats; all below it fit too."""
    if fits(high):
        return high
    low = 0.0
    while low < (middle := low + (high - low) / 2) < high:
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _best(blocks: Blocks, names: list[str], k: int) -> tuple[Counts, int]:
    """Blocks of each layer among the best that k weights suffice for, and how many weights are missing."""
    sizes = {blocks.block_rows[name] for name in names}
    most = max(sizes, default=1)
    if len(sizes) < 2:
        return blocks.top(names, k // most if names else 0), k % most
    count, missing = 0, k
    while True:
        # As many more as surely fit, until not even one block does.
        count += missing // most
        taken = blocks.top(names, count)
        missing = k - blocks.weights_of(taken)
        if missing < most:
            return taken, missing


def _with_single_weights(blocks: Blocks, counts: Counts, missing: int) -> Counts:
    """So many more, the best of those layers that are made of single weights."""
    single = [name for name, block_rows in blocks.block_rows.items() if block_rows == 1]
    left = {name: blocks.scores[name][~blocks.best(name, counts[name])] for name in single}
    rest = Blocks.of(left, dict.fromkeys(single, 1))
    more = rest.top(single, min(missing, sum(rest.numbers.values())))
    return counts | {name: counts[name] + n for name, n in more.items()}
