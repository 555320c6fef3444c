"""Uniform noise: the control."""

from collections.abc import Iterable

import numpy
import torch
import torch.nn.functional as F
from torch import nn

from sparseprune.scores.base import Scores, numbers, prunable
from sparseprune.scores.batches import Batches
from sparseprune.scores.losses import Loss


def random(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    seed: int = 0,
    exclude: Iterable[str] = (),
) -> Scores:
    """Score weights by uniform noise in [0, 1) from ``seed``: the control that every method should beat.

    Args:
        model, exclude: see :mod:`sparseprune.scores`.
        batches, loss: not used.
        seed: seed of the noise, 0 or more; the same seed gives the same scores on every device. They are
            independent of weights that torch or NumPy drew from the same seed.
    Returns:
        ``{parameter name: float32 tensor of the weight's shape}``.
    Raises:
        ValueError: ``seed`` is negative.
    """
    generator = numbers(seed, "random")
    return {
        name: torch.from_numpy(generator.random(tuple(weight.shape), dtype=numpy.float32)).to(weight.device)
        for name, weight in prunable(model, exclude).items()
    }
