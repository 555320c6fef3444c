"""At equal measured training time, which network is the most accurate: dense, small dense or sparse?

A frontier trains a dense network, narrower dense ones and pruned ones of several FLOP budgets, with several
seeds, and measures the accuracy and the time of each. Every finished run is at once a line of a file, from
which the next call goes on.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseprune as sp
from sparseprune._controls import shuffled_masks
from sparseprune.cost import machine
from sparseprune.cost.flops import flops_costs, flops_per_step
from sparseprune.cost.seconds import measured_costs
from sparseprune.cost.speedup import step_seconds
from sparseprune.experiments import models
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.frontier import results
from sparseprune.experiments.frontier.points import Point
from sparseprune.experiments.frontier.results import Layer, Measured, Record
from sparseprune.experiments.frontier.rules import check_budget, masks_within, small_dense
from sparseprune.experiments.models import Network
from sparseprune.experiments.networks import PRUNE_BATCHES, prune_set
from sparseprune.experiments.train import OPTIMIZERS, TrainResult, learning_rate, train, warm_up
from sparseprune.experiments.watcher import Watcher
from sparseprune.scores import prunable, scorer
from sparseprune.select.budget import EXPONENT, LayerCost, scores_for


def frontier(
    data: Dataset,
    model: str,
    points: Sequence[Point],
    file: Path,
    *,
    model_args: Mapping[str, Any] | None = None,
    epochs: int = 4,
    batch_size: int = 256,
    optimizer: str = "adam",
    lr: float | None = None,
    prune_batches: int = PRUNE_BATCHES,
    rescale: bool = False,
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
        model, model_args: name and arguments; see `sparseprune.experiments.models.Network`.
        points: what to train, see `frontier_points`; small dense only of models that have a width.
        file: JSON lines, a `Record` each; made if missing. Its folder must exist. Beside it a file .lock
            keeps other processes away while this one trains.
        epochs: passes over the data of each run.
        batch_size: samples per training step and per batch of scoring.
        optimizer, lr: see `sparseprune.experiments.train.train`.
        prune_batches: number of training batches that are scored.
        rescale: whether to scale the weights that stay; see `sparseprune.rescale_weights`.
        trainer: function that trains as `train` does; replaced in tests.
        clock: function that returns seconds; replaced in tests.
        watcher: listener that is told of the progress.
        warn: function that is told of a last line that was cut off; a Python warning by default.
    Returns:
        the file's records of these points, in the points' order.
    Raises:
        ValueError: a setting is out of range, a budget cannot be met, or the file has runs of other settings
            or a run twice.
        BlockingIOError: another process trains for this file.
        OSError: the file cannot be written.
    """
    if epochs < 1:
        raise ValueError(f"frontier: expected epochs >= 1, got {epochs}")
    if prune_batches < 1 or batch_size < 1:
        raise ValueError(
            f"frontier: expected prune_batches and batch_size >= 1, got {prune_batches} and {batch_size}"
        )
    work = _Work(
        data=data,
        network=Network(model, data.sample, data.classes, args=model_args or {}),
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=learning_rate(optimizer, lr),
        prune_batches=prune_batches,
        rescale=rescale,
        trainer=trainer,
        clock=clock,
        watcher=watcher or Watcher(),
    )
    # Mistakes cost seconds: all that can be wrong is looked for before the first run.
    work.check(points)
    with results.alone(file):
        records = results.read(file, **({} if warn is None else {"warn": warn}))
        settings, here = work.settings(), machine.facts()
        for record in records[:1]:
            results.check_alike(record, settings, here, file)
        done = {record.point: record for record in records}
        todo = [point for point in dict.fromkeys(points) if point not in done]
        for number, point in enumerate(todo, len(points) - len(todo) + 1):
            work.watcher.begin(point.label, number, len(points))
            record = done[point] = Record(point, settings, here, work.measure(point))
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
    """What all runs share; scores of the last method and seed are kept for the next point."""

    data: Dataset
    network: Network
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    prune_batches: int
    rescale: bool
    trainer: Callable[..., TrainResult]
    clock: Callable[[], float]
    watcher: Watcher
    costs: dict[str, LayerCost] = field(init=False)
    dense_flops: int = field(init=False)
    # Costs in seconds, by block rows.
    timed: dict[int, dict[str, LayerCost]] = field(default_factory=dict)
    # (method, seed), scores, seconds.
    scored: tuple[tuple[str, int], dict[str, Tensor], float] | None = None

    def __post_init__(self) -> None:
        model = models.build(self.network, 0)
        self.costs = flops_costs(model, self.data.sample)
        self.dense_flops = flops_per_step(model, self.data.sample, self.batch_size)

    def settings(self) -> dict[str, Any]:
        return {
            "data": self.data.name,
            "train": len(self.data.train_x),
            "test": len(self.data.test_x),
            "sample": list(self.data.sample),
            "model": self.network.name,
            **({"model_args": dict(self.network.args)} if self.network.args else {}),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "optimizer": OPTIMIZERS[self.optimizer].text,
            "lr": self.lr,
            "prune_batches": self.prune_batches,
            "rescale": self.rescale,
        }

    def check(self, points: Sequence[Point]) -> None:
        """Raise ValueError for FLOPs that no masks, or no narrower network, can meet."""
        for flops in dict.fromkeys(point.flops for point in points if point.kind == "small dense"):
            small_dense(self.network, flops)
        shapes = {name: weight.shape for name, weight in prunable(models.build(self.network, 0)).items()}
        for rows, flops in dict.fromkeys((p.block_rows, p.flops) for p in points if p.kind == "sparse"):
            check_budget(shapes, self.costs, flops, (rows or 1, 1))

    def measure(self, point: Point) -> Measured:
        """Prune and train one network."""
        network, prune_seconds, layers = self.network, (0.0, 0.0, 0.0), []
        if point.kind == "sparse":
            assert point.method is not None
            scores, score_seconds = self._scores(point.method, point.seed)
        begin = self.clock()
        channels_last = False
        if point.kind == "sparse":
            model, prune_seconds = self._pruned(point, scores, score_seconds)
            layers = [
                Layer(layer.name, layer.weights, layer.kept, f"{layer.computes} ({layer.choice})")
                for layer in sp.summary(model).rows
            ]
        else:
            if point.kind == "small dense":
                network = small_dense(network, point.flops)
            model = models.build(network, point.seed)
            channels_last = self._faster_channels_last(model)
            if channels_last:
                model = _channels_last(model)
        warm_up(model, self.data, self.batch_size, self.optimizer)
        result = self.trainer(
            model,
            self.data,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lr=self.lr,
            seed=point.seed,
            clock=self.clock,
            on_progress=self.watcher.advance,
        )
        flops = flops_per_step(model, self.data.sample, self.batch_size)
        dense_weights = models.weight_count(network)
        return Measured(
            accuracy=result.accuracy,
            curve=tuple((point.epoch, point.seconds, point.accuracy) for point in result.curve),
            epochs=result.epochs,
            steps=result.steps,
            score_seconds=prune_seconds[0],
            select_seconds=prune_seconds[1],
            sparsify_seconds=prune_seconds[2],
            train_seconds=result.seconds,
            total_seconds=sum(prune_seconds) + result.seconds,
            wall_seconds=self.clock() - begin,
            step_seconds=result.step_seconds,
            flops=flops,
            flops_vs_dense=flops / self.dense_flops,
            weights=sum(layer.kept for layer in layers) if layers else dense_weights,
            width=network.width,
            channels_last=channels_last,
            bytes=result.bytes,
            layers=tuple(layers),
        )

    def _scores(self, method: str, seed: int) -> tuple[dict[str, Tensor], float]:
        """Scores of the initial weights, and the seconds that they took."""
        if self.scored is None or self.scored[0] != (method, seed):
            model = models.build(self.network, seed)
            batches = prune_set(self.data, self.prune_batches, self.batch_size, seed)
            start = self.clock()
            scores = dict(scores_for(method, scorer(method, seed=seed)(model, batches, F.cross_entropy)))
            self.scored = (method, seed), scores, self.clock() - start
        return self.scored[1:]

    def _pruned(
        self, point: Point, scores: dict[str, Tensor], score_seconds: float
    ) -> tuple[nn.Module, tuple[float, float, float]]:
        assert point.rule is not None
        assert point.block_rows is not None
        model = models.build(self.network, point.seed)
        block = (point.block_rows, 1)
        if point.rule == "time" and point.block_rows not in self.timed:
            # Not charged: once for a network and a machine, as the kernels' measurements are.
            self.timed[point.block_rows] = measured_costs(
                model, self.data.sample, self.batch_size, block=block
            )
        start = self.clock()
        masks = masks_within(
            point.rule,
            scores,
            self.costs,
            point.flops,
            block=block,
            exponent=EXPONENT if point.exponent is None else point.exponent,
            seconds=self.timed.get(point.block_rows),
        )
        if point.shuffled:
            masks = shuffled_masks(masks, point.seed)
        if self.rescale:
            sp.rescale_weights(model, masks)
        selected = self.clock()
        sparse = sp.sparsify(model, masks, batch_size=self.batch_size, input_size=self.data.sample)
        return sparse, (score_seconds, selected - start, self.clock() - selected)

    def _faster_channels_last(self, model: nn.Module) -> bool:
        sample = self.data.sample
        if len(sample) != 3 or not any(isinstance(module, nn.Conv2d) for module in model.modules()):
            return False
        twin = _channels_last(copy.deepcopy(model))
        contiguous = step_seconds(model, sample, self.batch_size)
        return step_seconds(twin, sample, self.batch_size, channels_last=True) < contiguous


def _channels_last(model: nn.Module) -> nn.Module:
    # Torch's stubs lack this argument.
    untyped: Any = model
    return untyped.to(memory_format=torch.channels_last)
