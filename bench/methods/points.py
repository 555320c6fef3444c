"""What the experiments on methods train: networks, data, settings and sizes, all as data."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sparseprune._sparsify import Layers
from sparseprune.scores import METHODS

DENSE, SMALL_DENSE, PRUNED = "dense", "small dense", "pruned"
AFTER_TRAINING, TICKET = "magnitude after training", "lottery ticket"
CONTROLS = ("shuffled", "reinitialised", "inverted")

SPARSITIES = (0.8, 0.9, 0.95, 0.98, 0.99)
# Those at which masks are controlled, and of which methods.
CONTROL_SPARSITIES = (0.9, 0.98)
CONTROL_METHODS = ("snip", "grasp", "synflow")
# 20 batches of 128, as in bench/results/accuracy.
SCORED = 2560
# Methods that look at the data once a round: at so many samples.
SCORED_IN_ROUNDS = {"iter_snip": 256, "force": 256, "prospr": 512, "ntk_sap": 128}
# A lottery ticket's part of the weights that each round leaves: four rounds are 90 %, eight 99 %.
TICKET_KEEPS = 0.1 ** (1 / 4)
TICKET_ROUNDS = 8
# Of table 1 of SNIP, by model.
SNIP_SPARSITIES = {"lenet_300_100": (0.95, 0.98), "lenet5_caffe": (0.98, 0.99)}
SNIP_METHODS = ("snip", "random", "magnitude")
SNIP_SCORED = 100
SAMPLE_COUNTS = (1, 10, 100, 1000, 10_000)
GROUPING_SPARSITIES = (0.9, 0.95)
SCOPE_SPARSITIES = (0.8, 0.9)
# Ways to divide a sparsity among layers.
SCOPES: dict[str, dict[str, Any]] = {
    "global": {},
    "global with a floor": {"min_per_layer": 50},
    "layer": {"scope": "layer"},
    "erk": {"scope": "erk"},
    "balanced": {"scope": "balanced"},
}
TINY = "bench.methods.tiny_transformers"


@dataclass(frozen=True)
class Training:
    """How a network is trained on some data.

    Attributes:
        samples: number of training samples; None are all.
        lr: learning rate; None is the optimizer's default.
        layers: how pruned layers compute; see `sparseprune.sparsify`.
    """

    model: str
    data: str
    epochs: int
    samples: int | None = None
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float | None = None
    layers: Layers = "measured"


@dataclass(frozen=True)
class Point:
    """A network to train; fields but ``kind`` may be idle.

    Attributes:
        kind: "dense", "small dense" (as many weights as the sparsity keeps), "pruned" (at its initial
            weights), "magnitude after training" or "lottery ticket".
        method, scope: see `sparseprune.prune`.
        sparsity: fraction of the weights that are removed.
        scored: number of training samples that score the weights.
        control: what becomes of the masks; see `sparseprune.controls`.
        block_rows: V of the blocks of V x 1.
        grouped: whether rows are permuted first, so that similar ones share blocks.
        round: number of prunings of a lottery ticket.
        min_per_layer: number of weights that each layer keeps at least. 1 by default: a layer that keeps none
            would cut the network, and what a method is like is measured, not where it breaks.
    """

    kind: str
    method: str | None = None
    sparsity: float | None = None
    scope: str = "global"
    scored: int | None = None
    control: str | None = None
    block_rows: int = 1
    grouped: bool = False
    round: int | None = None
    min_per_layer: int = 1

    @property
    def label(self) -> str:
        """Name in reports of progress."""
        words = [self.method or self.kind]
        words += [] if self.sparsity is None else [f"{100 * self.sparsity:.4g} %"]
        words += [] if self.scope == "global" else [self.scope]
        words += [] if self.min_per_layer == 1 else [f"with {self.min_per_layer} a layer"]
        words += [] if self.block_rows == 1 else [f"{self.block_rows}x1"]
        words += ["grouped"] if self.grouped else []
        words += [] if self.control is None else [self.control]
        words += [] if self.scored is None else [f"({self.scored:,} samples scored)"]
        return " ".join(words)


class Run(NamedTuple):
    """A point trained once."""

    training: Training
    seed: int
    point: Point

    @property
    def label(self) -> str:
        return f"{self.training.model} on {self.training.data}, seed {self.seed}: {self.point.label}"


Experiment = Mapping[Training, Sequence[Point]]


def pruned(method: str, sparsity: float, scored: int, **fields: Any) -> Point:
    """A network pruned at its initial weights."""
    return Point(PRUNED, method, sparsity, scored=scored, **fields)


def snip_table() -> Experiment:
    """SNIP's table 1: two networks at the paper's sparsities, one batch of 100 samples scored."""
    return {
        Training(model, data, epochs, batch_size=100): [
            Point(DENSE),
            *(
                pruned(method, sparsity, SNIP_SCORED)
                for sparsity in SNIP_SPARSITIES[model]
                for method in SNIP_METHODS
            ),
        ]
        for model in SNIP_SPARSITIES
        for data, epochs in {"mnist5k": 20, "fashion-mnist": 2}.items()
    }


def resnet8() -> Experiment:
    """Every method at every sparsity, beside other quotas, controls and pruning after training."""
    points = [Point(DENSE)]
    points += [Point(SMALL_DENSE, sparsity=sparsity) for sparsity in SPARSITIES]
    points += [
        pruned("random", sparsity, SCORED, scope=s) for s in ("layer", "erk") for sparsity in SPARSITIES
    ]
    for method in METHODS:
        scored = SCORED_IN_ROUNDS.get(method, SCORED)
        points += [pruned(method, sparsity, scored) for sparsity in SPARSITIES]
        if method in CONTROL_METHODS:
            points += [
                pruned(method, sparsity, scored, control=control)
                for sparsity in CONTROL_SPARSITIES
                for control in CONTROLS
            ]
    points += [Point(AFTER_TRAINING, sparsity=sparsity) for sparsity in SPARSITIES]
    points += [
        Point(TICKET, sparsity=round(1 - TICKET_KEEPS**number, 6), round=number)
        for number in range(1, TICKET_ROUNDS + 1)
    ]
    return {Training("resnet8", "fashion-mnist", epochs=2, samples=20_000): points}


def samples() -> Experiment:
    """How many samples SNIP must score."""
    points = [Point(DENSE), *(pruned("snip", 0.9, count) for count in SAMPLE_COUNTS)]
    return {
        Training("lenet_300_100", data, epochs, batch_size=100): points
        for data, epochs in {"mnist5k": 20, "fashion-mnist": 2}.items()
    }


def grouping() -> Experiment:
    """What SNIP loses in 4 x 1 blocks, and how much of it comes back when similar rows share blocks."""
    ways: tuple[dict[str, Any], ...] = ({}, {"block_rows": 4}, {"block_rows": 4, "grouped": True})
    points = [pruned("snip", sparsity, 5120, **way) for sparsity in GROUPING_SPARSITIES for way in ways]
    training = Training("wide_mlp", "fashion-mnist", epochs=4, batch_size=256, optimizer="adam")
    return {training: [Point(DENSE), *points]}


def scopes() -> Experiment:
    """How a sparsity is best divided among the layers of transformers."""
    points = [
        pruned("snip", sparsity, 256, **way) for sparsity in SCOPE_SPARSITIES for way in SCOPES.values()
    ]
    fixed: dict[str, Any] = {"batch_size": 64, "optimizer": "adam", "lr": 3e-3, "layers": "dense"}
    trainings = [
        Training(f"{TINY}:llama", f"{TINY}:recall", 2, **fixed),
        Training(f"{TINY}:vit", "digits", 12, **fixed),
    ]
    return {training: [Point(DENSE), *points] for training in trainings}


EXPERIMENTS: dict[str, Experiment] = {
    "snip-table": snip_table(),
    "resnet8": resnet8(),
    "samples": samples(),
    "grouping": grouping(),
    "scopes": scopes(),
}


def runs(experiment: Experiment, seeds: Sequence[int]) -> list[Run]:
    """All runs, seed by seed, so that an interrupted experiment is a complete one of fewer seeds."""
    return [
        Run(training, seed, point)
        for seed in dict.fromkeys(seeds)
        for training, points in experiment.items()
        for point in points
    ]


def cut(experiment: Experiment, epochs: int | None, samples: int | None) -> Experiment:
    """The same points, with other epochs and fewer training samples where they are given."""
    return {
        dataclasses.replace(
            training, epochs=epochs or training.epochs, samples=samples or training.samples
        ): points
        for training, points in experiment.items()
    }


def those_like(experiment: Experiment, pattern: re.Pattern[str]) -> Experiment:
    """The points whose labels match."""
    return {
        training: [point for point in points if pattern.search(point.label)]
        for training, points in experiment.items()
    }
