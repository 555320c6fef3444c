"""Train dense, small dense and sparse networks side by side, at equal epochs and at equal time."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sparseprune as sp
from sparseprune.cost import machine
from sparseprune.cost.flops import flops_per_step
from sparseprune.experiments import models
from sparseprune.experiments import networks as contenders
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.models import Network
from sparseprune.experiments.networks import Contender, label_of, prune_set
from sparseprune.experiments.train import OPTIMIZERS, TrainResult, learning_rate, train, warm_up

# Batches that score the weights, by default: 5,120 samples at batch size 256. SNIP's error falls with the
# number of scored samples up to some thousands, and the cost stays well below one pass over the data.
PRUNE_BATCHES = 20

View = Literal["epochs", "time"]


@dataclass(frozen=True)
class Run:
    """One contender trained in one view; fields of `Contender` and `TrainResult`, and what follows from them.

    Attributes:
        view: "epochs" (as many epochs as all others) or "time" (as many seconds as all others).
        total_seconds: pruning and training; evaluation excluded.
        time_vs_dense: total_seconds over those of the dense contender in the same view.
        flops_per_step: of a full batch, kept weights only; see `flops_per_step`.
        layers: how each layer computes, and why; see `sparseprune.summary`.
    """

    view: View
    label: str
    kind: str
    method: str | None
    sparsity: float | None
    block: str | None
    weights: int
    prune_seconds: float
    total_seconds: float
    time_vs_dense: float
    flops_per_step: int
    layers: tuple[str, ...]
    result: TrainResult


@dataclass(frozen=True)
class Comparison:
    """All runs and what a reader needs to judge them: data, model, settings and machine."""

    data: dict[str, Any]
    model: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    runs: tuple[Run, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists for JSON: seconds, bytes, accuracies 0 ... 1."""
        return dataclasses.asdict(self)


class Watcher:
    """Is told how a comparison proceeds; this one keeps silent."""

    def begin(self, task: str, number: int, of: int) -> None:
        """A task begins, the number-th (from 1) of so many."""

    def advance(self, part: float) -> None:
        """So much (0 ... 1) of the current task is done."""

    def end(self, task: str, outcome: str) -> None:
        """The current task is done."""


def compare(
    data: Dataset,
    model: str = "wide_mlp",
    *,
    methods: Sequence[str] = ("snip", "grasp"),
    sparsities: Sequence[float] = (0.9, 0.95),
    blocks: Sequence[tuple[int, int]] = ((1, 1),),
    epochs: int = 4,
    budget: float | Literal["dense"] | None = None,
    batch_size: int = 256,
    optimizer: str = "adam",
    lr: float | None = None,
    seed: int = 0,
    prune_batches: int = PRUNE_BATCHES,
    scope: str = "global",
    shuffled: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    watcher: Watcher | None = None,
) -> Comparison:
    """Train a dense network and its sparse and small dense competitors, and measure them.

    Contenders: dense; for each sparsity, a small dense network with about as many weights as a sparse one
    keeps; for each method, sparsity and block, the dense network pruned on its initial weights; and, if
    asked for, the same with each mask shuffled within its layer. All start from the same seed. Everything is
    pruned before anything is trained, so that a mistake costs seconds.

    The first view trains all for `epochs`. With a budget there is a second view, in which all are trained
    anew for the same wall-clock time. Pruning counts: its seconds are taken off the contender's budget.

    Args:
        data: what to train and test on.
        model: name in `sparseprune.models.MODELS`.
        methods: pruning methods that `sparseprune.prune` knows.
        sparsities: fractions of the weights to remove.
        blocks: (V, 1) of each, rows and columns that are kept or removed together; see `sparseprune.prune`.
        epochs: passes over the data in the first view.
        budget: seconds for the second view, or "dense" for the time that dense took in the first (which is
            then its run in both views); no second view when None.
        batch_size: samples per training step and per batch of scoring.
        optimizer: "adam" or "sgd"; see `sparseprune.experiments.train.train`.
        lr: initial learning rate; the optimizer's default when None.
        seed: of initial weights, order of samples and choice of the batches that are scored.
        prune_batches: number of training batches that are scored.
        scope: of the ranking of scores, "global" or per layer; see `sparseprune.prune`.
        shuffled: add networks with shuffled masks as controls, for every method but "random".
        clock: returns seconds; replaced in tests.
        watcher: is told of the progress.
    Returns:
        the runs, in the order of contenders, first view first.
    Raises:
        ValueError: a setting is out of range, or pruning fails.
    """
    if not (budget in (None, "dense") or (isinstance(budget, (int, float)) and 0 < budget < math.inf)):
        raise ValueError(f'compare: expected a budget of more than 0 seconds, or "dense", got {budget!r}')
    if prune_batches < 1:
        raise ValueError(f"compare: expected prune_batches >= 1, got {prune_batches}")
    for sparsity in sparsities:
        if not 0 <= sparsity < 1:
            raise ValueError(f"compare: expected sparsities in [0, 1), got {sparsity}")
    lr = learning_rate(optimizer, lr)
    network = Network(model, data.sample, data.classes)
    prunings = list(itertools.product(methods, sparsities, blocks))
    controls = sum(method != "random" for method, _, _ in prunings) if shuffled else 0
    others = len(sparsities) + len(prunings) + controls
    second_view = others + (budget != "dense") if budget is not None else 0
    task_count = len(prunings) + 1 + others + second_view
    number = itertools.count(1)
    watcher = watcher or Watcher()

    scored = prune_set(data, prune_batches, batch_size, seed)
    entrants = [contenders.dense(network, seed)]
    warm_up(entrants[0].make(), data, batch_size, optimizer)
    entrants += [contenders.small_dense(network, sparsity, seed) for sparsity in sparsities]
    for method, sparsity, block in prunings:
        task = f"prune: {label_of(method, sparsity, block)}"
        watcher.begin(task, next(number), task_count)
        made = contenders.pruned(
            network,
            scored,
            method,
            sparsity,
            block,
            scope=scope,
            batch_size=batch_size,
            seed=seed,
            shuffled=shuffled and method != "random",
            clock=clock,
        )
        watcher.end(task, f"{made[0].weights:,} weights kept, {made[0].prune_seconds:.2f} s")
        entrants += made

    runs: list[Run] = []

    def run(contender: Contender, view: View, **stop: Any) -> None:
        model = contender.make()
        warm_up(model, data, batch_size, optimizer)
        task = f"train, equal {view}: {contender.label}"
        watcher.begin(task, next(number), task_count)
        result = train(
            model,
            data,
            **stop,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=lr,
            seed=seed,
            clock=clock,
            on_progress=watcher.advance,
        )
        watcher.end(
            task, f"{100 * result.accuracy:.2f} % after {result.epochs:.1f} epochs, {result.seconds:.1f} s"
        )
        total = contender.prune_seconds + result.seconds
        dense_total = next((r.total_seconds for r in runs if r.view == view and r.kind == "dense"), total)
        facts = {k: v for k, v in vars(contender).items() if k != "make"}
        runs.append(
            Run(
                view=view,
                **facts,
                total_seconds=total,
                time_vs_dense=total / dense_total,
                flops_per_step=flops_per_step(model, data.sample, batch_size),
                layers=tuple(
                    f"{row.computes} ({row.choice})" if row.choice else row.computes
                    for row in sp.summary(model).rows
                ),
                result=result,
            )
        )

    for contender in entrants:
        run(contender, "epochs", epochs=epochs)
    seconds = runs[0].total_seconds if budget == "dense" else budget
    if seconds is not None:
        if budget == "dense":
            runs.append(dataclasses.replace(runs[0], view="time"))
        for contender in entrants[1:] if budget == "dense" else entrants:
            # Whoever spent it all on pruning trains for one step.
            run(contender, "time", budget=max(seconds - contender.prune_seconds, 1e-9))
    return Comparison(
        data={
            "name": data.name,
            "source": data.source,
            "train": len(data.train_x),
            "test": len(data.test_x),
            "sample": list(data.sample),
            "classes": data.classes,
        },
        model={"name": model, "weights": models.weight_count(network)},
        settings={
            "epochs": epochs,
            "budget": budget,
            "budget_seconds": seconds,
            "batch_size": batch_size,
            "optimizer": f"{OPTIMIZERS[optimizer].text}, cosine decay to 0",
            "lr": lr,
            "seed": seed,
            "prune_batches": len(scored),
            "scope": scope,
        },
        machine=machine.facts(),
        runs=tuple(runs),
    )
