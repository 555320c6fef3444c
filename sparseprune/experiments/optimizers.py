"""The optimizers that `train` knows, with the settings of the papers, and their learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


def learning_rate(optimizer: str, lr: float | None) -> float:
    """The learning rate that `train` starts from.

    Args:
        optimizer: one of `OPTIMIZERS`.
        lr: what was asked for; the optimizer's default when None.
    Returns:
        the rate.
    Raises:
        ValueError: an unknown optimizer, or a rate that is not above 0.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"train: expected an optimizer of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
    if lr is None:
        return OPTIMIZERS[optimizer].lr
    if not 0 < lr < math.inf:
        raise ValueError(f"train: expected lr > 0, got {lr}")
    return lr


def make_optimizer(model: nn.Module, name: str, lr: float) -> torch.optim.Optimizer:
    """One of `OPTIMIZERS` for all parameters of a model, with this learning rate."""
    known = OPTIMIZERS[name]
    return known.make(model.parameters(), lr=lr, **known.arguments)


@dataclass(frozen=True)
class Optimizer:
    """An optimizer that `train` knows.

    Attributes:
        make: torch's class.
        lr: default learning rate at the start.
        arguments: all other arguments of the class.
        text: name in reports.
    """

    make: Callable[..., torch.optim.Optimizer]
    lr: float
    arguments: dict[str, Any]
    text: str


OPTIMIZERS = {
    "adam": Optimizer(torch.optim.Adam, 1e-3, {"fused": True}, "Adam (fused)"),
    # The settings of the papers on pruning convolutional networks.
    "sgd": Optimizer(
        torch.optim.SGD,
        0.1,
        {"momentum": 0.9, "weight_decay": 5e-4, "fused": True},
        "SGD (fused, momentum 0.9, weight decay 0.0005)",
    ),
}
