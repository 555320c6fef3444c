"""Patterns within layers: N of every M consecutive inputs, or equally many weights in all rows."""

import math
import re
from collections.abc import Collection, Mapping
from numbers import Real
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sparseprune.select.blocks import Blocks, Shapes, listed
from sparseprune.select.topk import topk_named


class NofM(NamedTuple):
    """Of every M consecutive inputs N stay."""

    n: int
    m: int

    def after(self, part: float) -> "NofM":
        """The pattern when this part of several rounds is done: ceil(M · (N / M)^part) of every M."""
        # Whole numbers, but for rounding, stay as they are.
        return self._replace(n=math.ceil(self.m * (self.n / self.m) ** part - 1e-9))


Pattern = NofM | Literal["fan_in"]


def parse_pattern(pattern: str) -> Pattern:
    """What ``"N:M"`` or ``"fan_in"`` stands for; TypeError or ValueError for anything else."""
    if not isinstance(pattern, str):
        raise TypeError(f'pattern: expected "N:M" or "fan_in", got {type(pattern).__name__}')
    if pattern == "fan_in":
        return "fan_in"
    found = re.fullmatch(r"([0-9]+):([0-9]+)", pattern)
    if found is None or not 1 <= int(found[1]) < int(found[2]):
        raise ValueError(
            'pattern: expected "N:M" with 1 <= N < M, such as "2:4" (N of every M consecutive inputs stay), '
            f'or "fan_in" (all rows of a layer keep equally many), got {pattern!r}'
        )
    return NofM(int(found[1]), int(found[2]))


def check_pattern(
    pattern: str, block: tuple[int, int] | str, targets: Mapping[str, float | None], scope: object
) -> Pattern:
    """What the pattern stands for; TypeError or ValueError where it cannot be, or not with the others."""
    parsed = parse_pattern(pattern)
    if isinstance(block, str):
        raise ValueError(f'pattern: expected block=(V, 1) beside "{pattern}", got block="{block}"')
    if named := [name for name in ("flops", "speedup") if targets[name] is not None]:
        raise ValueError(f'pattern: expected sparsity as the target beside "{pattern}", got {named[0]}')
    if not isinstance(parsed, NofM):
        return parsed
    sparsity, own = targets["sparsity"], 1 - parsed.n / parsed.m
    if sparsity is not None and not (isinstance(sparsity, Real) and math.isclose(sparsity, own)):
        raise ValueError(f'sparsity: expected None or {own:g} beside pattern="{pattern}", got {sparsity}')
    if scope not in (None, "global"):
        raise ValueError(
            f'scope: expected "global" beside pattern="{pattern}" (layers have one sparsity), got {scope!r}'
        )
    return parsed


def check_n_of_m(blocks: Blocks, pattern: NofM, kept: Collection[str]) -> None:
    """Raise ValueError where no layer can have the pattern, or one would fall below its floor."""
    n, m = pattern
    layers = [name for name, shape in blocks.shapes.items() if _divides(m, shape) and name not in kept]
    if not layers:
        raise ValueError(
            f'pattern: expected a layer whose inputs (dim 1 of its weight) {m} divides, for "{n}:{m}", '
            f"got {_inputs(blocks.shapes)}{f'; {listed(list(kept))} kept whole' if kept else ''}"
        )
    if few := [name for name in layers if blocks.numbers[name] * n // m < blocks.floors[name]]:
        raise ValueError(
            f'min_per_layer: expected floors that "{n}:{m}" leaves room for, got more than that in '
            f"{listed(few)}; lower min_per_layer"
        )


def n_of_m(blocks: Blocks, pattern: NofM, kept: Collection[str] = ()) -> dict[str, Tensor]:
    """Masks of the N best of every M consecutive inputs of a row, of each position of a kernel alone.

    Inputs are dim 1 of a weight; with blocks of V rows it is their rows that count. Ties go to the earlier
    input. A layer whose inputs M does not divide keeps all its weights.

    Args:
        blocks: scores of single weights or of blocks of V rows × 1 column, finite.
        pattern: N and M.
        kept: names of other layers that keep all their weights.
    """
    _check_finite(blocks.scores)
    masks = {}
    for name, shape in blocks.shapes.items():
        score = blocks.scores[name]
        if name in kept or not _divides(pattern.m, shape):
            masks[name] = torch.ones(shape, dtype=torch.bool, device=score.device)
            continue
        inputs = (len(score), shape[1], math.prod(shape[2:]))
        groups = score.reshape(inputs).transpose(1, 2).unflatten(2, (-1, pattern.m))
        mask = _best_of_last(groups, pattern.n).flatten(2).transpose(1, 2)
        masks[name] = blocks.spread(name, mask.reshape(score.shape))
    return masks


def fan_in(blocks: Blocks, counts: Mapping[str, int], *, allow_empty: bool = False) -> dict[str, Tensor]:
    """Masks with equally many weights in all rows of a layer: the best round(count / rows) of each.

    At least one stays in each row where the layer's count is not 0, and as many as its floor wants. With
    blocks of V rows it is rows of blocks that have equally many. Ties go to the earlier column.

    Args:
        blocks: scores of single weights or of blocks of V rows × 1 column, finite.
        counts: number of blocks that the layers would keep; what they do keep is a multiple of the rows.
        allow_empty: accept layers that keep no weight.
    Raises:
        ValueError: a layer would keep no weight, or a score is not finite.
    """
    _check_finite(blocks.scores)
    if not allow_empty:
        blocks.check_none_empty(counts)
    masks = {}
    for name, score in blocks.scores.items():
        rows = max(len(score), 1)
        of_row = max(round(counts[name] / rows), -(-blocks.floors[name] // rows), min(counts[name], 1))
        mask = _best_of_last(score.reshape(len(score), math.prod(score.shape[1:])), of_row)
        masks[name] = blocks.spread(name, mask.reshape(score.shape))
    return masks


def _best_of_last(scores: Tensor, count: int) -> Tensor:
    """The best so many along the last dimension, bool; ties to the earlier."""
    order = scores.argsort(stable=True, dim=-1, descending=True)
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return mask.scatter_(-1, order[..., :count], True)


def _check_finite(scores: Mapping[str, Tensor]) -> None:
    topk_named(scores, 0)


def _divides(m: int, shape: torch.Size) -> bool:
    return len(shape) > 1 and shape[1] % m == 0


def _inputs(shapes: Shapes) -> str:
    return ", ".join(f"{name!r} of {shape[1]}" for name, shape in shapes.items() if len(shape) > 1)
