"""At equal measured training time, which network is the most accurate: dense, small dense or sparse?

A frontier trains a dense network, narrower dense ones and pruned ones of several FLOP budgets, with several
seeds, and measures the accuracy and the time of each. Every finished run is at once a line of a file, from
which the next call goes on.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.cost import machine
from sparseprune.cost.flops import flops_costs, flops_per_step
from sparseprune.cost.seconds import measured_costs
from sparseprune.cost.speedup import step_seconds
from sparseprune.experiments import models
from sparseprune.experiments.compare import PRUNE_BATCHES, Watcher
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.frontier import results as frontier_results
from sparseprune.experiments.frontier.results import Layer, Measured, Point, Record
from sparseprune.experiments.frontier.rules import (
    LAYERWISE,
    RULES,
    WEIGHTED,
    check_budget,
    masks_within,
    small_dense,
)
from sparseprune.experiments.models import Network
from sparseprune.experiments.networks import prune_set, shuffled_masks
from sparseprune.experiments.train import OPTIMIZERS, TrainResult, learning_rate, train, warm_up
from sparseprune.format.bsr import BLOCK_ROWS
from sparseprune.scores import METHODS, prunable, scorer
from sparseprune.select.budget import EXPONENT, LayerCost, scores_for


def frontier_points(
    *,
    budgets: Sequence[float] = (0.5, 0.3, 0.2, 0.1, 0.05),
    methods: Sequence[str] = ("random", "snip", "grasp"),
    rules: Sequence[str] = RULES,
    block_rows: Sequence[int] = (1, 4),
    exponents: Sequence[float] = (EXPONENT,),
    shuffled: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
) -> list[Point]:
    """The runs of a frontier, seed by seed, so that an interrupted one is a complete one of fewer seeds.

    Args:
        budgets: fractions of the dense training FLOPs, in (0, 1].
        methods: by which weights are scored; see `sparseprune.prune`.
        rules: by which a budget is divided among layers; see `masks_within` of rules.py.
        block_rows: V, of 1, 2, 4, 8, 16.
        exponents: of the rules "cost" and "time", 0 to 1.
        shuffled: add the masks of other rules than "uniform" and "erk" shuffled within their layers.
        seeds: one run of everything for each.
    Returns:
        of each seed: dense, small dense, then method by method (scored once), each with every rule, exponent,
        V and budget. A global ranking of random scores is left out: it is uniform.
    Raises:
        ValueError: something is unknown or out of range.
    """
    for what, values, known in (
        ("methods", methods, METHODS),
        ("rules", rules, RULES),
        ("blocks", block_rows, BLOCK_ROWS),
    ):
        if unknown := [value for value in values if value not in known]:
            raise ValueError(f"frontier: expected {what} of {', '.join(map(str, known))}, got {unknown[0]!r}")
    for budget in budgets:
        if not 0 < budget <= 1:
            raise ValueError(
                f"frontier: expected budgets in (0, 1], fractions of the dense training FLOPs, got {budget}"
            )
    for power in exponents:
        if not 0 <= power <= 1:
            raise ValueError(f"frontier: expected exponents from 0 to 1, got {power}")
    points = []
    for seed in seeds:
        points.append(Point("dense", seed))
        points += [Point("small dense", seed, budget) for budget in budgets]
        for method, rule in itertools.product(methods, rules):
            if (method, rule) == ("random", "global"):
                continue
            powers: Sequence[float | None] = exponents if rule in WEIGHTED else (None,)
            orders = (False, True) if shuffled and rule not in LAYERWISE and method != "random" else (False,)
            for order, exponent, rows, budget in itertools.product(orders, powers, block_rows, budgets):
                points.append(Point("sparse", seed, budget, method, rule, exponent, rows, order))
    return list(dict.fromkeys(points))


def frontier(
    data: Dataset,
    model: str,
    points: Sequence[Point],
    file: Path,
    *,
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

    Dense networks of images train in the faster of torch's two layouts: a slow baseline would flatter the
    sparse ones.

    Args:
        data: what to train and test on.
        model: name in `sparseprune.models.MODELS`.
        points: see `frontier_points`.
        file: JSON lines, a `Record` each; made if missing. Its folder must exist.
        epochs: passes over the data of each run.
        batch_size: samples per training step and per batch of scoring.
        optimizer, lr: see `sparseprune.experiments.train.train`.
        prune_batches: number of training batches that are scored.
        rescale: scale the weights that stay; see `sparseprune.rescale_weights`.
        trainer: trains, as `train` does; replaced in tests.
        clock: returns seconds; replaced in tests.
        watcher: is told of the progress.
        warn: is told of a last line that was cut off; a Python warning by default.
    Returns:
        the file's records of these points, in the points' order.
    Raises:
        ValueError: a setting is out of range, a budget cannot be met, or the file has runs of other settings.
    """
    if epochs < 1:
        raise ValueError(f"frontier: expected epochs >= 1, got {epochs}")
    if prune_batches < 1 or batch_size < 1:
        raise ValueError(
            f"frontier: expected prune_batches and batch_size >= 1, got {prune_batches} and {batch_size}"
        )
    rate = learning_rate(optimizer, lr)
    work = _Work(
        data=data,
        network=Network(model, data.sample, data.classes),
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=rate,
        prune_batches=prune_batches,
        rescale=rescale,
        trainer=trainer,
        clock=clock,
        watcher=watcher or Watcher(),
    )
    # Mistakes cost seconds: all that can be wrong is looked for before the first run.
    work.check(points)
    records = frontier_results.read(file, **({} if warn is None else {"warn": warn}))
    settings, here = work.settings(), machine.facts()
    for record in records[:1]:
        frontier_results.check_alike(record, settings, here, file)
    done = {record.point: record for record in records}
    todo = [point for point in points if point not in done]
    for i, point in enumerate(todo):
        number = len(points) - len(todo) + i + 1
        left = seconds_left(todo[i:], list(done.values()))
        estimate = "" if left is None else f" ({time_text(left)} left in all)"
        work.watcher.begin(point.label + estimate, number, len(points))
        record = Record(point, settings, here, work.measure(point))
        frontier_results.append(file, record)
        done[point] = record
        run = record.measured
        left = seconds_left(todo[i + 1 :], list(done.values()))
        assert left is not None
        work.watcher.end(
            f"{number}/{len(points)} {point.label}",
            f"{100 * run.accuracy:.2f} % after {run.total_seconds:.1f} s, "
            f"{100 * run.flops_vs_dense:.3g} % FLOPs, {run.weights:,} weights; {time_text(left)} left",
        )
    return [done[point] for point in points]


def seconds_left(todo: Sequence[Point], done: Sequence[Record]) -> float | None:
    """About how long the runs to do will take; None before the first one is done.

    A run takes as long as those that differ in nothing but the seed. Where there is none, as long as those of
    its kind with the nearest budget; of another kind, times the ratio of the counted FLOPs.
    """
    if not done:
        return None
    total = 0.0
    for point in todo:

        def distance(record: Record, point: Point = point) -> tuple[bool, float, bool]:
            return (
                record.point.kind != point.kind,
                abs(record.point.budget - point.budget),
                record.point.family != point.family,
            )

        least = min(map(distance, done))
        nearest = [record for record in done if distance(record) == least]
        seconds = statistics.mean(record.measured.wall_seconds for record in nearest)
        total += seconds * (point.budget / nearest[0].point.budget if least[0] else 1.0)
    return total


def time_text(seconds: float) -> str:
    """ "40 s", "12 min" or "3 h 5 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


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
    seconds: dict[int, dict[str, LayerCost]] = field(default_factory=dict)  # by rows of a block
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
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "optimizer": OPTIMIZERS[self.optimizer].text,
            "lr": self.lr,
            "prune_batches": self.prune_batches,
            "rescale": self.rescale,
        }

    def check(self, points: Sequence[Point]) -> None:
        shapes = {name: weight.shape for name, weight in prunable(models.build(self.network, 0)).items()}
        for rows, budget in dict.fromkeys((p.block_rows, p.budget) for p in points if p.kind == "sparse"):
            check_budget(shapes, self.costs, budget, (rows or 1, 1))

    def measure(self, point: Point) -> Measured:
        """Prune and train one network."""
        network, prune_seconds, layers = self.network, (0.0, 0.0, 0.0), []
        score_seconds = 0.0
        if point.kind == "sparse":
            assert point.method is not None
            scores, score_seconds = self._scores(point.method, point.seed)
        begin = self.clock()
        channels_last = False
        if point.kind == "sparse":
            model, prune_seconds = self._pruned(point, scores, score_seconds)
            layers = [
                Layer(row.name, row.weights, row.kept, f"{row.computes} ({row.choice})")
                for row in sp.summary(model).rows
            ]
        else:
            if point.kind == "small dense":
                network = small_dense(network, point.budget)
            model = models.build(network, point.seed)
            channels_last = self._faster_channels_last(model)
            if channels_last:
                to_layout: Any = model  # torch's stubs lack this argument
                model = to_layout.to(memory_format=torch.channels_last)
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
            curve=tuple((p.epoch, p.seconds, p.accuracy) for p in result.curve),
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
        if point.rule == "time" and point.block_rows not in self.seconds:
            # Not charged: once for a network and a machine, as the kernels' measurements are.
            self.seconds[point.block_rows] = measured_costs(
                model, self.data.sample, self.batch_size, block=block
            )
        start = self.clock()
        masks = masks_within(
            point.rule,
            scores,
            self.costs,
            point.budget,
            block=block,
            exponent=EXPONENT if point.exponent is None else point.exponent,
            seconds=self.seconds.get(point.block_rows),
        )
        if point.shuffled:
            masks = shuffled_masks(masks, point.block_rows, point.seed)
        if self.rescale:
            sp.rescale_weights(model, masks)
        selected = self.clock()
        sparse = sp.sparsify(model, masks, batch_size=self.batch_size, input_size=self.data.sample)
        return sparse, (score_seconds, selected - start, self.clock() - selected)

    def _faster_channels_last(self, model: nn.Module) -> bool:
        sample = self.data.sample
        if len(sample) != 3 or not any(isinstance(module, nn.Conv2d) for module in model.modules()):
            return False
        twin: Any = copy.deepcopy(model)
        twin = twin.to(memory_format=torch.channels_last)
        contiguous = step_seconds(model, sample, self.batch_size)
        return step_seconds(twin, sample, self.batch_size, channels_last=True) < contiguous
