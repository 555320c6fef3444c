"""How networks are prepared: what scores them, and how a dense one lies in memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune.experiments.data import Dataset, FirstBatches


def scored_batches(data: Dataset, count: int, batch_size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The first training samples in the seed's order, in batches.

    Args:
        data: what they come from.
        count: number of samples; all of them, where there are fewer.
        batch_size: samples in a batch; the last has what is left over.
        seed: seed of the order.
    Returns:
        list of (inputs, labels).
    """
    ((x, y),) = FirstBatches(data, count, seed, 1)
    return list(zip(x.split(batch_size), y.split(batch_size), strict=True))


def contiguous(model: nn.Module) -> nn.Module:
    """A copy whose weights lie in memory as they do in a new network."""
    return _in_format(copy.deepcopy(model), torch.contiguous_format)


def _in_format(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    # Torch's stubs lack this argument.
    untyped: Any = model
    moved: nn.Module = untyped.to(memory_format=memory_format)
    return moved
