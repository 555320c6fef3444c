"""What a layer's next pattern is, worked out before anything moves."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sparseprune._rewire.layers import Moving
from sparseprune._rewire.rules import Candidates, Rule, by_magnitude, is_constant_fan_in, pattern_at, rewired
from sparseprune.nn.values import positions
from sparseprune.ops import topk_outside
from sparseprune.scores.ranks import several_ranks, sum_over_ranks

CHOICE = 4  # candidates that a rule of one's own gets, for each block that may come


def next_pattern(
    layer: Moving, rule: Rule, count: int, moved: int, random: torch.Generator | None, constant_fan_in: bool
) -> tuple[Tensor, Tensor]:
    """``(crow, col)`` that a layer should have next.

    Args:
        layer: the layer, which stays as it is.
        rule: what goes and what comes.
        count: number of blocks of the new pattern.
        moved: number of blocks that come, where as many go.
        random: random numbers in the place of the gradient.
        constant_fan_in: whether every row of blocks has as many, and is to.
    Raises:
        TypeError, ValueError: the rule gives something else than expected.
    """
    crow, col = layer.pattern()
    rows = layer.rows if constant_fan_in and is_constant_fan_in(crow) else None
    if rows is not None:
        count, moved = count // rows * rows, moved // rows * rows
    moved = min(moved, count)
    # The best are enough where they are taken.
    wanted = moved if rule is by_magnitude else CHOICE * moved
    found = _candidates(layer, crow, col, wanted, random, rows)
    stay, grow = _worth(layer, rule, found, (crow, col))
    at = rewired(stay, grow, found, count - moved, moved, rows)
    return pattern_at(at, layer.rows, layer.cols)


def _candidates(
    layer: Moving, crow: Tensor, col: Tensor, wanted: int, random: torch.Generator | None, rows: int | None
) -> Candidates:
    own = positions(crow, col, layer.cols)
    of_own: list[Tensor] = []
    best = own.new_zeros(0, dtype=layer.dtype)
    best_at = own.new_zeros(0)
    of_rows: list[tuple[Tensor, Tensor]] = []
    for first, scores in _scores(layer, random):
        last = first + len(scores)
        begin, end = int(crow[first]), int(crow[last])
        its_own = own[begin:end] - first * layer.cols
        of_own.append(scores.flatten()[its_own])
        if rows is None:
            best, best_at = topk_outside(scores, crow, col, first, best, best_at, wanted)
        else:
            others = scores.flatten().index_fill(0, its_own, -torch.inf).view_as(scores)
            free = layer.cols - int(crow[1])
            top = others.topk(min(wanted // rows, free), 1)
            rows_at = torch.arange(first, last, device=own.device)[:, None] * layer.cols
            of_rows.append((top.values, top.indices + rows_at))
    if rows is not None:
        best, best_at = (torch.cat(parts).flatten() for parts in zip(*of_rows, strict=True))
    return Candidates(torch.cat([own, best_at]), torch.cat([*of_own, best]))


def _scores(layer: Moving, random: torch.Generator | None) -> Iterator[tuple[int, Tensor]]:
    """Mean |dL/dW| over each block, some rows of blocks at a time, or random numbers."""
    if random is not None:
        for first, last in layer.parts():
            shape = (last - first, layer.cols)
            yield first, torch.rand(shape, generator=random, dtype=layer.dtype).to(layer.parameter.device)
        return
    for first, gradient in layer.gradients():
        if several_ranks():
            sum_over_ranks([gradient])
        magnitude = gradient.abs_()
        v = layer.block_rows
        yield first, magnitude if v == 1 else magnitude.unflatten(0, (-1, v)).mean(1)


def _worth(
    layer: Moving, rule: Rule, candidates: Candidates, pattern: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """What the rule says of a layer, checked."""
    weights = layer.weights().to(layer.dtype)
    if rule is by_magnitude:
        return by_magnitude(weights, candidates, pattern)
    given = rule(weights, candidates, pattern)
    if not isinstance(given, tuple) or len(given) != 2 or not all(isinstance(t, Tensor) for t in given):
        raise TypeError(
            f"Rewire: expected method to give two tensors, what each of {layer.name!r}'s blocks is worth and "
            f"what each candidate is, got {type(given).__name__}"
        )
    for worth, expected in zip(given, (len(weights), len(candidates.positions)), strict=True):
        if worth.shape != (expected,):
            raise ValueError(
                f"Rewire: expected method to give {expected} numbers for {layer.name!r}, got a tensor of "
                f"shape {list(worth.shape)}"
            )
        if not worth.isfinite().all():
            raise ValueError(f"Rewire: expected method to give finite numbers for {layer.name!r}, got others")
    stay, grow = given
    return stay.detach().to(layer.dtype), grow.detach().to(layer.dtype)
