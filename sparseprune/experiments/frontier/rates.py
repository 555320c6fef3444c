"""The learning rate of each contender: the best of equally many trials on held-out training samples."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from sparseprune.experiments.data import Dataset
from sparseprune.experiments.frontier.making import Maker
from sparseprune.experiments.frontier.points import Point
from sparseprune.experiments.frontier.results import LENGTH, passes
from sparseprune.experiments.tuning import HIGHEST, LOWEST, Tuned, grid, tune_rate

FILE = "trials.log"  # optuna's journal, beside the runs
HELD_OUT, LARGEST_PART = 5000, 5  # samples to validate on, but no more than one fifth of them
SEED = 100  # of weights, masks and order in all trials: one that no run has by default


@dataclass(frozen=True)
class Tuning:
    """How rates are tuned: the same for each contender.

    Attributes:
        trials: rates that are tried.
        factor: ratio of neighbouring rates; the optimizer's own is the middle one.
        epochs: passes over the data of a trial, at most; those of the run itself when None.
    """

    trials: int = 5
    factor: float = 3.0
    epochs: int | None = None

    def rates(self, centre: float) -> list[float]:
        """The rates around a centre, rising.

        Raises:
            ValueError: a number is out of range, or a rate is.
        """
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"frontier: expected tuning over epochs >= 1, got {self.epochs}")
        rates = grid(centre, self.factor, self.trials)
        if rates[0] < LOWEST or rates[-1] > HIGHEST:
            raise ValueError(
                f"frontier: expected to try rates from {LOWEST:g} to {HIGHEST:g}, got {rates[0]:g} to "
                f"{rates[-1]:g}; ask for fewer trials or a smaller factor"
            )
        return rates


@dataclass
class Rates:
    """Finds the rate of each contender, and keeps its trials in a file.

    Attributes:
        tuning: how.
        centre: the middle one of the rates.
        maker: makes the networks; its data are those of the runs, of which the test part is not used.
        settings: settings of the runs: trials of others do not count.
        train: function of (model, data, epochs, rate, point) that trains and returns the accuracy on the test
            part of the data.
        file: optuna's journal.
    """

    tuning: Tuning
    centre: float
    maker: Maker
    settings: dict[str, Any]
    train: Callable[[nn.Module, Dataset, int, float, Point], float]
    file: Path

    def __post_init__(self) -> None:
        self._rates = self.tuning.rates(self.centre)
        self._data = self.maker.data.validation(held_out(self.maker.data))
        self._maker = replace(self.maker, data=self._data)
        self._found: dict[tuple[Point, int], Tuned] = {}
        # The length of a run does not matter, but that of a trial.
        others = {name: value for name, value in self.settings.items() if name != LENGTH}
        self._digest = hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()[:8]

    def of(
        self, point: Point, epochs: int, watch: Callable[[str], None], say: Callable[[str], None]
    ) -> Tuned:
        """The rate of a contender; what has been tried before is not tried again.

        Args:
            point: a contender; its seed does not matter.
            epochs: passes over the data of its runs.
            watch: function that is told of a trial that begins.
            say: function that is told of a trial's result.
        """
        epochs = min(epochs, self.tuning.epochs or epochs)
        contender = replace(point, seed=SEED)
        if (contender, epochs) not in self._found:
            name = f"{contender.name}, {passes(epochs)}"

            @functools.cache
            def untrained() -> nn.Module:
                # Made for the first trial, and so not at all where all of them are known.
                return self._maker.make(contender).model

            def score(lr: float) -> float:
                watch(f"{name}, lr {lr:.4g}")
                return self.train(copy.deepcopy(untrained()), self._data, epochs, lr, contender)

            study = f"{name} ({self._digest})"
            self._found[contender, epochs] = tune_rate(
                score, rates=self._rates, name=study, file=self.file, say=say
            )
        return self._found[contender, epochs]


def held_out(data: Dataset) -> int:
    """Number of training samples that validate."""
    return max(1, min(HELD_OUT, len(data.train_x) // LARGEST_PART))


def facts(tuning: Tuning, data: Dataset) -> dict[str, Any]:
    """What the settings of a frontier say of its tuning."""
    return {**asdict(tuning), "held_out": held_out(data), "seed": SEED}
