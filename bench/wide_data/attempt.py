"""One way to learn, from one seed: pruned or screened where it begins with that, then trained and tested."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

import sparseprune as sp
from bench.wide_data import linear, looks
from bench.wide_data.contenders import LINEAR, SCREENED, SPARSE, WIDE, Contender
from bench.wide_data.prepared import Prepared
from sparseprune.experiments import models
from sparseprune.experiments.data import Dataset, FirstBatches
from sparseprune.experiments.data.screening import f_statistics, screened
from sparseprune.experiments.models import Network
from sparseprune.experiments.networks import PRUNE_BATCHES
from sparseprune.experiments.train import train, warm_up

MODEL, OPTIMIZER = "article_mlp", "adam"
# A layer that keeps none would cut the network.
MIN_PER_LAYER = 1


@dataclass(frozen=True)
class Settings:
    """How networks are trained on a data set: passes over the data, and samples in a step."""

    epochs: int
    batch_size: int


@dataclass(frozen=True)
class Start:
    """What is there before the first step.

    Attributes:
        model: the untrained network.
        data: what it is trained on.
        seconds: time of pruning or screening.
        weights: weights of its layers, of a pruned network those that it keeps.
        looks: which inputs it looks at; empty where it is all of them.
    """

    model: nn.Module
    data: Dataset
    seconds: float
    weights: int
    looks: dict[str, Any]


@dataclass
class Attempt:
    """A contender with one of its variants, on some data, from one seed."""

    contender: Contender
    variant: Mapping[str, Any]
    data: Prepared
    settings: Settings
    seed: int
    clock: Callable[[], float] = time.perf_counter

    def run(self, rate: float, *, warm: bool = False) -> dict[str, Any]:
        """Train at a rate and test.

        Args:
            rate: see `Contender.rates`.
            warm: whether to train a copy for some steps first, so that the timed run does not start cold.
        Returns:
            "accuracy", 0 ... 1; "weights"; "prune_seconds" (of pruning or screening), "train_seconds",
            "total_seconds"; of networks "step_seconds", "steps" and "looks".
        """
        return self._fitted(rate) if self.contender.kind == LINEAR else self._trained(rate, warm)

    def _fitted(self, rate: float) -> dict[str, Any]:
        start = self.clock()
        model, converged = linear.fit(self.contender.label, rate, self.data, self.seed)
        seconds = self.clock() - start
        judged = linear.judge(model, self.data, converged)
        times = {"prune_seconds": 0.0, "train_seconds": seconds, "total_seconds": seconds}
        return {**vars(judged), **times}

    def _trained(self, rate: float, warm: bool) -> dict[str, Any]:
        start = self.start
        model = copy.deepcopy(start.model)
        batch_size = self.settings.batch_size
        if warm:
            warm_up(model, start.data, batch_size, OPTIMIZER)
        result = train(
            model,
            start.data,
            epochs=self.settings.epochs,
            batch_size=batch_size,
            optimizer=OPTIMIZER,
            lr=rate,
            seed=self.seed,
            clock=self.clock,
        )
        return {
            "accuracy": result.accuracy,
            "weights": start.weights,
            "prune_seconds": start.seconds,
            "train_seconds": result.seconds,
            "total_seconds": start.seconds + result.seconds,
            "step_seconds": result.step_seconds,
            "steps": result.steps,
            "looks": start.looks,
        }

    @functools.cached_property
    def start(self) -> Start:
        """Pruned or screened once for all rates."""
        contender, whole = self.contender, self.data.dataset("wide")
        if contender.kind == SPARSE:
            return self._pruned(whole)
        data, seconds, found = whole, 0.0, {}
        if contender.kind == SCREENED:
            begin = self.clock()
            data, index = screened(whole, min(self.variant["inputs"], whole.features))
            seconds = self.clock() - begin
            kept = np.zeros(self.data.train_x.shape[1], np.int64)
            kept[index.numpy()] = contender.hidden
            found = looks.looked_at(kept, self.data, f_statistics(whole.train_x, whole.train_y))
        network = self._network(data)
        return Start(models.build(network, self.seed), data, seconds, models.weight_count(network), found)

    def _pruned(self, data: Dataset) -> Start:
        contender, settings = self.contender, self.settings
        assert contender.method is not None
        network = self._network(data)
        model = models.build(network, self.seed)
        begin = self.clock()
        masks = sp.prune(
            model,
            FirstBatches(data, settings.batch_size, self.seed, PRUNE_BATCHES),
            method=contender.method,
            sparsity=contender.sparsity,
            seed=self.seed,
            min_per_layer=MIN_PER_LAYER,
        )
        sp.rescale_weights(model, masks)
        sparse = sp.sparsify(model, masks, batch_size=settings.batch_size, input_size=network.sample)
        seconds = self.clock() - begin
        kept = next(iter(masks.values())).sum(0).numpy()
        weights = sum(int(mask.sum()) for mask in masks.values())
        return Start(sparse, data, seconds, weights, looks.looked_at(kept, self.data))

    def _network(self, data: Dataset) -> Network:
        return Network(MODEL, data.sample, len(self.data.classes), self.contender.hidden / WIDE)
