"""What the experiments on the mosaic train: settings of the data, networks, sizes and order, all as data."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sparseprune.experiments.tuning import grid

DENSE, SMALL_DENSE, SCREENED, TOLD, CONV, PRUNED = (
    "dense",
    "small dense",
    "screened",
    "told",
    "conv",
    "pruned",
)

# Rates that a grid is laid around. Adam moves every weight by about the rate, and so a hidden feature by that
# times its number of inputs: networks with all 40,000 of them want less.
CENTRE, CENTRE_OF_ALL_INPUTS, RATIO = 10**-2.5, 1e-3, 10**0.5

HIDDEN = 1000  # hidden width of article_mlp
# Of networks on some hundred inputs that were chosen.
HIDDEN_CHOSEN = 300


@dataclass(frozen=True)
class Setting:
    """A mosaic; see `sparseprune.experiments.data.mosaic`."""

    samples: int = 5000
    jitter: int = 0
    informative: int = 1
    task: str = "tile"

    @property
    def label(self) -> str:
        """What differs from the base, in words."""
        words = {
            "samples": f"{self.samples:,} samples",
            "jitter": f"jitter {self.jitter}",
            "informative": f"{self.informative} informative tiles",
            "task": f"task {self.task}",
        }
        return ", ".join(words[name] for name in self.differences) or "base"

    @property
    def differences(self) -> dict[str, Any]:
        """Fields that are not the base's."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }


BASE = Setting()
SAME = Setting(task="same")
# What all others are compared with comes first, then the most telling of each kind.
SETTINGS = (
    BASE,
    SAME,
    Setting(jitter=2),
    Setting(informative=5),
    Setting(samples=20_000),
    Setting(jitter=4),
    Setting(informative=25),
    Setting(samples=1000),
    Setting(informative=49),
    Setting(jitter=1),
    Setting(informative=2),
    Setting(samples=60_000),
    Setting(jitter=3),
    Setting(informative=10),
)


@dataclass(frozen=True)
class Point:
    """A network to train; fields but ``kind`` may be idle.

    Attributes:
        kind: "dense", "small dense" (narrower), "screened" (small dense on the inputs with the largest F
            statistics), "told" (small dense on the pixels of the informative tiles), "conv" (a small
            convolutional network) or "pruned".
        hidden: width of the hidden layers.
        inputs: number of inputs that are screened.
        method, sparsity: see `sparseprune.prune`.
        rescaled: whether kept initial weights are scaled; see `sparseprune.rescale_weights`.
    """

    kind: str
    hidden: int = HIDDEN
    inputs: int | None = None
    method: str | None = None
    sparsity: float | None = None
    rescaled: bool = True

    @property
    def label(self) -> str:
        """Name in files, tables and plots."""
        match self.kind:
            case "small dense":
                return f"small dense, h = {self.hidden}"
            case "screened":
                return f"F-test {self.inputs:,} + small dense"
            case "told":
                return "told the tile + small dense"
            case "conv":
                return "small convolutional"
            case "pruned":
                assert self.sparsity is not None
                unscaled = "" if self.rescaled else ", not rescaled"
                return f"{self.method} {100 * self.sparsity:.4g} %{unscaled}"
        return self.kind


class Run(NamedTuple):
    """A point trained once; the seed is that of mosaic, initial weights and order of samples."""

    setting: Setting
    seed: int
    point: Point

    @property
    def label(self) -> str:
        return f"{self.setting.label}, seed {self.seed}: {self.point.label}"


@dataclass(frozen=True)
class Size:
    """How long and how wide; all that makes a quick check of an experiment smaller.

    Attributes:
        steps: optimizer steps of a training, rounded to whole passes over the data ...
        passes: ... of which there are so many at least.
        batch_size: samples in a step, and in a batch that is scored.
        test, validation: samples of the test part, and of the one that rates are tuned on.
        width: factor of all hidden widths.
        samples: most training samples.
        trials: number of learning rates that are tried for each network.
    """

    steps: int = 400
    passes: int = 5
    batch_size: int = 256
    test: int = 2000
    validation: int = 2000
    width: float = 1.0
    samples: int | None = None
    trials: int = 5

    def rates(self, point: Point) -> list[float]:
        """Learning rates to try for a network, as many for each, around one that suits its kind."""
        centre = CENTRE_OF_ALL_INPUTS if point.kind in (DENSE, SMALL_DENSE) else CENTRE
        return grid(centre, RATIO, self.trials)

    def epochs(self, samples: int) -> int:
        """Passes over so many samples."""
        return max(round(self.steps / math.ceil(samples / self.batch_size)), self.passes)

    def cut(self, setting: Setting) -> Setting:
        """The setting with no more than the samples."""
        most = self.samples or setting.samples
        return dataclasses.replace(setting, samples=min(setting.samples, most))


FULL = Size()
# Everything is made and trained, in a minute, and no figure means a thing.
QUICK = Size(2, 1, 64, 100, 64, 0.02, 128, 2)


def pruned(method: str, sparsity: float, **fields: Any) -> Point:
    """A network pruned at its initial weights."""
    return Point(PRUNED, method=method, sparsity=sparsity, **fields)


DENSE_POINT = Point(DENSE)
SMALL = (Point(SMALL_DENSE, hidden=20), Point(SMALL_DENSE, hidden=80))
FTEST = Point(SCREENED, hidden=HIDDEN_CHOSEN, inputs=784)
TOLD_POINT = Point(TOLD, hidden=HIDDEN_CHOSEN)
SNIP = pruned("snip", 0.99)
TUNED = (
    DENSE_POINT,
    *SMALL,
    Point(CONV),
    FTEST,
    Point(SCREENED, hidden=HIDDEN_CHOSEN, inputs=2000),
    TOLD_POINT,
    pruned("random", 0.98),
    pruned("random", 0.99),
    pruned("magnitude", 0.99),
    pruned("gradient", 0.99),
    pruned("snip", 0.98),
    SNIP,
    pruned("snip", 0.995),
    pruned("snip", 0.99, rescaled=False),
    pruned("iter_snip", 0.99),
    pruned("grasp", 0.99),
)
# What the region shows beside dense.
FEW = (
    SMALL[1],
    Point(CONV),
    FTEST,
    TOLD_POINT,
    pruned("random", 0.99),
    SNIP,
    pruned("iter_snip", 0.99),
    pruned("grasp", 0.99),
)


def tuned(seeds: Sequence[int]) -> list[Run]:
    """All networks on the base, seed by seed."""
    return [Run(BASE, seed, point) for seed in dict.fromkeys(seeds) for point in TUNED]


def region(seeds: Sequence[int]) -> list[Run]:
    """A few networks on all settings but the base, which "tuned" has; dense with the first seed alone.

    The first seed of all settings comes first, so that an interrupted experiment still shows the region.
    """
    first, *others = dict.fromkeys(seeds)
    return [
        Run(setting, seed, point)
        for seed in (first, *others)
        for setting in SETTINGS[1:]
        for point in ((DENSE_POINT, *FEW) if seed == first else FEW)
    ]


EXPERIMENTS = {"tuned": tuned, "region": region}


def rates_of(setting: Setting) -> Setting:
    """The setting whose tuned rates are taken: the base's, but for the other task."""
    return SAME if setting.task == SAME.task else BASE


def those_like(runs: Sequence[Run], pattern: re.Pattern[str]) -> list[Run]:
    """The runs whose labels match."""
    return [run for run in runs if pattern.search(run.label)]
