"""Layers whose pattern moves, alike whether sparse or dense with a mask."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune.format.bsr import at_blocks, bsr_from_mask, largest_block, mask_from_bsr
from sparseprune.nn.dialects import MASKED, SPARSE
from sparseprune.nn.linear import SparseLinear
from sparseprune.nn.masked import Masked, masks_in, move_mask
from sparseprune.nn.sites import Site, sites, unwrapped
from sparseprune.nn.sparse import SparseLayer
from sparseprune.ops import observe
from sparseprune.ops.convolution import dense_weight_gradient

AT_ONCE = 1 << 23  # numbers of a dense gradient that are held


class Moving:
    """A layer of which each weight that is kept may go somewhere else.

    Attributes:
        name: name of its weight in the dense model.
        parameter: what is trained.
        rows, cols: rows of blocks, and columns, of the weight as a matrix.
        block_rows: V.
    """

    name: str
    parameter: nn.Parameter
    rows: int
    cols: int
    block_rows: int
    _seen: list[observe.Seen] | None = None

    def pattern(self) -> tuple[Tensor, Tensor]:
        """``(crow, col)``"""
        raise NotImplementedError

    def weights(self) -> Tensor:
        """(nnzb, V)"""
        raise NotImplementedError

    def move(self, crow: Tensor, col: Tensor, optimizers: Sequence[Optimizer]) -> None:
        """Give it another pattern; weights and what optimizers keep of them move along."""
        raise NotImplementedError

    def _key(self) -> int:
        raise NotImplementedError

    def _gradient(self, first: int, last: int) -> Tensor:
        """Rows of the dense gradient, of what was seen, (last − first, cols) in float32 or float64."""
        raise NotImplementedError

    # ---- what its backward passes see ----

    def observe(self) -> None:
        self._observed = self._key()
        self._seen = observe.observe(self._observed)

    def stop(self) -> None:
        if self._seen is not None:
            observe.stop(self._observed)
            self._seen = None

    @property
    def was_seen(self) -> bool:
        return bool(self._seen)

    def is_finite(self) -> bool:
        """Whether all that was seen is."""
        tensors = [t for seen in self._seen or () for t in seen if t is not None]
        # A sum takes one pass, and isfinite() six.
        return all(bool(t.sum(dtype=self.dtype).isfinite()) for t in tensors)

    def gradients(self) -> Iterator[tuple[int, Tensor]]:
        """The dense gradient, of (r · V, cols) numbers at a time, each with the number of its first row of
        blocks; zeros where nothing was seen."""
        v = self.block_rows
        for first, last in self.parts():
            if self._seen:
                yield first, self._gradient(first * v, last * v)
            else:
                yield first, self.parameter.new_zeros((last - first) * v, self.cols, dtype=self.dtype)

    def parts(self) -> Iterator[tuple[int, int]]:
        """First and last rows of blocks that are looked at together."""
        for first in range(0, self.rows, step := self.rows_at_once()):
            yield first, min(first + step, self.rows)

    def rows_at_once(self) -> int:
        return max(AT_ONCE // max(self.cols * self.block_rows, 1), 1)

    @property
    def dtype(self) -> torch.dtype:
        """That of its gradient: float32 at least."""
        return torch.promote_types(self.parameter.dtype, torch.float32)


class MovingSparse(Moving):
    def __init__(self, name: str, layer: SparseLayer) -> None:
        self.name, self.layer, self.parameter = name, layer, layer.values
        self.block_rows = layer.block[0]
        self.rows = layer.weight_shape[0] // self.block_rows
        self.cols = math.prod(layer.weight_shape[1:])

    def pattern(self) -> tuple[Tensor, Tensor]:
        crow, col, *_ = self.layer.pattern
        return crow, col

    def weights(self) -> Tensor:
        return self.layer.values.detach()

    def move(self, crow: Tensor, col: Tensor, optimizers: Sequence[Optimizer]) -> None:
        self.layer.move_pattern(crow, col, optimizers)

    def _key(self) -> int:
        crow: Tensor = self.layer.pattern[0]
        return crow.data_ptr()

    def _gradient(self, first: int, last: int) -> Tensor:
        layer: Any = self.layer
        result = None
        for g, x in self._seen or ():
            assert x is not None
            if isinstance(layer, SparseLinear):
                part = g[first:last].to(self.dtype) @ x.to(self.dtype).t()
            else:
                part = dense_weight_gradient(g[:, first:last], x, layer.geometry).flatten(1)
            result = part if result is None else result.add_(part)
        assert result is not None
        return result

    def rows_at_once(self) -> int:
        # A part of the channels would be of other groups.
        return self.rows if getattr(self.layer, "groups", 1) > 1 else super().rows_at_once()


class MovingMasked(Moving):
    def __init__(self, name: str, site: Site, module: Masked) -> None:
        self.name, self.module, self.parameter = name, module, site.parameter
        self.attribute, self.transposed = site.parts[0], site.transposed
        mask = self._matrix(masks_in(module)[self.attribute])
        self.block_rows = largest_block(mask)
        self.rows, self.cols = len(mask) // self.block_rows, mask.shape[1]

    def _matrix(self, t: Tensor) -> Tensor:
        return (t.t() if self.transposed else t).flatten(1)

    def pattern(self) -> tuple[Tensor, Tensor]:
        return bsr_from_mask(self._matrix(masks_in(self.module)[self.attribute]), self.block_rows)

    def weights(self) -> Tensor:
        return at_blocks(self._matrix(self.parameter.detach()), *self.pattern(), self.block_rows)

    def move(self, crow: Tensor, col: Tensor, optimizers: Sequence[Optimizer]) -> None:
        mask = mask_from_bsr(crow, col, self.cols, self.block_rows)
        shape = self.parameter.shape
        mask = mask.t().reshape(shape) if self.transposed else mask.reshape(shape)
        move_mask(self.module, self.attribute, mask, optimizers)

    def _key(self) -> int:
        return self.parameter.data_ptr()

    def _gradient(self, first: int, last: int) -> Tensor:
        result = torch.zeros(last - first, self.cols, dtype=self.dtype, device=self.parameter.device)
        for seen in self._seen or ():
            result += self._matrix(seen.g)[first:last]
        return result


def moving_layers(model: nn.Module, *, frozen: bool = False) -> list[Moving]:
    """The layers of a model with a pattern whose weights are trained, each once; or frozen ones, too."""
    found: dict[nn.Parameter, Moving] = {}
    for site in sites(unwrapped(model)):
        if site.parameter in found or not (frozen or site.parameter.requires_grad):
            continue
        if site.dialect == SPARSE:
            assert isinstance(site.module, SparseLayer)
            found[site.parameter] = MovingSparse(site.name, site.module)
        elif site.dialect == MASKED:
            assert isinstance(site.module, Masked)
            found[site.parameter] = MovingMasked(site.name, site, site.module)
    return list(found.values())
