"""From scores to masks: exactly k weights, over the whole network or layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

import torch
from torch import Tensor

from sparseprune.format.bsr import check_block
from sparseprune.select.topk import topk_named


def kept(n: int, sparsity: float) -> int:
    """Number of weights that stay of n, k = round(n · (1 − sparsity))."""
    return round(n * (1 - float(sparsity)))


def select_masks(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: str = "global",
    block: tuple[int, int] = (1, 1),
    min_per_layer: int = 0,
    allow_empty: bool = False,
) -> dict[str, Tensor]:
    """Turn scores into masks that keep the best k = round(n · (1 − sparsity)) weights.

    Scope ``"global"`` ranks all n weights together; ``"layer"`` keeps the best k of each layer on its own.

    With blocks of V rows × 1 column of ``score.flatten(1)``, whole blocks are kept or removed by the mean of
    their scores, and n and k count blocks. A layer whose rows V does not divide, such as one of 10 classes,
    is pruned weight by weight; under ``"global"`` its weights are ranked together with the others' blocks,
    and n and k count weights. (Where such weights run out, up to V - 1 fewer than k are kept.)

    Args:
        scores: ``{parameter name: score}``, higher = keep, finite.
        sparsity: fraction removed, in [0, 1).
        scope: ``"global"`` or ``"layer"``.
        block: ``(V, 1)`` with V in 1, 2, 4, 8, 16; V divides the rows of one layer at least.
        min_per_layer: weights that each layer keeps at least (all of them, in a layer that has fewer).
            Under ``"global"`` the other layers give them up and the total stays k; under ``"layer"`` they
            come on top.
        allow_empty: accept layers that keep no weight.
    Returns:
        ``{parameter name: bool tensor of the score's shape}``, True = keep.
    Raises:
        ValueError: bad sparsity, scope, block or floor; scores that are not finite (the error has the
            parameter's name); a layer that keeps no weight (the error names it) unless ``allow_empty``.
    """
    shapes = {name: score.shape for name, score in scores.items()}
    check_selection(shapes, sparsity, scope, block, min_per_layer, allow_empty)
    rows = rows_of_blocks(shapes, block[0])
    means = {name: mean_of_blocks(score, rows[name]) for name, score in scores.items()}
    least = floors(shapes, rows, min_per_layer)
    if scope == "global":
        selected = _select_global(means, rows, sparsity, least)
    else:
        selected = {
            name: topk_named({name: score}, max(kept(score.numel(), sparsity), least[name]))[name]
            for name, score in means.items()
        }
    masks = {name: spread_blocks(selected[name], score, rows[name]) for name, score in scores.items()}
    if not allow_empty:
        refuse_empty(masks)
    return masks


def refuse_empty(masks: Mapping[str, Tensor]) -> None:
    """Raise ValueError that names the layers whose mask keeps no weight: such a layer cuts the network."""
    empty = [name for name, mask in masks.items() if mask.numel() > 0 and not mask.any()]
    if empty:
        raise ValueError(
            f"masks: expected every layer to keep a weight, got none kept in {', '.join(map(repr, empty))}; "
            "keep more weights, give each layer a floor with min_per_layer=, "
            "or accept empty layers with allow_empty=True"
        )


def check_selection(
    shapes: Mapping[str, torch.Size],
    sparsity: float,
    scope: str = "global",
    block: tuple[int, int] = (1, 1),
    min_per_layer: int = 0,
    allow_empty: bool = False,
) -> None:
    """Raise TypeError or ValueError for what ``select_masks`` refuses for weights of these shapes."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise TypeError(f"sparsity: expected a number in [0, 1), got {type(sparsity).__name__}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity: expected the fraction removed, in [0, 1), got {sparsity}")
    if scope not in ("global", "layer"):
        raise ValueError(f'scope: expected "global" or "layer", got {scope!r}')
    check_block(block, "prune")
    if isinstance(min_per_layer, bool) or not isinstance(min_per_layer, int) or min_per_layer < 0:
        raise ValueError(
            f"min_per_layer: expected a whole number of weights, 0 or more, got {min_per_layer!r}"
        )
    if not isinstance(allow_empty, bool):
        raise TypeError(f"allow_empty: expected True or False, got {type(allow_empty).__name__}")
    rows = rows_of_blocks(shapes, block[0])
    if shapes and block[0] not in rows.values():
        raise ValueError(
            f"prune: expected a layer whose rows are divisible by {block[0]} (rows of a block), got "
            f"{', '.join(f'{name!r} of {shape[0]}' for name, shape in shapes.items() if shape)}; "
            "choose a smaller block"
        )
    k = _kept_globally({name: shape.numel() // rows[name] for name, shape in shapes.items()}, rows, sparsity)
    floor = sum(count * rows[name] for name, count in floors(shapes, rows, min_per_layer).items())
    if scope == "global" and floor > k:
        raise ValueError(
            f"min_per_layer: expected floors of {k} weights in total at most "
            f"(kept at sparsity {sparsity}), got {floor}; lower min_per_layer or the sparsity"
        )


def rows_of_blocks(shapes: Mapping[str, torch.Size], rows: int) -> dict[str, int]:
    """Rows of each layer's blocks: 1 where ``rows`` does not divide the layer's."""
    return {name: rows if shape and shape[0] % rows == 0 else 1 for name, shape in shapes.items()}


def floors(shapes: Mapping[str, torch.Size], rows: Mapping[str, int], min_per_layer: int) -> dict[str, int]:
    """Blocks that each layer keeps at least."""
    return {
        name: min(-(-min_per_layer // rows[name]), shape.numel() // rows[name])
        for name, shape in shapes.items()
    }


def _kept_globally(blocks: Mapping[str, int], rows: Mapping[str, int], sparsity: float) -> int:
    """Weights that stay of layers with so many blocks: whole blocks where all layers have the same."""
    unit = min(rows.values(), default=1)
    return unit * kept(sum(count * rows[name] for name, count in blocks.items()) // unit, sparsity)


def _select_global(
    scores: Mapping[str, Tensor], rows: Mapping[str, int], sparsity: float, floors: Mapping[str, int]
) -> dict[str, Tensor]:
    k = _kept_globally({name: score.numel() for name, score in scores.items()}, rows, sparsity)
    # A layer that falls below its floor is selected on its own; the others then share less, so look again.
    free, masks = dict(scores), {}
    while True:
        taken, missing = _topk_weights(free, rows, k)
        below = [name for name in free if floors[name] > 0 and int(taken[name].sum()) < floors[name]]
        if not below:
            break
        for name in below:
            masks[name] = topk_named({name: free.pop(name)}, floors[name])[name]
            k -= floors[name] * rows[name]
    masks |= taken
    masks = {name: masks[name] for name in scores}
    # Where the next block does not fit, the best weights of layers without blocks make up the number.
    left = {name: score[~masks[name]] for name, score in scores.items() if rows[name] == 1 and missing}
    extra = topk_named(left, min(missing, sum(score.numel() for score in left.values())))
    for name, mask in extra.items():
        masks[name][~masks[name]] = mask
    return masks


def _topk_weights(
    scores: Mapping[str, Tensor], rows: Mapping[str, int], k: int
) -> tuple[dict[str, Tensor], int]:
    """The best blocks, of any sizes ranked together, that k weights suffice for, and how many are missing."""
    sizes = {rows[name] for name in scores}
    largest = max(sizes, default=1)
    if len(sizes) < 2:
        return topk_named(scores, k // largest if scores else 0), k % largest
    blocks, missing = 0, k
    while True:
        blocks += missing // largest  # as many more as surely fit, until not even one block does
        taken = topk_named(scores, blocks)
        missing = k - sum(int(mask.sum()) * rows[name] for name, mask in taken.items())
        if missing < largest:
            return taken, missing


def mean_of_blocks(score: Tensor, rows: int) -> Tensor:
    if rows == 1:
        return score
    dtype = torch.promote_types(score.dtype, torch.float32)
    return score.reshape(score.shape[0] // rows, rows, -1).mean(1, dtype=dtype)


def spread_blocks(mask: Tensor, score: Tensor, rows: int) -> Tensor:
    return mask if rows == 1 else mask.repeat_interleave(rows, 0).reshape(score.shape)
