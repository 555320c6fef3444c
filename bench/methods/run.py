"""One run: a network is made, pruned as its point says, trained and measured."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import sparseprune as sp
from bench.methods.networks import contiguous, scored_batches
from bench.methods.points import AFTER_TRAINING, DENSE, PRUNED, SMALL_DENSE, TICKET_KEEPS, Point, Training
from bench.methods.results import Measured
from sparseprune.cost.flops import flops_per_step
from sparseprune.cost.speedup import faster_layout
from sparseprune.experiments import models
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.models import Network
from sparseprune.experiments.optimizers import OPTIMIZERS, learning_rate
from sparseprune.experiments.train import TrainResult, train, warm_up
from sparseprune.scores import scorer


class PruningError(Exception):
    """A method cannot prune this network so: a result, with the reason."""


@dataclass(frozen=True)
class Before:
    """What was done before the last training; seconds, and how many samples were scored."""

    scored: int = 0
    spent: float = 0.0
    prune: float = 0.0
    sparsify: float = 0.0


@dataclass
class Work:
    """What all runs of a training share; the dense network of the last seed is kept, trained."""

    training: Training
    data: Dataset
    trainer: Callable[..., TrainResult] = train
    clock: Callable[[], float] = time.perf_counter
    network: Network = field(init=False)
    dense_flops: int = field(init=False)
    dense: tuple[int, nn.Module, TrainResult] | None = None

    def __post_init__(self) -> None:
        self.network = Network(self.training.model, self.data.sample, self.data.classes)
        self.dense_flops = self._flops(models.build(self.network, 0))

    def settings(self) -> dict[str, Any]:
        """What runs must have in common."""
        training = self.training
        return {
            "samples": training.samples,
            "train": len(self.data.train_x),
            "test": len(self.data.test_x),
            "epochs": training.epochs,
            "batch_size": training.batch_size,
            "optimizer": f"{OPTIMIZERS[training.optimizer].text}, cosine decay to 0",
            "lr": learning_rate(training.optimizer, training.lr),
            "min_per_layer": Point.min_per_layer,
        }

    def measure(self, point: Point, seed: int) -> Measured:
        """Make, prune and train one network that is no lottery ticket.

        Raises:
            PruningError: the method cannot prune it so.
        """
        begin = self.clock()
        network, before, channels_last = self.network, Before(), False
        if point.kind in (DENSE, SMALL_DENSE):
            if point.kind == SMALL_DENSE:
                assert point.sparsity is not None
                weights = round(models.weight_count(network) * (1 - point.sparsity))
                network = models.small_dense(network, max(1, weights))
            model, channels_last = self._faster_layout(models.build(network, seed))
        elif point.kind == AFTER_TRAINING:
            trained, dense = self._dense(seed)
            model, before = self._pruned(point, "magnitude", trained, [], seed)
            before = dataclasses.replace(before, spent=dense.seconds)
        else:
            assert point.kind == PRUNED
            assert point.method is not None
            assert point.scored is not None
            scored = scored_batches(self.data, point.scored, self.training.batch_size, seed)
            model, before = self._pruned(point, point.method, models.build(network, seed), scored, seed)
        result = self._train(model, seed)
        if point.kind == DENSE:
            self.dense = seed, model, result
        measured = self._measured(model, result, before, begin)
        return dataclasses.replace(measured, width=network.width, channels_last=channels_last)

    def ticket(self, seed: int, rounds: int, done: Callable[[int, Measured], None]) -> None:
        """Find a lottery ticket: train, prune, rewind, and again.

        Args:
            seed: seed of initial weights and order of samples.
            rounds: number of prunings, with a training after each.
            done: function that is told of each such training, with the number of prunings before it.
        """
        trained, dense = self._dense(seed)
        numbers = itertools.count()
        spent, stamp = 0.0, self.clock()

        def train_one(model: nn.Module) -> None:
            nonlocal spent, stamp
            number, pruning = next(numbers), self.clock() - stamp
            if number == 0:
                # The whole network was trained already, in the faster layout.
                model.load_state_dict(trained.state_dict())
                spent = dense.seconds
            else:
                result = self._train(model, seed)
                done(number, self._measured(model, result, Before(spent=spent, prune=pruning), stamp))
                spent += pruning + result.seconds
            stamp = self.clock()

        sp.lottery_ticket(
            lambda: models.build(self.network, seed),
            train_one,
            rounds,
            fraction=1 - TICKET_KEEPS,
            batch_size=self.training.batch_size,
            input_size=self.data.sample,
            min_per_layer=Point.min_per_layer,
        )

    def _dense(self, seed: int) -> tuple[nn.Module, TrainResult]:
        """The whole network, trained, in contiguous memory."""
        if self.dense is None or self.dense[0] != seed:
            model, _ = self._faster_layout(models.build(self.network, seed))
            self.dense = seed, model, self._train(model, seed)
        _, model, result = self.dense
        return contiguous(model), result

    def _pruned(
        self, point: Point, method: str, model: nn.Module, scored: Sequence[tuple[Tensor, Tensor]], seed: int
    ) -> tuple[nn.Module, Before]:
        assert point.sparsity is not None
        block = (point.block_rows, 1)
        score = scorer(method, seed=seed)
        start = self.clock()
        try:
            if point.grouped:
                scores = score(model, scored, F.cross_entropy)
                model = sp.group_rows(model, scores, block=block, sparsity=point.sparsity)
            masks = sp.prune(
                model,
                scored,
                method=method,
                sparsity=point.sparsity,
                scope=point.scope,
                block=block,
                seed=seed,
                min_per_layer=point.min_per_layer,
            )
        except ValueError as error:
            raise PruningError(str(error)) from error
        if point.control is not None:
            # Of a method of several rounds, scores of the first.
            ranks = score(model, scored, F.cross_entropy) if point.control == "inverted" else None
            model, masks = sp.controls(masks, model, scores=ranks, seed=seed)[point.control]
        selected = self.clock()
        sparse = sp.sparsify(
            model,
            masks,
            layers=self.training.layers,
            batch_size=self.training.batch_size,
            input_size=self.data.sample,
        )
        end = self.clock()
        count = sum(len(x) for x, _ in scored)
        return sparse, Before(scored=count, prune=end - start, sparsify=end - selected)

    def _train(self, model: nn.Module, seed: int) -> TrainResult:
        training = self.training
        warm_up(model, self.data, training.batch_size, training.optimizer)
        return self.trainer(
            model,
            self.data,
            epochs=training.epochs,
            batch_size=training.batch_size,
            optimizer=training.optimizer,
            lr=training.lr,
            seed=seed,
            clock=self.clock,
        )

    def _measured(self, model: nn.Module, result: TrainResult, before: Before, begin: float) -> Measured:
        rows = sp.summary(model).rows
        kept = sum(row.kept for row in rows)
        return Measured(
            accuracy=result.accuracy,
            curve=tuple((point.epoch, point.seconds, point.accuracy) for point in result.curve),
            epochs=result.epochs,
            steps=result.steps,
            scored=before.scored,
            spent_seconds=before.spent,
            prune_seconds=before.prune,
            sparsify_seconds=before.sparsify,
            train_seconds=result.seconds,
            total_seconds=before.spent + before.prune + result.seconds,
            wall_seconds=self.clock() - begin,
            step_seconds=result.step_seconds,
            flops_vs_dense=self._flops(model) / self.dense_flops,
            weights=kept,
            sparsity=1 - kept / models.weight_count(self.network),
            width=1.0,
            channels_last=False,
            layers={
                row.name: (
                    row.weights,
                    row.kept,
                    f"{row.computes} ({row.choice})" if row.choice else row.computes,
                )
                for row in rows
            },
        )

    def _faster_layout(self, model: nn.Module) -> tuple[nn.Module, bool]:
        faster, channels_last, _ = faster_layout(model, self.data.sample, self.training.batch_size)
        return faster, channels_last

    def _flops(self, model: nn.Module) -> int:
        return flops_per_step(model, self.data.sample, self.training.batch_size)
