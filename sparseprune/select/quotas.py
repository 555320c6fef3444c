"""How many blocks each layer keeps: one function a rule, ``(blocks, ...) -> {parameter name: count}``.

The rule that spends a budget, :func:`sparseprune.select.budget.within`, has a file of its own.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Real

from sparseprune.select.blocks import Blocks, Shapes, listed

# Where one ranking of all weights would leave a layer empty. By experiment the best for transformers
# (bench/results/methods/scopes.jsonl): layers of queries and keys get more than by ERK's densities.
FALLBACK = "balanced"
Counts = dict[str, int]
Scope = str | Mapping[str, float]


def of_scope(blocks: Blocks, sparsity: float, scope: Scope) -> Counts:
    """The counts by the rule of a scope: a name in ``SCOPES``, or densities by hand."""
    if not isinstance(scope, str):
        return by_hand(blocks, densities_of(blocks.shapes, scope))
    return SCOPES[scope](blocks, sparsity)


def check_scope(blocks: Blocks, sparsity: float, scope: Scope, kept: Sequence[str] = ()) -> None:
    """Raise TypeError or ValueError for what :func:`of_scope` cannot do; the scores do not matter.

    Args:
        blocks: blocks of the weights, with their floors.
        sparsity: fraction removed.
        scope: a name, or densities.
        kept: layers that keep all their weights, for the error.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise TypeError(f"sparsity: expected a number in [0, 1), got {type(sparsity).__name__}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity: expected the fraction removed, in [0, 1), got {sparsity}")
    if isinstance(scope, Mapping):
        densities_of(blocks.shapes, scope)
    elif not isinstance(scope, str) or scope not in SCOPES:
        known = ", ".join(f'"{name}"' for name in SCOPES)
        raise ValueError(f"scope: expected {known} or {{layer: density}}, got {scope!r}")
    elif scope != "layer" and (floor := blocks.weights_of(blocks.floors)) > blocks.kept_at(sparsity):
        option, whole, fewer = ("keep, min_per_layer", f" with {listed(kept)} whole", "keep fewer layers, ")
        if not kept:
            option, whole, fewer = "min_per_layer", "", ""
        raise ValueError(
            f"{option}: expected floors of {blocks.kept_at(sparsity)} weights in total at most "
            f"(kept at sparsity {sparsity}), got {floor}{whole}; {fewer}lower min_per_layer or the sparsity"
        )


def layers_of(shapes: Shapes, keep: str | Iterable[str], modules: Collection[str] = ()) -> list[str]:
    """The layers that are to keep all their weights, from names of parameters or of modules.

    ``"first"`` and ``"last"`` are the first and the last layer, unless a module has that name.

    Args:
        shapes: shapes of the prunable weights, in the order of the modules.
        keep: the names; a module's stands for all layers in it.
        modules: names of all modules of the model.
    Raises:
        TypeError: something else than strings.
        ValueError: a name fits no prunable layer; the error lists all such names.
    """
    given = [keep] if isinstance(keep, str) else list(keep)
    if wrong := [name for name in given if not isinstance(name, str)]:
        raise TypeError(f"keep: expected names of parameters or modules, got {type(wrong[0]).__name__}")
    ends = {"first": list(shapes)[:1], "last": list(shapes)[-1:]}
    fitting = {
        name: ends[name]
        if name in ends and name not in modules
        else [layer for layer in shapes if layer == name or layer.startswith(f"{name}.")]
        for name in given
    }
    if unknown := [name for name, layers in fitting.items() if not layers]:
        raise ValueError(
            f'keep: expected names of prunable layers ({", ".join(map(repr, shapes))}), "first" or "last", '
            f"got {', '.join(map(repr, unknown))}"
        )
    chosen = {layer for layers in fitting.values() for layer in layers}
    return [layer for layer in shapes if layer in chosen]


def scopes_that_fill(blocks: Blocks, sparsity: float) -> list[str]:
    """Scopes under which every layer keeps a block, whatever the scores."""
    numbers = blocks.numbers
    counts = {scope: SCOPES[scope](blocks, sparsity) for scope in (FALLBACK, "erk", "layer")}
    return [scope for scope, of in counts.items() if all(of[n] > 0 for n in numbers if numbers[n] > 0)]


def global_(blocks: Blocks, k: int) -> Counts:
    """As many as each layer has among the best k weights of all layers ranked together.

    A layer that falls below its floor keeps that, and the others share less: the total stays k. Where blocks
    of V and single weights are ranked together and the next block does not fit, the best single weights make
    up the number (where they run out, up to V - 1 fewer than k stay). Of whole rows as many stay as fit in
    the order of the ranking: up to one of the widest layer fewer than k weights.
    """
    counts: Counts = {}
    sizes = blocks.sizes
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
            k -= counts[name] * sizes[name]
    counts |= taken
    if missing and not blocks.whole_rows:
        return _with_single_weights(blocks, counts, missing)
    return counts


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


def balanced(blocks: Blocks, k: int) -> Counts:
    """Exactly k weights, equally many of every layer; one that has fewer stays dense, the others share."""
    return in_proportion(blocks, {n: 1 / max(shape.numel(), 1) for n, shape in blocks.shapes.items()}, k)


def smart_ratio(blocks: Blocks, k: int) -> Counts:
    """Exactly k weights, at densities in proportion to (L - l + 1)² + (L - l + 1) of layer l = 1 ... L.

    The last layer keeps 0.3 of its weights instead, and fewer (or more) only where the others' floors (or
    sizes) leave no other way to k. A layer that would exceed density 1 stays dense, and the others share.
    (The paper gives linear layers 0.3; its networks have one, the last.)

    Reference:
        Su, Chen, Cai, Wu, Gao, Wang, Lee, "Sanity-checking pruning methods: random tickets can win the
        jackpot", 2020, arXiv:2009.11094, section 4.
    """
    *first, last = blocks.shapes
    numbers, sizes = blocks.numbers, blocks.sizes
    most = (k - blocks.weights_of({name: blocks.floors[name] for name in first})) // sizes[last]
    least = -((blocks.weights_of({name: numbers[name] for name in first}) - k) // sizes[last])
    count = max(min(max(round(0.3 * numbers[last]), blocks.floors[last]), most), least)
    # Counted from the end: L - l + 1.
    density = {name: float(i * i + i) for i, name in enumerate(reversed(list(blocks.shapes)), start=1)}
    return in_proportion(blocks, density, k, {last: min(count, numbers[last])})


def in_proportion(
    blocks: Blocks, density: Mapping[str, float], k: int, fixed: Mapping[str, int] | None = None
) -> Counts:
    """Exactly k weights, at densities in proportion to these and at most 1; see :func:`erk`.

    Args:
        blocks: blocks of the weights, with their floors.
        density: of every layer, up to a factor.
        k: number of weights.
        fixed: counts of layers that are already settled, and part of the k.
    """
    sizes, numbers = blocks.sizes, blocks.numbers
    counts = dict(fixed or {})
    free = [name for name in numbers if name not in counts]
    k -= blocks.weights_of(counts)

    # Not rounded, between the floor and all.
    def weights(epsilon: float) -> dict[str, float]:
        return {
            name: min(max(epsilon * density[name] * numbers[name], blocks.floors[name]), numbers[name])
            * sizes[name]
            for name in free
        }

    everything = 1 / min((density[name] for name in free), default=1.0)
    share = weights(largest(lambda epsilon: math.fsum(weights(epsilon).values()) <= k, everything))
    shared = {name: int(share[name] // sizes[name]) for name in free}
    left = k - blocks.weights_of(shared)
    counts |= shared
    for name in sorted(share, key=lambda name: counts[name] * sizes[name] - share[name]):
        if counts[name] < numbers[name] and sizes[name] <= left:
            counts[name] += 1
            left -= sizes[name]
    # What is too little for a block of V goes to single weights.
    for name in [*free, *(fixed or {})]:
        more = min(left // sizes[name], numbers[name] - counts[name])
        counts[name] += more
        left -= more * sizes[name]
    return {name: counts[name] for name in numbers}


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
    of_layers = blocks.sizes
    sizes = {of_layers[name] for name in names}
    most = max(sizes, default=1)
    if len(sizes) < 2:
        return blocks.top(names, k // most if names else 0), k % most
    count, missing, taken = 0, k, dict.fromkeys(names, 0)
    while True:
        # As many more as surely fit, until not even one block does; whole rows then one by one.
        more = missing // most or (1 if blocks.whole_rows and missing else 0)
        next_ = blocks.top(names, count + more)
        left = k - blocks.weights_of(next_)
        if left < 0 or more == 0:
            return taken, missing
        count, missing, taken = count + more, left, next_


def _with_single_weights(blocks: Blocks, counts: Counts, missing: int) -> Counts:
    """So many more, the best of those layers that are made of single weights."""
    single = [name for name, block_rows in blocks.block_rows.items() if block_rows == 1]
    left = {name: blocks.scores[name][~blocks.best(name, counts[name])] for name in single}
    rest = Blocks.of(left, dict.fromkeys(single, 1))
    more = rest.top(single, min(missing, sum(rest.numbers.values())))
    return counts | {name: counts[name] + n for name, n in more.items()}


SCOPES: dict[str, Callable[[Blocks, float], Counts]] = {
    "global": lambda blocks, sparsity: global_(blocks, blocks.kept_at(sparsity)),
    "layer": uniform,
    "erk": lambda blocks, sparsity: erk(blocks, blocks.kept_at(sparsity)),
    "balanced": lambda blocks, sparsity: balanced(blocks, blocks.kept_at(sparsity)),
    "smart_ratio": lambda blocks, sparsity: smart_ratio(blocks, blocks.kept_at(sparsity)),
}
