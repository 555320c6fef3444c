"""Seconds of training steps of networks that take turns: data, forward, backward and the optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from torch import nn

from sparseprune.experiments.data import Dataset
from sparseprune.experiments.train import train

ROUNDS = 7  # of steps, over all networks
STEPS = 6  # in a row, as in a training; the first of them makes the optimizer's state


def step_seconds(
    networks: Sequence[tuple[nn.Module, Dataset]],
    *,
    epochs: int,
    batch_size: int,
    optimizer: str,
    clock: Callable[[], float],
    say: Callable[[str], None] = lambda line: None,
) -> list[list[float]]:
    """The median seconds of a step of each network in each round.

    Args:
        networks: models, which are trained in place, each with its data.
        epochs, batch_size, optimizer: see `sparseprune.experiments.train.train`; no more than `STEPS` steps.
        clock: function that returns seconds.
        say: function that is told of the rounds.
    """
    found: list[list[float]] = [[] for _ in networks]
    for number in range(ROUNDS):
        for (model, data), seconds in zip(networks, found, strict=True):
            result = train(
                model,
                # One sample: accuracy is of no interest.
                dataclasses.replace(data, test_x=data.test_x[:1], test_y=data.test_y[:1]),
                epochs=epochs,
                batch_size=batch_size,
                optimizer=optimizer,
                seed=number,
                stop=min(STEPS, epochs * math.ceil(len(data.train_y) / batch_size)),
                clock=clock,
            )
            seconds.append(result.step_seconds)
        say(f"round {number + 1} of {ROUNDS}")
    return found
