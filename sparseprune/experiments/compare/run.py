"""Train dense, small dense and sparse networks side by side, at equal epochs and at equal time."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sparseprune as sp
from sparseprune.cost import machine
from sparseprune.cost.flops import flops_per_step
from sparseprune.experiments import models, networks
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.models import Network
from sparseprune.experiments.networks import PRUNE_BATCHES, Contender, label_of, prune_set
from sparseprune.experiments.train import OPTIMIZERS, TrainResult, learning_rate, train, warm_up
from sparseprune.experiments.watcher import Watcher

View = Literal["epochs", "time"]


@dataclass(frozen=True)
class Run:
    """One contender trained in one view; fields of `Contender` and `TrainResult`, and what follows from them.

    Attributes:
        view: "epochs" (as many epochs as all others) or "time" (as many seconds as all others).
        total_seconds: time of pruning and training; evaluation excluded.
        time_vs_dense: total_seconds over those of the dense contender in the same view.
        flops_per_step: operations of a full batch, kept weights only; see `flops_per_step`.
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


def compare(
    data: Dataset,
    model: str = "wide_mlp",
    *,
    model_args: Mapping[str, Any] | None = None,
    methods: Sequence[str] = ("snip", "grasp"),
    sparsities: Sequence[float] = (0.9, 0.95),
    blocks: Sequence[tuple[int, int]] = ((1, 1),),
    epochs: int = 4,
    seconds: float | Literal["dense"] | None = None,
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
    keeps (of models that have a width); for each method, sparsity and block, the dense network pruned on its
    initial weights; and, if asked for, the same with each mask shuffled within its layer. All start from the
    same seed. Everything is pruned before anything is trained, so that a mistake costs seconds.

    The first view trains all for `epochs`. With `seconds` there is a second view, in which all are trained
    anew for the same wall-clock time. Pruning counts: its seconds are taken off the contender's.

    Args:
        data: what to train and test on.
        model, model_args: name and arguments; see `sparseprune.experiments.models.Network`.
        methods: pruning methods that `sparseprune.prune` knows.
        sparsities: fractions of the weights to remove.
        blocks: (V, 1) of each, rows and columns that are kept or removed together; see `sparseprune.prune`.
        epochs: passes over the data in the first view.
        seconds: time of the second view, or "dense" for the time that dense took in the first (which is
            then its run in both views); no second view when None.
        batch_size: samples per training step and per batch of scoring.
        optimizer: "adam" or "sgd"; see `sparseprune.experiments.train.train`.
        lr: initial learning rate; the optimizer's default when None.
        seed: seed of initial weights, order of samples and choice of the batches that are scored.
        prune_batches: number of training batches that are scored.
        scope: what scores are ranked together, those of all layers ("global") or of each ("layer").
        shuffled: whether to add networks with shuffled masks as controls, for every method but "random".
        clock: function that returns seconds; replaced in tests.
        watcher: listener that is told of the progress.
    Returns:
        the runs, in the order of contenders, first view first.
    Raises:
        ValueError: a setting is out of range, or pruning fails.
    """
    if not (seconds in (None, "dense") or (isinstance(seconds, int | float) and 0 < seconds < math.inf)):
        raise ValueError(f'compare: expected more than 0 seconds, or "dense", got {seconds!r}')
    if prune_batches < 1:
        raise ValueError(f"compare: expected prune_batches >= 1, got {prune_batches}")
    for sparsity in sparsities:
        if not 0 <= sparsity < 1:
            raise ValueError(f"compare: expected sparsities in [0, 1), got {sparsity}")
    lr = learning_rate(optimizer, lr)
    watcher = watcher or Watcher()
    network = Network(model, data.sample, data.classes, args=model_args or {})
    widths = sparsities if network.has_width else ()
    if not network.has_width:
        watcher.say(networks.no_small_dense(network))
    prunings = list(itertools.product(methods, sparsities, blocks))
    controls = sum(method != "random" for method, _, _ in prunings) if shuffled else 0
    others = len(widths) + len(prunings) + controls
    second_view = others + (seconds != "dense") if seconds is not None else 0
    task_count = len(prunings) + 1 + others + second_view
    number = itertools.count(1)

    scored = prune_set(data, prune_batches, batch_size, seed)
    contenders = [networks.dense(network, seed)]
    warm_up(contenders[0].make(), data, batch_size, optimizer)
    contenders += [networks.small_dense(network, sparsity, seed) for sparsity in widths]
    for method, sparsity, block in prunings:
        task = f"prune: {label_of(method, sparsity, block)}"
        watcher.begin(task, next(number), task_count)
        made = networks.pruned(
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
        contenders += made

    runs: list[Run] = []

    def train_in(view: View, contender: Contender, **stop: Any) -> None:
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
        facts = {name: value for name, value in vars(contender).items() if name != "make"}
        runs.append(
            Run(
                view=view,
                **facts,
                total_seconds=total,
                time_vs_dense=total / dense_total,
                flops_per_step=flops_per_step(model, data.sample, batch_size),
                layers=tuple(
                    f"{layer.computes} ({layer.choice})" if layer.choice else layer.computes
                    for layer in sp.summary(model).rows
                ),
                result=result,
            )
        )

    for contender in contenders:
        train_in("epochs", contender, epochs=epochs)
    limit = runs[0].total_seconds if seconds == "dense" else seconds
    if limit is not None:
        if seconds == "dense":
            runs.append(dataclasses.replace(runs[0], view="time"))
        for contender in contenders[1:] if seconds == "dense" else contenders:
            # A contender that spent it all on pruning trains for one step.
            train_in("time", contender, seconds=max(limit - contender.prune_seconds, 1e-9))
    return Comparison(
        data={
            "name": data.name,
            "source": data.source,
            "train": len(data.train_x),
            "test": len(data.test_x),
            "sample": list(data.sample),
            "classes": data.classes,
        },
        model={
            "name": model,
            "weights": models.weight_count(network),
            **({"args": dict(network.args)} if network.args else {}),
        },
        settings={
            "epochs": epochs,
            "budget": seconds,
            "budget_seconds": limit,
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
