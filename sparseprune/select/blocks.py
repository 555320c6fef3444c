"""Scores of the blocks that are kept or removed together, made once and handed from quotas to masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparseprune.format.bsr import check_block
from sparseprune.select.topk import topk_named

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of V rows × 1 column of every layer.

    A layer whose rows V does not divide, such as one of 10 classes, is made of single weights.

    Attributes:
        scores: ``{parameter name: (rows / V, cols) means of the scores of each block}``; of single weights
            the scores themselves.
        block_rows: V of each layer.
        shapes: shapes of the weights.
        floors: number of blocks that each layer keeps at least.
    """

    scores: Mapping[str, Tensor]
    block_rows: Mapping[str, int]
    shapes: Shapes
    floors: Mapping[str, int]
    # The masks of the last ranking over layers: a quota that counts them has already chosen the blocks.
    _ranked: dict[str, tuple[int, Tensor]] = field(default_factory=dict)

    @classmethod
    def unscored(cls, shapes: Shapes, block_rows: Mapping[str, int], min_per_layer: int = 0) -> "Blocks":
        """Blocks of weights of these shapes, before there are scores.

        Args:
            shapes: shapes of the weights.
            block_rows: V of each layer; see :func:`rows_of_blocks`.
            min_per_layer: number of weights that each layer keeps at least.
        """
        numbers = {name: shape.numel() // block_rows[name] for name, shape in shapes.items()}
        floors = {name: min(-(-min_per_layer // block_rows[name]), n) for name, n in numbers.items()}
        return cls({}, {name: block_rows[name] for name in shapes}, shapes, floors)

    def scored(self, scores: Mapping[str, Tensor]) -> "Blocks":
        """The same blocks with the means of these scores, of the weights' shapes, higher = keep."""
        means = {name: mean_of_blocks(scores[name], v) for name, v in self.block_rows.items()}
        return Blocks(means, self.block_rows, self.shapes, self.floors)

    @classmethod
    def of(cls, scores: Mapping[str, Tensor], block_rows: Mapping[str, int], floor: int = 0) -> "Blocks":
        """Blocks of these scores at once."""
        shapes = {name: score.shape for name, score in scores.items()}
        return cls.unscored(shapes, block_rows, floor).scored(scores)

    @property
    def numbers(self) -> dict[str, int]:
        """How many blocks each layer has."""
        return {name: shape.numel() // self.block_rows[name] for name, shape in self.shapes.items()}

    def weights_of(self, counts: Mapping[str, int]) -> int:
        """How many weights so many blocks of each layer hold."""
        return sum(count * self.block_rows[name] for name, count in counts.items())

    def kept_at(self, sparsity: float) -> int:
        """Number of weights that stay, k = round(n · (1 − sparsity)): of blocks where all have the same V."""
        unit = min(self.block_rows.values(), default=1)
        return unit * round(self.weights_of(self.numbers) // unit * (1 - float(sparsity)))

    def top(self, names: Sequence[str], count: int) -> dict[str, int]:
        """How many each layer has of the best so many blocks of these layers, ranked together."""
        taken = topk_named({name: self.scores[name] for name in names}, count)
        counts = {name: int(mask.count_nonzero()) for name, mask in taken.items()}
        self._ranked.update({name: (counts[name], mask) for name, mask in taken.items()})
        return counts

    def best(self, name: str, count: int) -> Tensor:
        """The best so many blocks of a layer, bool, of the shape of its scores."""
        ranked, mask = self._ranked.get(name, (None, None))
        if mask is None or ranked != count:
            mask = topk_named({name: self.scores[name]}, count)[name]
        return mask

    def masks(self, counts: Mapping[str, int], *, allow_empty: bool = False) -> dict[str, Tensor]:
        """The best so many blocks of each layer, as masks of the weights' shapes.

        Raises:
            ValueError: a layer would keep no weight, which cuts the network, unless ``allow_empty``; or a
                score is not finite (the errors name the layers).
        """
        empty = [name for name, number in self.numbers.items() if number > 0 and counts[name] == 0]
        if empty and not allow_empty:
            raise ValueError(
                f"masks: expected every layer to keep a weight, got none kept in "
                f"{', '.join(map(repr, empty))}; keep more weights, give each layer a floor with "
                "min_per_layer=, or accept empty layers with allow_empty=True"
            )
        masks = {}
        for name, v in self.block_rows.items():
            mask = self.best(name, counts[name])
            masks[name] = mask if v == 1 else mask.repeat_interleave(v, 0).reshape(self.shapes[name])
        return masks


def rows_of_blocks(shapes: Shapes, block_rows: int) -> dict[str, int]:
    """Rows of each layer's blocks: 1 where V does not divide the layer's."""
    return {name: block_rows if shape and shape[0] % block_rows == 0 else 1 for name, shape in shapes.items()}


def check_blocks(
    shapes: Shapes, block: tuple[int, int], min_per_layer: int = 0, allow_empty: bool = False
) -> dict[str, int]:
    """Return :func:`rows_of_blocks`, or raise TypeError or ValueError for what is no block or floor."""
    check_block(block, "prune")
    if isinstance(min_per_layer, bool) or not isinstance(min_per_layer, int) or min_per_layer < 0:
        raise ValueError(
            f"min_per_layer: expected a whole number of weights, 0 or more, got {min_per_layer!r}"
        )
    if not isinstance(allow_empty, bool):
        raise TypeError(f"allow_empty: expected True or False, got {type(allow_empty).__name__}")
    block_rows = rows_of_blocks(shapes, block[0])
    if shapes and block[0] not in block_rows.values():
        raise ValueError(
            f"prune: expected a layer whose rows are divisible by {block[0]} (rows of a block), got "
            f"{', '.join(f'{name!r} of {shape[0]}' for name, shape in shapes.items() if shape)}; "
            "choose a smaller block"
        )
    return block_rows


def mean_of_blocks(score: Tensor, block_rows: int) -> Tensor:
    """``(rows / V, cols)`` means of a score over blocks of V rows × 1 column; itself for V = 1."""
    if block_rows == 1:
        return score
    dtype = torch.promote_types(score.dtype, torch.float32)
    return score.reshape(score.shape[0] // block_rows, block_rows, -1).mean(1, dtype=dtype)
