"""Shuffled mini-batches of tensors that are in memory already."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseprune.experiments.data.dataset import Dataset
from sparseprune.experiments.data.inputs import Inputs, Stored, selected


def batches(
    x: Inputs, y: Tensor, batch_size: int, generator: torch.Generator | None = None, out: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go once through the data in a fresh random order (one gather per batch, no worker processes).

    Args:
        x: inputs, (samples, ...); see inputs.py.
        y: targets, (samples,).
        batch_size: samples per batch; the last batch holds what is left over.
        generator: source of the order; torch's global one when None.
        out: where the inputs of each batch are written, over those of the batch before; see `room`. New
            memory for every batch when None.
    Returns:
        an iterator of (inputs, targets), both tensors; the order is drawn when the first batch is asked for.
    Raises:
        ValueError: x and y differ in length, there are no samples, or batch_size is below 1.
    """
    if len(x) != len(y):
        raise ValueError(f"batches: expected as many targets as inputs ({len(x)}), got {len(y)}")
    if len(x) == 0:
        raise ValueError("batches: expected at least one sample, got 0")
    if batch_size < 1:
        raise ValueError(f"batches: expected batch_size >= 1, got {batch_size}")
    return _shuffled(x, y, batch_size, generator, out)


@dataclass(frozen=True)
class FirstBatches:
    """The first training batches in a seed's order, the same in each pass, made as they are asked for.

    All of them at once would take more memory than compact inputs do.

    Attributes:
        data: data set that they come from.
        batch_size: samples per batch.
        seed: seed of the order.
        count: number of batches; all of them where there are fewer, or when None.
    """

    data: Dataset
    batch_size: int
    seed: int
    count: int | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.Generator().manual_seed(self.seed)
        return itertools.islice(
            batches(self.data.train_x, self.data.train_y, self.batch_size, order), self.count
        )

    def __len__(self) -> int:
        there = -(-len(self.data.train_x) // self.batch_size)
        return there if self.count is None else min(there, self.count)


def room(x: Inputs, batch_size: int) -> Tensor:
    """Memory for the inputs of a batch.

    40,000 numbers a sample make new memory dear: the system hands it out in pages of zeros, which took longer
    than writing a batch of 256 samples.
    """
    count = max(0, min(batch_size, len(x)))
    device = torch.device("cpu") if isinstance(x, Stored) else x.device
    return torch.empty((count, *x.shape[1:]), dtype=x.dtype, device=device)


def _shuffled(
    x: Inputs, y: Tensor, batch_size: int, generator: torch.Generator | None, out: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    for index in torch.randperm(len(x), generator=generator).split(batch_size):
        into = None if out is None else out[: len(index)]
        yield selected(x, index, into), y.index_select(0, index)
