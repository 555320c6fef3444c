"""What is trained: studies (a network and data) and the contenders of each, all as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sparseprune.experiments.tuning import grid

DENSE, SMALL_DENSE, SPARSE = "dense", "small dense", "sparse"
FASHION, MOSAIC = "fashion-mnist", "mosaic"
# How long a contender trains: for the epochs, or for the seconds that RigL takes for them.
EPOCHS, TIME = "epochs", "time"
VIEWS = (EPOCHS, TIME)
WORDS = {"layer": "uniform", "erk": "ERK", "global": "global"}  # scopes

Method = Literal["rigl", "set"]


@dataclass(frozen=True)
class Point:
    """A network to train; fields but ``kind`` may be idle.

    Attributes:
        kind: "dense", "small dense" or "sparse".
        width: part of the study's width.
        method, scope, sparsity: see `sparseprune.prune`.
        rewire: how its pattern moves, "rigl" or "set"; None: it stays.
    """

    kind: str
    width: float = 1.0
    method: str | None = None
    scope: str = "layer"
    sparsity: float = 0.0
    rewire: Method | None = None

    @property
    def label(self) -> str:
        """Name in files, tables and plots."""
        if self.kind == DENSE:
            return "dense"
        if self.kind == SMALL_DENSE:
            return f"small dense, width {self.width:g}"
        method = {"rigl": "RigL", "set": "SET", None: self.method}[self.rewire]
        return f"{method} {100 * self.sparsity:.4g} %, {WORDS[self.scope]}"


@dataclass(frozen=True)
class Study:
    """A network and data, and how all contenders train.

    Attributes:
        name: what the command knows it by.
        model, width: see `sparseprune.experiments.models.Network`.
        data: "fashion-mnist", or "mosaic": another one for each seed.
        batch_size: samples in a step.
        optimizer: one of `sparseprune.experiments.optimizers.OPTIMIZERS`.
        centre: rate that the grids of the contenders lie around; ``centre_of_dense`` that of dense ones.
        factor: ratio of neighbouring rates.
        every: steps from one rewiring to the next.
        sparsity: of all layers but those that stay dense.
        small: widths of small dense networks.
        whole: which layers stay dense: indices among all, in order.
        rescale: whether kept initial weights are scaled; see `sparseprune.rescale_weights`.
        epochs: usual lengths.
        tune_epochs: passes of a trial of a rate, at most.
    """

    name: str
    model: str
    data: str
    batch_size: int
    optimizer: str
    centre: float
    centre_of_dense: float
    factor: float
    every: int
    sparsity: float
    small: tuple[float, ...]
    whole: tuple[int, ...]
    rescale: bool
    epochs: tuple[int, ...]
    tune_epochs: int
    width: float = 1.0

    @property
    def points(self) -> list[Point]:
        """The contenders; SET and RigL start from uniform random masks."""
        uniform: dict[str, Any] = {"method": "random", "sparsity": self.sparsity}
        return [
            Point(DENSE),
            *(Point(SMALL_DENSE, width) for width in self.small),
            Point(SPARSE, **uniform),
            Point(SPARSE, **uniform, scope="erk"),
            Point(SPARSE, method="snip", scope="global", sparsity=self.sparsity),
            Point(SPARSE, **uniform, rewire="set"),
            self.rigl,
        ]

    @property
    def rigl(self) -> Point:
        """The contender whose time is that of all others."""
        return Point(SPARSE, method="random", sparsity=self.sparsity, rewire="rigl")

    def rates(self, point: Point, trials: int) -> list[float]:
        """Learning rates to try, as many for each contender."""
        centre = self.centre if point.kind == SPARSE else self.centre_of_dense
        return grid(centre, self.factor, trials)


def _resnet8(name: str, width: float) -> Study:
    return Study(
        name,
        "resnet8",
        FASHION,
        batch_size=128,
        optimizer="sgd",
        centre=0.1,
        centre_of_dense=0.1,
        factor=2.0,
        every=100,
        sparsity=0.9,
        small=(0.25, 0.35, 0.5, 0.7),
        # The stem and the classifier, as in the papers.
        whole=(0, -1),
        rescale=False,
        epochs=(3, 10, 30),
        tune_epochs=3,
        width=width,
    )


STUDIES = {
    study.name: study
    for study in (
        _resnet8("resnet8", 1.0),
        _resnet8("resnet8-2x", 2.0),
        # As in `bench.mosaic`: 400 steps, and so one rewiring a pass, not one in 100 steps.
        Study(
            "mosaic",
            "article_mlp",
            MOSAIC,
            batch_size=256,
            optimizer="adam",
            centre=10**-2.5,
            centre_of_dense=1e-3,
            factor=10**0.5,
            every=20,
            sparsity=0.99,
            small=(0.02, 0.08),
            whole=(-1,),
            rescale=True,
            epochs=(20,),
            tune_epochs=20,
        ),
    )
}


class Run(NamedTuple):
    """A point trained once; the seed is that of initial weights, masks, order and mosaic."""

    view: str
    epochs: int
    seed: int
    point: Point

    @property
    def label(self) -> str:
        length = f"{self.epochs} epochs" if self.view == EPOCHS else f"RigL's time for {self.epochs} epochs"
        return f"{length}, seed {self.seed}: {self.point.label}"


def runs(study: Study, epochs: Sequence[int], views: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """All runs, the shortest first, seed by seed; RigL's own time is that of its epochs."""
    return [
        Run(view, length, seed, point)
        for length in sorted(set(epochs))
        for seed in dict.fromkeys(seeds)
        for view in views
        for point in study.points
        if view == EPOCHS or point != study.rigl
    ]


@dataclass(frozen=True)
class Size:
    """All that makes a quick check smaller.

    Attributes:
        trials: number of rates that are tried for each contender.
        tune_epochs: passes of a trial, at most; the study's when None.
        held_out: training samples that rates are chosen by.
        samples, test: most training and test samples.
        every: steps from one rewiring to the next; the study's when None.
    """

    trials: int = 5
    tune_epochs: int | None = None
    held_out: int = 5000
    samples: int | None = None
    test: int | None = None
    every: int | None = None


FULL = Size()
# Everything is made, trained and moved, in minutes, and no figure means a thing.
QUICK = Size(2, 1, 128, 512, 128, 2)
