"""Scores of the blocks that are kept or removed together, made once and handed from quotas to masks."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sparseprune.format.bsr import check_block
from sparseprune.select.topk import topk_named

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of every layer: V rows × 1 column, or whole rows, which are output channels.

    A layer whose rows V does not divide, such as one of 10 classes, is made of single weights.

    Attributes:
        scores: ``{parameter name: (rows / V, cols) means of the scores of each block}``; of single weights
            the scores themselves, of whole rows ``(rows, 1)``.
        block_rows: V of each layer.
        shapes: shapes of the weights.
        floors: number of blocks that each layer keeps at least.
        whole_rows: whether a block has all columns of ``weight.flatten(1)``, and not one; V is 1 then.
    """

    scores: Mapping[str, Tensor]
    block_rows: Mapping[str, int]
    shapes: Shapes
    floors: Mapping[str, int]
    whole_rows: bool = False
    # The masks of the last ranking over layers: a quota that counts them has already chosen the blocks.
    _ranked: dict[str, tuple[int, Tensor]] = field(default_factory=dict)

    @classmethod
    def unscored(
        cls,
        shapes: Shapes,
        block_rows: Mapping[str, int],
        min_per_layer: int = 0,
        keep: Collection[str] = (),
        *,
        whole_rows: bool = False,
    ) -> "Blocks":
        """Blocks of weights of these shapes, before there are scores.

        Args:
            shapes: shapes of the weights.
            block_rows: V of each layer; see :func:`rows_of_blocks`.
            min_per_layer: number of weights that each layer keeps at least.
            keep: names of the parameters that keep all their weights.
            whole_rows: whether blocks are whole rows.
        """
        blocks = cls({}, {name: block_rows[name] for name in shapes}, shapes, {}, whole_rows)
        floors = {name: n if name in keep else 0 for name, n in blocks.numbers.items()}
        return replace(blocks, floors=floors).with_floor(min_per_layer)

    def with_floor(self, min_per_layer: int) -> "Blocks":
        """The same blocks, of which each layer keeps so many weights at least; higher floors stay."""
        sizes = self.sizes
        floors = {
            name: max(self.floors[name], min(-(-min_per_layer // sizes[name]), n))
            for name, n in self.numbers.items()
        }
        return replace(self, floors=floors, _ranked={})

    def scored(self, scores: Mapping[str, Tensor]) -> "Blocks":
        """The same blocks with the means of these scores, of the weights' shapes, higher = keep."""
        if self.whole_rows:
            means = {name: mean_of_rows(scores[name]) for name in self.shapes}
        else:
            means = {name: mean_of_blocks(scores[name], v) for name, v in self.block_rows.items()}
        return replace(self, scores=means, _ranked={})

    @classmethod
    def of(
        cls,
        scores: Mapping[str, Tensor],
        block_rows: Mapping[str, int],
        floor: int = 0,
        keep: Collection[str] = (),
    ) -> "Blocks":
        """Blocks of these scores at once."""
        shapes = {name: score.shape for name, score in scores.items()}
        return cls.unscored(shapes, block_rows, floor, keep).scored(scores)

    @property
    def sizes(self) -> dict[str, int]:
        """How many weights a block of each layer has."""
        if not self.whole_rows:
            return dict(self.block_rows)
        # A layer without weights has no blocks, whatever their size.
        return {name: max(math.prod(shape[1:]), 1) for name, shape in self.shapes.items()}

    @property
    def numbers(self) -> dict[str, int]:
        """How many blocks each layer has."""
        sizes = self.sizes
        return {name: shape.numel() // sizes[name] for name, shape in self.shapes.items()}

    def weights_of(self, counts: Mapping[str, int]) -> int:
        """How many weights so many blocks of each layer hold."""
        sizes = self.sizes
        return sum(count * sizes[name] for name, count in counts.items())

    def kept_at(self, sparsity: float) -> int:
        """Number of weights that stay, k = round(n · (1 − sparsity)): of blocks where all have one size."""
        sizes = set(self.sizes.values())
        unit = sizes.pop() if len(sizes) == 1 else 1
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

    def masks(
        self,
        counts: Mapping[str, int],
        *,
        allow_empty: bool = False,
        scopes: Callable[[], Collection[str]] = tuple,
        floor: Callable[[], int] = lambda: 1,
    ) -> dict[str, Tensor]:
        """The best so many blocks of each layer, as masks of the weights' shapes.

        Args:
            counts: number of blocks of each layer.
            allow_empty: accept layers that keep no weight.
            scopes: gives the scopes that would leave none empty, for the error.
            floor: gives the ``min_per_layer`` that would do, for the error.
        Raises:
            ValueError: a layer would keep no weight, which cuts the network, unless ``allow_empty``; or a
                score is not finite (the errors name the layers).
        """
        if not allow_empty:
            self.check_none_empty(counts, scopes, floor)
        return {name: self.spread(name, self.best(name, counts[name])) for name in self.shapes}

    def spread(self, name: str, mask: Tensor) -> Tensor:
        """A mask of a layer's blocks as one of its weights."""
        shape = self.shapes[name]
        if self.whole_rows:
            return mask.reshape(-1, *(1 for _ in shape[1:])).expand(shape).clone()
        v = self.block_rows[name]
        return mask if v == 1 else mask.repeat_interleave(v, 0).reshape(shape)

    def kept(self, name: str, mask: Tensor) -> Tensor:
        """A mask of a layer's weights as one of its blocks, which it is made of: what ``spread`` undoes."""
        if self.whole_rows:
            return mask.reshape(len(mask), -1)[:, :1]
        v = self.block_rows[name]
        return mask if v == 1 else mask.flatten(1)[::v]

    def empty(self, counts: Mapping[str, int]) -> list[str]:
        """The layers that have blocks and keep none."""
        return [name for name, number in self.numbers.items() if number > 0 and counts[name] == 0]

    def check_none_empty(
        self,
        counts: Mapping[str, int],
        scopes: Callable[[], Collection[str]] = tuple,
        floor: Callable[[], int] = lambda: 1,
    ) -> None:
        """Raise ValueError where a layer keeps no block; the error names remedies that work."""
        empty = self.empty(counts)
        if not empty:
            return
        one_each = self.weights_of({name: min(1, number) for name, number in self.numbers.items()})
        if (kept := self.weights_of(counts)) < one_each:
            remedies = [f"keep more weights (one block in each layer takes {one_each}, these are {kept})"]
        else:
            # What trains well comes first; a layer at its floor is cut in all but name.
            fitting = " or ".join(f'"{scope}"' for scope in scopes())
            remedies = [f"choose scope={fitting}"] if fitting else []
            remedies += [f"give each layer a floor with min_per_layer={floor()}", "keep more weights"]
        raise ValueError(
            f"masks: expected every layer to keep a weight, got none kept in {listed(empty)}; "
            f"{', '.join(remedies)}, or accept empty layers with allow_empty=True"
        )


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names in quotes, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


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


def mean_of_rows(score: Tensor) -> Tensor:
    """``(rows, 1)`` means of a score over its rows, which are output channels."""
    dtype = torch.promote_types(score.dtype, torch.float32)
    # The sum of a long row of numbers as low as those of removed weights is finite in float64 alone.
    rows = score.reshape(score.shape[0], math.prod(score.shape[1:]))
    return rows.mean(1, dtype=torch.float64, keepdim=True).to(dtype)
