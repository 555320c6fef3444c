"""Training for a number of steps, with a pattern that moves if it is to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import sparseprune as sp
from bench.rewire.points import Method
from sparseprune.experiments.data import Dataset, batches
from sparseprune.experiments.data.iteration import room
from sparseprune.experiments.optimizers import make_optimizer
from sparseprune.experiments.rewiring import PART
from sparseprune.experiments.train import evaluate

Batches = Iterator[tuple[Tensor, Tensor]]


class Trainer:
    """A network with its optimizer, its batches and what moves its pattern."""

    def __init__(
        self, model: nn.Module, samples: Batches, optimizer: Optimizer, rewire: sp.Rewire | None = None
    ) -> None:
        self.model, self.samples, self.optimizer, self.rewire = model.train(), samples, optimizer, rewire

    def step(self) -> None:
        """What a user's loop does in a step."""
        x, y = next(self.samples)
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()
        if self.rewire is not None:
            self.rewire.step()


def passes(data: Dataset, batch_size: int, seed: int) -> Batches:
    """Shuffled batches without end, each in the memory of the one before."""
    order = torch.Generator().manual_seed(seed)
    into = room(data.train_x, batch_size)
    for _ in itertools.count():
        yield from batches(data.train_x, data.train_y, batch_size, order, into)


def train(
    model: nn.Module,
    data: Dataset,
    *,
    steps: int,
    batch_size: int,
    optimizer: str,
    lr: float,
    seed: int,
    method: Method | None = None,
    every: int = 100,
) -> float:
    """Train a network in place.

    Args:
        model: any that takes the data.
        data: what to train and to test on.
        steps: how long; the rate falls as a cosine to 0.
        batch_size, optimizer, lr, seed: see `sparseprune.experiments.train.train`.
        method, every: see `sparseprune.Rewire`; None: the pattern stays.
    Returns:
        accuracy on the test part, 0 ... 1.
    """
    updates = make_optimizer(model, optimizer, lr)
    rewire = None
    if method is not None:
        rewire = sp.Rewire(model, updates, method, every=every, until=max(1, round(PART * steps)), seed=seed)
    trainer = Trainer(model, passes(data, batch_size, seed), updates, rewire)
    for step in range(steps):
        for group in updates.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        trainer.step()
    return evaluate(model, data.test_x, data.test_y)
