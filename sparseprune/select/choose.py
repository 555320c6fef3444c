"""From scores to masks, for a sparsity: a quota counts what each layer keeps, and the best of each stay."""

import functools
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from sparseprune.select import quotas
from sparseprune.select.blocks import Blocks, Shapes
from sparseprune.select.patterns import NofM, Pattern, fan_in, n_of_m
from sparseprune.select.quotas import Scope
from sparseprune.select.rounds import sparsity_after


class CollapseError(Exception):
    """Layers would keep nothing where all weights are ranked together, and would not with another scope."""

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__(", ".join(layers))
        self.layers = list(layers)


def layers_by_scores(shapes: Shapes, kept: Sequence[str], sparsity: float, scope: Scope | None) -> list[str]:
    """The layers that keep some of their weights, so that their scores matter, and not all or none."""
    if isinstance(scope, Mapping):
        densities = quotas.densities_of(shapes, scope)
        return [name for name in shapes if name not in kept and 0 < densities[name] < 1]
    return [name for name in shapes if name not in kept and sparsity > 0]


def choose_masks(
    blocks: Blocks,
    sparsity: float,
    scope: Scope | None,
    pattern: Pattern | None,
    kept: Sequence[str],
    allow_empty: bool,
    floor: Callable[[Blocks, Callable[[Blocks], quotas.Counts]], int],
    scored: Mapping[str, Tensor],
    part: float,
) -> dict[str, Tensor]:
    """From scores to masks: blocks are scored, a quota counts them, and the best of each layer stay.

    Args:
        blocks: blocks of the weights, with their floors.
        sparsity: fraction removed in the end; N:M has its own.
        scope: the rule that divides it among layers; None ranks all weights together where no layer is empty
            then.
        pattern: where weights lie within a layer.
        kept: layers that keep all their weights.
        allow_empty: accept layers that keep no weight.
        floor: gives the ``min_per_layer`` that would do where a layer is empty, for the error.
        scored: scores of the weights, higher = keep.
        part: the part of the rounds that is done, 1 in the last.
    Raises:
        CollapseError: the scope is None, a layer would be empty, and none would be with ``FALLBACK``.
        ValueError: see :meth:`Blocks.masks`.
    """
    blocks = blocks.scored(scored)
    if isinstance(pattern, NofM):
        return n_of_m(blocks, pattern.after(part), kept)
    sparsity = sparsity_after(part, sparsity)
    if isinstance(scope, Mapping):
        scope = {name: float(density) ** part for name, density in scope.items()}
    rule = "global" if scope is None else scope
    count = functools.partial(quotas.of_scope, sparsity=sparsity, scope=rule)
    counts = count(blocks)
    empty = blocks.empty(counts) if scope is None and not allow_empty else []
    if empty and quotas.FALLBACK in quotas.scopes_that_fill(blocks, sparsity):
        raise CollapseError(empty)
    if pattern == "fan_in":
        return fan_in(blocks, counts, allow_empty=allow_empty)
    scopes = functools.partial(quotas.scopes_that_fill, blocks, sparsity) if isinstance(rule, str) else tuple
    return blocks.masks(counts, allow_empty=allow_empty, scopes=scopes, floor=lambda: floor(blocks, count))
