"""Inputs that are held compactly, as bytes or as sparse rows, and become float32 a batch at a time.

40,000 numbers a sample are 160 kB as float32. Bytes take a quarter of it, and sparse rows less still.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor


class Stored(ABC):
    """Samples that are held compactly; see `Scaled` and `Csr`.

    Attributes:
        shape: samples first, as a tensor of the same inputs would have it.
        dtype: of what `dense` returns, float32.
        nbytes: bytes that are held.
    """

    dtype = torch.float32

    @property
    @abstractmethod
    def shape(self) -> torch.Size: ...

    @property
    @abstractmethod
    def nbytes(self) -> int: ...

    @abstractmethod
    def dense(self, out: Tensor | None = None) -> Tensor:
        """All samples as a float32 tensor of `shape`: `out`, which may hold anything, or a new one."""

    @abstractmethod
    def __getitem__(self, index: slice | Tensor) -> Stored:
        """A selection of samples, still compact: those of a slice, of int64 indices, or of a bool mask."""

    @abstractmethod
    def columns(self, index: Tensor) -> Stored:
        """A selection of inputs, still compact: index holds int64 positions in a flattened sample."""

    def __len__(self) -> int:
        return self.shape[0]

    def split(self, size: int) -> Iterator[Tensor]:
        """All samples in order as float32 tensors of at most so many samples."""
        for start in range(0, len(self), size):
            yield self[start : start + size].dense()


@dataclass(frozen=True, eq=False)
class Scaled(Stored):
    """Bytes that stand for (values / 255 - mean) / std, computed as values * scale + shift.

    Attributes:
        values: uint8, (samples, ...).
        mean, std: of the values between 0 and 1.
    """

    values: Tensor
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.values.dtype != torch.uint8 or self.values.dim() < 2:
            raise ValueError(
                "Scaled: expected values of type uint8 and shape (samples, ...), "
                f"got {self.values.dtype} and {tuple(self.values.shape)}"
            )
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(
                f"Scaled: expected a finite mean and a finite std > 0, got {self.mean} and {self.std}"
            )

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def dense(self, out: Tensor | None = None) -> Tensor:
        scale, shift = 1 / (255 * self.std), torch.tensor(-self.mean / self.std)
        out = torch.empty(self.shape) if out is None else out
        # Two passes over memory. Torch's faster loops take no bytes and floats together.
        return torch.add(shift, out.copy_(self.values), alpha=scale, out=out)

    def __getitem__(self, index: slice | Tensor) -> Scaled:
        index = _selection(index)
        if isinstance(index, slice):
            return Scaled(self.values[index], self.mean, self.std)
        rows = index.nonzero().squeeze(1) if index.dtype == torch.bool else index
        # Four times as fast as indexing, which copies no rows but single bytes.
        return Scaled(self.values.index_select(0, rows), self.mean, self.std)

    def columns(self, index: Tensor) -> Scaled:
        return Scaled(self.values.flatten(1).index_select(1, index), self.mean, self.std)


@dataclass(frozen=True, eq=False)
class Csr(Stored):
    """Sparse rows, one a sample, as `scipy.sparse.csr_matrix` holds them; what is stored twice is added.

    Attributes:
        crow: where each row begins in the other two, and their end, int64, (samples + 1,).
        col: positions in a sample, int64, (nnz,).
        values: float32, finite, (nnz,).
        size: (samples, inputs).
    """

    crow: Tensor
    col: Tensor
    values: Tensor
    size: tuple[int, int]

    def __post_init__(self) -> None:
        rows, inputs = self.size
        crow, col, values = self.crow, self.col, self.values
        if {crow.dtype, col.dtype} != {torch.int64} or values.dtype != torch.float32:
            raise ValueError(
                "Csr: expected crow and col of type int64 and values of type float32, "
                f"got {crow.dtype}, {col.dtype} and {values.dtype}"
            )
        if crow.shape != (rows + 1,) or col.dim() != 1 or col.shape != values.shape:
            raise ValueError(
                f"Csr: expected crow of shape ({rows + 1},), and col and values of one shape (nnz,), "
                f"got {tuple(crow.shape)}, {tuple(col.shape)} and {tuple(values.shape)}"
            )
        if int(crow[0]) != 0 or int(crow[-1]) != len(col) or bool((crow.diff() < 0).any()):
            raise ValueError(
                f"Csr: expected crow to rise from 0 to {len(col)}, the number of stored values, got "
                f"{int(crow[0])} to {int(crow[-1])}" + (", falling" if bool((crow.diff() < 0).any()) else "")
            )
        if len(col) and not 0 <= int(col.min()) <= int(col.max()) < inputs:
            raise ValueError(
                f"Csr: expected col from 0 to {inputs - 1}, got {int(col.min())} to {int(col.max())}"
            )
        if not values.isfinite().all():
            raise ValueError("Csr: expected finite numbers, got NaN or infinite ones")

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.size)

    @property
    def nbytes(self) -> int:
        return self.crow.nbytes + self.col.nbytes + self.values.nbytes

    def row(self) -> Tensor:
        """The row of each stored value, int64, (nnz,)."""
        return torch.repeat_interleave(torch.arange(len(self)), self.crow.diff())

    def dense(self, out: Tensor | None = None) -> Tensor:
        rows, inputs = self.size
        if out is None:
            # NumPy asks the system for large pages, and they are filled in order: a quarter of torch's time.
            out = torch.from_numpy(np.full((rows, inputs), 0, dtype=np.float32))
        else:
            out.zero_()
        out.view(-1).scatter_add_(0, self.row() * inputs + self.col, self.values)
        return out

    def __getitem__(self, index: slice | Tensor) -> Csr:
        chosen = torch.arange(len(self))[_selection(index)]
        counts = self.crow.diff()[chosen]
        crow = _starts(counts)
        # The n-th value of a chosen row lies n places after the row's beginning, here and there.
        moved = torch.repeat_interleave(self.crow[chosen] - crow[:-1], counts)
        place = torch.arange(int(crow[-1])) + moved
        return Csr(crow, self.col[place], self.values[place], (len(chosen), self.size[1]))

    def columns(self, index: Tensor) -> Csr:
        rows, inputs = self.size
        new_col = torch.full((inputs,), -1)
        new_col[index] = torch.arange(len(index))
        col = new_col[self.col]
        kept = col >= 0
        crow = _starts(torch.bincount(self.row()[kept], minlength=rows))
        return Csr(crow, col[kept], self.values[kept], (rows, len(index)))


Inputs: TypeAlias = Tensor | Stored


def selected(x: Inputs, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Some samples as a tensor.

    Args:
        x: inputs, (samples, ...).
        index: which samples, int64, (count,).
        out: where to write them, (count, ...) of `x.dtype`; a new tensor when None.
    """
    return x[index].dense(out) if isinstance(x, Stored) else torch.index_select(x, 0, index, out=out)


def _selection(index: slice | Tensor) -> slice | Tensor:
    if isinstance(index, slice) or (isinstance(index, Tensor) and index.dim() == 1):
        return index
    raise TypeError(f"inputs: expected a slice or a tensor of indices to select samples, got {index!r}")


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
