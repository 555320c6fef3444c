"""From scores to masks that keep so many weights."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

from torch import Tensor

from sparseprune.select import quotas
from sparseprune.select.blocks import Blocks, Shapes, check_blocks, floors, kept_globally

Scope = str | Mapping[str, float]
SCOPES = ("global", "layer", "erk")


def select_masks(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: Scope = "global",
    block: tuple[int, int] = (1, 1),
    min_per_layer: int = 0,
    allow_empty: bool = False,
) -> dict[str, Tensor]:
    """Turn scores into masks that keep the best k = round(n · (1 − sparsity)) weights.

    Scope ``"global"`` ranks all n weights together; ``"layer"`` keeps the best k of each layer on its own;
    ``"erk"`` and ``{layer: density}`` say by density how many each layer keeps (see quotas.py).

    With blocks of V rows × 1 column of ``score.flatten(1)``, whole blocks are kept or removed by the mean of
    their scores, and n and k count blocks. A layer whose rows V does not divide, such as one of 10 classes,
    is pruned weight by weight; under ``"global"`` its weights are ranked together with the others' blocks,
    and n and k count weights. (Where such weights run out, up to V - 1 fewer than k are kept.)

    Args:
        scores: ``{parameter name: score}``, higher = keep, finite.
        sparsity: fraction removed, in [0, 1).
        scope: ``"global"``, ``"layer"``, ``"erk"`` or ``{name of a parameter or module: density}``, which
            leaves ``sparsity`` without meaning.
        block: ``(V, 1)`` with V in 1, 2, 4, 8, 16; V divides the rows of one layer at least.
        min_per_layer: number of weights that each layer keeps at least (all of them, in a layer that has
            fewer). Under ``"global"`` and ``"erk"`` the other layers give them up and the total stays k;
            otherwise they come on top.
        allow_empty: accept layers that keep no weight.
    Returns:
        ``{parameter name: bool tensor of the score's shape}``, True = keep.
    Raises:
        ValueError: bad sparsity, scope, block or floor; scores that are not finite (the error has the
            parameter's name); a layer that keeps no weight (the error names it) unless ``allow_empty``.
    """
    shapes = {name: score.shape for name, score in scores.items()}
    rows = check_selection(shapes, sparsity, scope, block, min_per_layer, allow_empty)
    blocks = Blocks.of(scores, rows, min_per_layer)
    return blocks.masks(counts_of(blocks, sparsity, scope), allow_empty=allow_empty)


def counts_of(blocks: Blocks, sparsity: float, scope: Scope) -> quotas.Counts:
    """How many blocks each layer keeps, by the quota that the scope names."""
    if isinstance(scope, Mapping):
        return quotas.by_hand(blocks, densities_of(blocks.shapes, scope))
    if scope == "layer":
        return quotas.uniform(blocks, sparsity)
    k = kept_globally(blocks.numbers, blocks.rows, sparsity)
    return quotas.erk(blocks, k) if scope == "erk" else quotas.global_(blocks, k)


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


def check_selection(
    shapes: Shapes,
    sparsity: float,
    scope: Scope = "global",
    block: tuple[int, int] = (1, 1),
    min_per_layer: int = 0,
    allow_empty: bool = False,
) -> dict[str, int]:
    """Return the rows of each layer's blocks, or raise TypeError or ValueError as ``select_masks`` does.

    Args:
        shapes: shapes of the weights; all else see :func:`select_masks`.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise TypeError(f"sparsity: expected a number in [0, 1), got {type(sparsity).__name__}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity: expected the fraction removed, in [0, 1), got {sparsity}")
    if isinstance(scope, Mapping):
        densities_of(shapes, scope)
    elif scope not in SCOPES:
        raise ValueError(f'scope: expected "global", "layer", "erk" or {{layer: density}}, got {scope!r}')
    rows = check_blocks(shapes, block, min_per_layer, allow_empty)
    numbers = {name: shape.numel() // rows[name] for name, shape in shapes.items()}
    k = kept_globally(numbers, rows, sparsity)
    floor = sum(count * rows[name] for name, count in floors(shapes, rows, min_per_layer).items())
    if scope in ("global", "erk") and floor > k:
        raise ValueError(
            f"min_per_layer: expected floors of {k} weights in total at most "
            f"(kept at sparsity {sparsity}), got {floor}; lower min_per_layer or the sparsity"
        )
    return rows
