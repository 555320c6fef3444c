"""Data and untrained networks of the contenders."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

import sparseprune as sp
from bench.mosaic import points as mosaic_points
from bench.mosaic.run import TUNING_SEED as TUNING_SEED
from bench.mosaic.run import Work as MosaicWork
from bench.rewire.points import MOSAIC, SPARSE, Point, Size, Study
from sparseprune.cost.speedup import faster_layout
from sparseprune.experiments import models
from sparseprune.experiments.data import Dataset, FirstBatches, load
from sparseprune.experiments.models import Network
from sparseprune.experiments.networks import PRUNE_BATCHES
from sparseprune.scores import prunable


@dataclass
class Data:
    """The data of a study: those of the runs, and those that rates are tuned on.

    Attributes:
        study, size: what, and how much of it.
    """

    study: Study
    size: Size
    _whole: Dataset | None = None
    _mosaics: MosaicWork | None = None

    def of(self, seed: int) -> Dataset:
        """The data of a seed; of `TUNING_SEED` with training samples in place of the test samples."""
        if self.study.data == MOSAIC:
            quick = self.size.samples is not None
            self._mosaics = self._mosaics or MosaicWork(
                mosaic_points.QUICK if quick else mosaic_points.FULL, Path()
            )
            return self._mosaics.data(self._mosaics.size.cut(mosaic_points.BASE), seed)
        if self._whole is None:
            whole = load(self.study.data, samples=self.size.samples)
            few = slice(self.size.test)
            self._whole = dataclasses.replace(whole, test_x=whole.test_x[few], test_y=whole.test_y[few])
        return self._whole.validation(self.size.held_out) if seed == TUNING_SEED else self._whole


class Made(NamedTuple):
    """An untrained network, and the seconds that scoring, selecting and building sparse layers took."""

    model: nn.Module
    prune_seconds: float


def make(
    point: Point, study: Study, data: Dataset, seed: int, clock: Callable[[], float] = time.perf_counter
) -> Made:
    """The network of a contender.

    Args:
        point: which.
        study: what it is a contender of.
        data: what scores its weights.
        seed: seed of initial weights, random masks and of the batches that are scored.
        clock: function that returns seconds.
    """
    network = Network(study.model, data.sample, data.classes, study.width * point.width)
    model = models.build(network, seed)
    if point.kind != SPARSE:
        # The faster of torch's layouts: what sparse ones are compared with.
        return Made(faster_layout(model, data.sample, study.batch_size)[0], 0.0)
    assert point.method is not None
    names = list(prunable(model))
    start = clock()
    masks = sp.prune(
        model,
        FirstBatches(data, study.batch_size, seed, PRUNE_BATCHES),
        method=point.method,
        sparsity=point.sparsity,
        scope=point.scope,
        exclude=[names[i] for i in study.whole],
        seed=seed,
        min_per_layer=1,
    )
    if study.rescale:
        sp.rescale_weights(model, masks)
    sparse = sp.sparsify(model, masks, batch_size=study.batch_size, input_size=data.sample)
    return Made(sparse, clock() - start)


def kept_weights(model: nn.Module) -> int:
    """Weights that a network keeps, biases excluded."""
    return sum(int((weight != 0).sum()) for weight in _dense_weights(model))


def kept_by_input(model: nn.Module) -> Tensor:
    """How many weights of the first layer look at each input, int64 (inputs,)."""
    return (_dense_weights(model)[0] != 0).flatten(1).sum(0)


def _dense_weights(model: nn.Module) -> list[Tensor]:
    return list(prunable(sp.densify(model)).values())
