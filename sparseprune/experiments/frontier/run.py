"""At equal measured training time, which network is the most accurate: dense, small dense or sparse?

A frontier trains a dense network, narrower dense ones and pruned ones of several FLOP budgets, with several
seeds, and measures the accuracy and the time of each. Every finished run is at once a line of a file, from
which the next call goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from sparseprune.cost import machine
from sparseprune.cost.flops import flops_per_step
from sparseprune.experiments import models
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.frontier import rates, results
from sparseprune.experiments.frontier.making import Maker
from sparseprune.experiments.frontier.points import Point
from sparseprune.experiments.frontier.rates import Rates, Tuning
from sparseprune.experiments.frontier.results import LENGTH, Measured, Record
from sparseprune.experiments.models import Network
from sparseprune.experiments.networks import PRUNE_BATCHES
from sparseprune.experiments.optimizers import OPTIMIZERS, learning_rate
from sparseprune.experiments.rewiring import EVERY, check_rewire
from sparseprune.experiments.train import TrainResult, steps_per_epoch, train, warm_up
from sparseprune.experiments.watcher import Watcher


def frontier(
    data: Dataset,
    model: str,
    points: Sequence[Point],
    file: Path,
    *,
    model_args: Mapping[str, Any] | None = None,
    width: float = 1.0,
    epochs: int = 4,
    batch_size: int = 256,
    optimizer: str = "adam",
    lr: float | None = None,
    tuning: Tuning | None = None,
    prune_batches: int = PRUNE_BATCHES,
    rescale: bool = False,
    every: int = EVERY,
    trainer: Callable[..., TrainResult] = train,
    clock: Callable[[], float] = time.perf_counter,
    watcher: Watcher | None = None,
    warn: Callable[[str], None] | None = None,
) -> list[Record]:
    """Train every network that has no line in the file yet, and add its line.

    Dense networks of images train in the faster of torch's two memory formats: a slow baseline would
    flatter the sparse ones.

    Args:
        data: what to train and test on.
        model, model_args, width: name, arguments and factor of the width of the original network; see
            `sparseprune.experiments.models.Network`.
        points: what to train, see `frontier_points`; small dense and wider ones only of models that have a
            width.
        file: JSON lines, a `Record` each; made if missing. It may hold runs of other numbers of epochs, but
            of no other settings. Its folder must exist. Beside it a file .lock keeps other processes away
            while this one trains.
        epochs: passes over the data of each run.
        batch_size: samples per training step and per batch of scoring.
        optimizer, lr: see `sparseprune.experiments.train.train`.
        tuning: how the rate of each contender is tuned; `lr` is then the middle one of those that are tried.
            Trials are kept in `rates.FILE` beside the file; their time counts nowhere.
        prune_batches: number of training batches that are scored.
        rescale: whether to scale the weights that stay; see `sparseprune.rescale_weights`. Of random masks
            this is the initial variance in proportion to 1 / density (Dey, Bergsma, Hestness, "Sparse maximal
            update parameterization", 2024, arXiv:2405.15743).
        every: steps from one move of a pattern to the next, for points that rewire.
        trainer: function that trains as `train` does; replaced in tests.
        clock: function that returns seconds; replaced in tests.
        watcher: listener that is told of the progress.
        warn: function that is told of a last line that was cut off; a Python warning by default.
    Returns:
        the file's records of these points and epochs, in the points' order.
    Raises:
        ValueError: a setting is out of range, a budget cannot be met, or the file has runs of other settings
            or a run twice.
        BlockingIOError: another process trains for this file.
        ModuleNotFoundError: rates are to be tuned, and optuna is not installed.
        OSError: a file cannot be written.
    """
    if epochs < 1:
        raise ValueError(f"frontier: expected epochs >= 1, got {epochs}")
    if prune_batches < 1 or batch_size < 1:
        raise ValueError(
            f"frontier: expected prune_batches and batch_size >= 1, got {prune_batches} and {batch_size}"
        )
    work = _Work(
        data=data,
        network=Network(model, data.sample, data.classes, width, args=model_args or {}),
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=learning_rate(optimizer, lr),
        tuning=tuning,
        prune_batches=prune_batches,
        rescale=rescale,
        every=every,
        trainer=trainer,
        clock=clock,
        watcher=watcher or Watcher(),
        trials=file.with_name(rates.FILE),
    )
    # Mistakes cost seconds: all that can be wrong is looked for before the first run.
    work.maker.check(points)
    work.check_rewire(points)
    with results.alone(file):
        records = results.read(file, **({} if warn is None else {"warn": warn}))
        settings, here = work.settings(), machine.facts()
        for record in records[:1]:
            results.check_alike(record, settings, here, file)
        done = {record.point: record for record in records if record.epochs == epochs}
        todo = [point for point in dict.fromkeys(points) if point not in done]
        for number, point in enumerate(todo, len(points) - len(todo) + 1):
            lr, trials = work.rate(point, number, len(points))
            work.watcher.begin(point.label, number, len(points))
            record = done[point] = Record(point, settings, here, work.measure(point, lr, trials))
            try:
                results.append(file, record)
            finally:
                # Also where it could not be written.
                measured = record.measured
                work.watcher.end(
                    f"{number}/{len(points)} {point.label}",
                    f"{100 * measured.accuracy:.2f} % after {measured.total_seconds:.1f} s, "
                    f"{100 * measured.flops_vs_dense:.3g} % FLOPs, {measured.weights:,} weights",
                )
    return [done[point] for point in points]


@dataclass
class _Work:
    """What all runs share."""

    data: Dataset
    network: Network
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    tuning: Tuning | None
    prune_batches: int
    rescale: bool
    every: int
    trainer: Callable[..., TrainResult]
    clock: Callable[[], float]
    watcher: Watcher
    trials: Path
    maker: Maker = field(init=False)
    rates: Rates | None = field(init=False, default=None)
    dense_flops: int = field(init=False)

    def __post_init__(self) -> None:
        self.maker = Maker(
            self.data, self.network, self.batch_size, self.prune_batches, self.rescale, self.clock
        )
        self.dense_flops = flops_per_step(models.build(self.network, 0), self.data.sample, self.batch_size)
        if self.tuning is not None:
            self.rates = Rates(
                self.tuning, self.lr, self.maker, self.settings(), self._validated, self.trials
            )

    def settings(self) -> dict[str, Any]:
        """All that decides a run but its point; as in older files, what is as always is left out."""
        return {
            "data": self.data.name,
            "train": len(self.data.train_x),
            "test": len(self.data.test_x),
            "sample": list(self.data.sample),
            "model": self.network.name,
            **({"model_args": dict(self.network.args)} if self.network.args else {}),
            **({"width": self.network.width} if self.network.width != 1 else {}),
            LENGTH: self.epochs,
            "batch_size": self.batch_size,
            "optimizer": OPTIMIZERS[self.optimizer].text,
            "lr": self.lr,
            **({"tuning": rates.facts(self.tuning, self.data)} if self.tuning else {}),
            "prune_batches": self.prune_batches,
            "rescale": self.rescale,
            **({"rewire_every": self.every} if self.every != EVERY else {}),
        }

    def check_rewire(self, points: Sequence[Point]) -> None:
        """Raise ValueError where patterns are to move, and runs or trials are too short for that."""
        methods = {point.rewire for point in points if point.rewire is not None}
        if not methods:
            return
        epochs, samples = self.epochs, len(self.data.train_x)
        if self.tuning is not None:
            # Trials are no longer, and of fewer samples.
            epochs = min(epochs, self.tuning.epochs or epochs)
            samples -= rates.held_out(self.data)
        check_rewire(methods, self.every, epochs * steps_per_epoch(samples, self.batch_size))

    def rate(self, point: Point, number: int, count: int) -> tuple[float, tuple[tuple[float, float], ...]]:
        """The learning rate of a contender, and its trials, if it was tuned."""
        if self.rates is None:
            return self.lr, ()
        tuned = self.rates.of(
            point, self.epochs, lambda trial: self.watcher.begin(trial, number, count), self.watcher.say
        )
        return tuned.lr, tuple(tuned.trials.items())

    def measure(self, point: Point, lr: float, trials: tuple[tuple[float, float], ...]) -> Measured:
        """Make and train one network."""
        begin = self.clock()
        made = self.maker.make(point)
        model = made.model
        result = self._train(model, self.data, self.epochs, lr, point)
        flops = flops_per_step(model, self.data.sample, self.batch_size)
        pruned = sum(layer.kept for layer in made.layers)
        score_seconds, select_seconds, sparsify_seconds = made.prune_seconds
        return Measured(
            accuracy=result.accuracy,
            curve=tuple((point.epoch, point.seconds, point.accuracy) for point in result.curve),
            epochs=result.epochs,
            steps=result.steps,
            score_seconds=score_seconds,
            select_seconds=select_seconds,
            sparsify_seconds=sparsify_seconds,
            train_seconds=result.seconds,
            total_seconds=sum(made.prune_seconds) + result.seconds,
            wall_seconds=self.clock() - begin,
            step_seconds=result.step_seconds,
            flops=flops,
            flops_vs_dense=flops / self.dense_flops,
            weights=pruned if made.layers else models.weight_count(made.network),
            width=made.network.width,
            channels_last=made.channels_last,
            bytes=result.bytes,
            layers=made.layers,
            lr=lr,
            trials=trials,
        )

    def _validated(self, model: nn.Module, data: Dataset, epochs: int, lr: float, point: Point) -> float:
        return self._train(model, data, epochs, lr, point).accuracy

    def _train(self, model: nn.Module, data: Dataset, epochs: int, lr: float, point: Point) -> TrainResult:
        warm_up(model, data, self.batch_size, self.optimizer)
        return self.trainer(
            model,
            data,
            epochs=epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lr=lr,
            seed=point.seed,
            rewire=point.rewire,
            every=self.every,
            clock=self.clock,
            on_progress=self.watcher.advance,
        )
