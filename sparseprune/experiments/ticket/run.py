"""The lottery ticket of a network, round by round, and what its masks alone are worth."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import sparseprune as sp
from sparseprune._controls import shuffled_masks
from sparseprune._ticket import Ticket, TicketRound, lottery_ticket
from sparseprune._ticket.folder import START, alone
from sparseprune.cost import machine
from sparseprune.experiments import models
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.models import Network
from sparseprune.experiments.optimizers import OPTIMIZERS, learning_rate
from sparseprune.experiments.ticket import results
from sparseprune.experiments.ticket.results import Kind, Run, Search, result_of
from sparseprune.experiments.train import TrainResult, train, warm_up
from sparseprune.experiments.watcher import Watcher

CONTROLS: tuple[Kind, ...] = ("re-initialised", "shuffled")
SEARCH, LOCK = "search", "ticket.lock"
OTHER_SEED = 1000  # bits in which the seeds of the controls differ, and the round's number


def search(
    data: Dataset,
    model: str = "wide_mlp",
    *,
    model_args: Mapping[str, Any] | None = None,
    rounds: int = 10,
    fraction: float = 0.2,
    rewind: int = 0,
    controls: bool = True,
    epochs: int = 4,
    batch_size: int = 256,
    optimizer: str = "adam",
    lr: float | None = None,
    seed: int = 0,
    folder: Path | None = None,
    watcher: Watcher | None = None,
) -> Search:
    """Find the lottery ticket of a network, and train the masks of each round with other weights and places.

    Args:
        data: what to train and test on.
        model, model_args: name and arguments; see `sparseprune.experiments.models.Network`.
        rounds, fraction, rewind: see `sparseprune.lottery_ticket`.
        controls: whether to train each round's masks also on other initial weights (from step 0, all epochs)
            and shuffled within their layers (from step `rewind`, as the ticket).
        epochs, batch_size, optimizer, lr: see `sparseprune.experiments.train.train`.
        seed: seed of the initial weights and of the order of the samples.
        folder: where every finished training is kept, in results.json, and what is needed to go on with the
            next one; nowhere when None.
        watcher: listener that is told of the progress.
    Returns:
        all runs, with those that the folder has of earlier calls.
    Raises:
        ValueError: a setting is out of range, or the folder has results of other settings or damaged files.
        BlockingIOError: another process works in the folder.
        OSError: the folder cannot be written to.
    """
    work = _Work(
        data=data,
        network=Network(model, data.sample, data.classes, args=model_args or {}),
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=learning_rate(optimizer, lr),
        seed=seed,
        rewind=rewind,
        watcher=watcher or Watcher(),
        count=rounds + 1 + (rewind > 0) + controls * len(CONTROLS) * rounds,
    )
    with contextlib.nullcontext() if folder is None else alone(folder / LOCK, "ticket"):
        return work.search(rounds, fraction, controls, folder)


@dataclass
class _Work:
    """What all trainings share, and how many of them are done."""

    data: Dataset
    network: Network
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    seed: int
    rewind: int
    watcher: Watcher
    count: int  # of all trainings
    number: int = 0  # of those that are done

    def search(self, rounds: int, fraction: float, controls: bool, folder: Path | None) -> Search:
        found = self._nothing_yet(fraction)
        if folder is not None:
            if (old := results.read(folder, found)) is not None:
                found = old
            elif (folder / SEARCH / START).exists():
                raise ValueError(
                    f"ticket: expected {results.FILE} beside the rounds in {folder / SEARCH}, got none; "
                    "give another --out"
                )
            else:
                results.write(folder, found)
        known = {(run.kind, run.round): run for run in found.runs}

        def add(run: Run) -> None:
            nonlocal found
            known[run.kind, run.round] = run
            found = dataclasses.replace(found, runs=tuple(known.values()))
            if folder is not None:
                results.write(folder, found)
            self._tell(run)

        def train_round(module: nn.Module, start: int = 0, stop: int | None = None) -> dict[str, Any]:
            before = f"to step {stop}" if stop is not None else f"round {self.number - (self.rewind > 0)}"
            result, layers = self._train(f"train: {before}", module, start, stop)
            return {"result": dataclasses.asdict(result), "layers": layers}

        def end_round(done: TicketRound) -> None:
            result, layers = result_of(done.result["result"]), tuple(done.result["layers"])
            add(Run("ticket", done.number, done.kept, done.sparsity, layers, result))

        self.number = int(self.rewind > 0)
        ticket = lottery_ticket(
            lambda: models.build(self.network, self.seed),
            train_round,
            rounds,
            fraction=fraction,
            rewind=self.rewind,
            batch_size=self.batch_size,
            input_size=self.data.sample,
            folder=None if folder is None else folder / SEARCH,
            on_round=end_round,
        )
        for done, kind in itertools.product(ticket.rounds[1:], CONTROLS if controls else ()):
            add(known.get((kind, done.number)) or self._control(kind, ticket, done))
        return found

    def _control(self, kind: Kind, ticket: Ticket, done: TicketRound) -> Run:
        model, masks, start = ticket.model, done.masks, self.rewind
        # Another one for every round, of 64 bits whatever this one is.
        seed = self.seed ^ (OTHER_SEED + done.number)
        if kind == "shuffled":
            masks = shuffled_masks(masks, seed)
        else:
            model, start = models.build(self.network, seed), 0
        sparse = sp.sparsify(model, masks, batch_size=self.batch_size, input_size=self.data.sample)
        result, layers = self._train(f"train: round {done.number}, {kind}", sparse, start, None)
        return Run(kind, done.number, done.kept, done.sparsity, tuple(layers), result)

    def _train(
        self, task: str, model: nn.Module, start: int, stop: int | None
    ) -> tuple[TrainResult, list[str]]:
        self.watcher.begin(task, self.number + (stop is None), self.count)
        warm_up(model, self.data, self.batch_size, self.optimizer)
        # Dropout and the like: the same numbers whatever was trained before.
        with models.seeded(self.seed):
            result = train(
                model,
                self.data,
                epochs=self.epochs,
                batch_size=self.batch_size,
                optimizer=self.optimizer,
                lr=self.lr,
                seed=self.seed,
                start=start,
                stop=stop,
                on_progress=self.watcher.advance,
            )
        rows = sp.summary(model).rows
        return result, [f"{row.computes} ({row.choice})" if row.choice else row.computes for row in rows]

    def _tell(self, run: Run) -> None:
        self.number += 1
        result = run.result
        self.watcher.end(
            f"round {run.round}" + (f", {run.kind}" if run.kind != "ticket" else ""),
            f"{100 * run.sparsity:.1f} % removed, {run.weights:,} weights, {100 * result.accuracy:.2f} % "
            f"after {result.seconds:.1f} s, {1000 * result.step_seconds:.2f} ms per step",
        )

    def _nothing_yet(self, fraction: float) -> Search:
        data, network = self.data, self.network
        return Search(
            data=data.facts(),
            model={
                "name": network.name,
                "weights": models.weight_count(network),
                **({"args": dict(network.args)} if network.args else {}),
            },
            settings={
                "fraction": fraction,
                "rewind": self.rewind,
                "epochs": self.epochs,
                "batch_size": self.batch_size,
                "optimizer": f"{OPTIMIZERS[self.optimizer].text}, cosine decay to 0",
                "lr": self.lr,
                "seed": self.seed,
            },
            machine=machine.facts(),
            runs=(),
        )
