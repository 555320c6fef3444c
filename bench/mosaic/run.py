"""One run: a mosaic is made, a network is made for it, its rate is tuned, and it is trained."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.mosaic.networks import informative_pixels, make, on_tiles
from bench.mosaic.points import Point, Run, Setting, Size, rates_of
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.data.mosaic import mosaic
from sparseprune.experiments.mosaic.contenders import Made
from sparseprune.experiments.networks import Contender
from sparseprune.experiments.train import TrainResult, evaluate, train
from sparseprune.experiments.tuning import Tuned, tune_rate

# Of the mosaic and the initial weights that rates are tuned on, which no result is from.
TUNING_SEED = 1000
# What each pass is tested on; all are tested at the end. 40,000 inputs make a test as dear as a pass.
FEW_TESTED = 100
OPTIMIZER = "adam"


class OutOfTimeError(Exception):
    """There is not the time for the next training."""


@dataclass
class Work:
    """What all runs share: the last mosaic, and the journal of tuned rates.

    Attributes:
        size: how long and how wide.
        rates: optuna's journal.
        clock: function that returns seconds; replaced in tests.
        left: function that returns the seconds that trainings may still take.
        say: function that is told of the trials.
    """

    size: Size
    rates: Path
    clock: Callable[[], float] = time.perf_counter
    left: Callable[[], float] = lambda: float("inf")
    say: Callable[[str], None] | None = None
    _last: tuple[Setting, int, Dataset] | None = None

    def data(self, setting: Setting, seed: int) -> Dataset:
        """The mosaic of a setting; of the tuning seed with a part of training images as test part."""
        if self._last is not None and self._last[:2] == (setting, seed):
            return self._last[2]
        # Before the next one is made: one of 60,000 samples has 2.4 GB.
        self._last = None
        fields = dataclasses.asdict(setting)
        if seed == TUNING_SEED:
            fields["samples"] += self.size.validation
            made = mosaic(**fields, test_samples=FEW_TESTED, seed=seed).validation(self.size.validation)
        else:
            made = mosaic(**fields, test_samples=self.size.test, seed=seed)
        self._last = setting, seed, made
        return made

    def make(self, setting: Setting, seed: int, point: Point) -> Made:
        """The network of a point, pruned if it is one that is; see `bench.mosaic.networks.make`."""
        return make(point, self.data(setting, seed), setting, self.size, seed, self.clock)

    def rate(self, setting: Setting, point: Point) -> Tuned:
        """The best rate of those of the size, each tried once on a validation part."""
        setting = self.size.cut(rates_of(setting))
        made: list[Contender] = []
        longest = 0.0

        def score(lr: float) -> float:
            nonlocal longest
            if self.left() <= longest:
                raise OutOfTimeError
            begin = self.clock()
            if not made:
                made.append(self.make(setting, TUNING_SEED, point).contender)
            accuracy, _ = self._trained(made[0], self.data(setting, TUNING_SEED), lr, TUNING_SEED)
            longest = max(longest, self.clock() - begin)
            return accuracy

        name = f"{setting.label}: {point.label}, {self.size.epochs(setting.samples)} passes"
        return tune_rate(score, rates=self.size.rates(point), name=name, file=self.rates, say=self.say)

    def measure(self, run: Run) -> dict[str, Any]:
        """Tune, prune and train one network.

        Returns:
            "accuracy" 0 ... 1; "lr", its trials and whether it is "at_edge"; "epochs", "steps"; seconds:
            "prune_seconds", "train_seconds", "step_seconds" (median), "wall_seconds" (of this run without
            tuning); "weights"; of the kept weights of the first layer the share "on_tile" and the "auc", None
            for a convolutional network; and the "source" of the data.
        """
        setting = self.size.cut(run.setting)
        tuned = self.rate(run.setting, run.point)
        data = self.data(setting, run.seed)
        begin = self.clock()
        contender, kept = self.make(setting, run.seed, run.point)
        found = None if kept is None else on_tiles(kept, informative_pixels(setting))
        accuracy, result = self._trained(contender, data, tuned.lr, run.seed)
        return {
            "accuracy": accuracy,
            "lr": tuned.lr,
            "trials": {f"{lr:.4g}": value for lr, value in tuned.trials.items()},
            "at_edge": tuned.at_edge,
            "epochs": result.epochs,
            "steps": result.steps,
            "prune_seconds": contender.prune_seconds,
            "train_seconds": result.seconds,
            "step_seconds": result.step_seconds,
            "wall_seconds": self.clock() - begin,
            "weights": contender.weights,
            "on_tile": None if found is None else found.share,
            "auc": None if found is None else found.auc,
            "source": data.source,
        }

    def _trained(
        self, contender: Contender, data: Dataset, lr: float, seed: int
    ) -> tuple[float, TrainResult]:
        """The accuracy on the whole test part, and what training found on a bit of it."""
        view = contender.data or data
        model = contender.make()
        few = dataclasses.replace(view, test_x=view.test_x[:FEW_TESTED], test_y=view.test_y[:FEW_TESTED])
        result = train(
            model,
            few,
            epochs=self.size.epochs(len(view.train_x)),
            batch_size=self.size.batch_size,
            optimizer=OPTIMIZER,
            lr=lr,
            seed=seed,
            clock=self.clock,
        )
        return evaluate(model, view.test_x, view.test_y), result
