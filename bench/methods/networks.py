"""How networks are prepared: what scores them, and how a dense one lies in memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune.cost.speedup import timed_steps
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


def faster_layout(model: nn.Module, sample: Sequence[int], batch_size: int) -> tuple[nn.Module, bool]:
    """A dense network in the faster of torch's two layouts of images, timed, and whether it is channels_last.

    A slow baseline would flatter the sparse networks.
    """
    if len(sample) != 3 or not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return model, False
    twin = _in_format(copy.deepcopy(model), torch.channels_last)
    contiguous_seconds, twin_seconds = timed_steps([(model, False), (twin, True)], sample, batch_size).seconds
    return (twin, True) if twin_seconds < contiguous_seconds else (model, False)


def contiguous(model: nn.Module) -> nn.Module:
    """A copy whose weights lie in memory as they do in a new network."""
    return _in_format(copy.deepcopy(model), torch.contiguous_format)


def _in_format(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    # Torch's stubs lack this argument.
    untyped: Any = model
    moved: nn.Module = untyped.to(memory_format=memory_format)
    return moved
