"""Train dense, small dense and sparse networks side by side, at equal epochs and at equal time."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import sparseprune as sp
from sparseprune.cost import machine
from sparseprune.cost.flops import flops_per_step
from sparseprune.experiments import models, networks
from sparseprune.experiments.compare.results import Comparison, Run, View
from sparseprune.experiments.data import Dataset, FirstBatches
from sparseprune.experiments.models import Network
from sparseprune.experiments.networks import PRUNE_BATCHES, Contender, label_of
from sparseprune.experiments.optimizers import OPTIMIZERS, learning_rate
from sparseprune.experiments.rewiring import EVERY, START, check_rewire
from sparseprune.experiments.train import steps_per_epoch, train, warm_up
from sparseprune.experiments.watcher import Watcher

# Fields of a contender that are no figures.
NOT_IN_RUN = ("make", "data", "lr", "rewire")


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
    screen: int | None = None,
    rewire: Sequence[str] = (),
    every: int = EVERY,
    clock: Callable[[], float] = time.perf_counter,
    watcher: Watcher | None = None,
) -> Comparison:
    """Train a dense network and its sparse and small dense competitors, and measure them.

    Contenders: dense; for each sparsity, a small dense network with about as many weights as a sparse one
    keeps (of models that have a width); for each method, sparsity and block, the dense network pruned on its
    initial weights; and, if asked for, the same with each mask shuffled within its layer, and networks with
    random masks that move while they are trained. All start from the same seed. Everything is pruned before
    anything is trained, so that a mistake costs seconds.

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
        screen: whether to add the honest control of wide inputs, a dense network on as many inputs as this,
            picked by the F-test; see `sparseprune.experiments.networks.screened`.
        rewire: how patterns move, "rigl" or "set", in networks of their own: they start with the masks of
            method "random", and have the same sparsities, blocks and scope.
        every: steps from one move to the next.
        clock: function that returns seconds; replaced in tests.
        watcher: listener that is told of the progress.
    Returns:
        the runs, in the order of contenders, first view first.
    Raises:
        ValueError: a setting is out of range, or pruning fails.
    """
    _check_seconds(seconds)
    if prune_batches < 1:
        raise ValueError(f"compare: expected prune_batches >= 1, got {prune_batches}")
    for sparsity in sparsities:
        if not 0 <= sparsity < 1:
            raise ValueError(f"compare: expected sparsities in [0, 1), got {sparsity}")
    learning_rate(optimizer, lr)
    if rewire:
        check_rewire(rewire, every, epochs * steps_per_epoch(len(data.train_x), batch_size))
    watcher = watcher or Watcher()
    network = Network(model, data.sample, data.classes, args=model_args or {})
    widths = sparsities if network.has_width else ()
    if not network.has_width:
        watcher.say(networks.no_small_dense(network))
    starts = [*methods, *([START] if rewire and START not in methods else [])]
    prunings = list(itertools.product(starts, sparsities, blocks))
    sparse = (len(methods) + len(rewire)) * len(sparsities) * len(blocks)
    controls = sum(method != "random" for method, _, _ in prunings) if shuffled else 0
    screens = [] if screen is None else [screen]
    for count in screens:
        networks.check_screen(network, count)
    done = len(prunings) + len(screens)
    task_count = done + _trainings(1 + len(widths) + len(screens) + sparse + controls, seconds)
    numbers = itertools.count(1)

    scored = FirstBatches(data, batch_size, seed, prune_batches)
    contenders = [networks.dense(network, seed)]
    warm_up(contenders[0].make(), data, batch_size, optimizer)
    contenders += [networks.small_dense(network, sparsity, seed) for sparsity in widths]
    for count in screens:
        task = f"screen: {count:,} of {data.features:,} inputs"
        watcher.begin(task, next(numbers), task_count)
        contenders.append(networks.screened(network, data, count, seed, clock))
        watcher.end(task, f"{contenders[-1].prune_seconds:.2f} s")
    for method, sparsity, block in prunings:
        task = f"prune: {label_of(method, sparsity, block)}"
        watcher.begin(task, next(numbers), task_count)
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
            rewire=rewire if method == START else (),
        )
        watcher.end(task, f"{made[0].weights:,} weights kept, {made[0].prune_seconds:.2f} s")
        contenders += made if method in methods else made[1:]

    runs = train_contenders(
        data,
        contenders,
        epochs=epochs,
        seconds=seconds,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr,
        seed=seed,
        every=every,
        clock=clock,
        watcher=watcher,
        done=done,
    )
    limit = runs[0].total_seconds if seconds == "dense" else seconds
    return Comparison(
        data=data.facts(),
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
            "lr": learning_rate(optimizer, lr),
            "seed": seed,
            "prune_batches": len(scored),
            "scope": scope,
            **({} if screen is None else {"screen": screen}),
            **({"rewire_every": every} if rewire else {}),
        },
        machine=machine.facts(),
        runs=runs,
    )


def train_contenders(
    data: Dataset,
    contenders: Sequence[Contender],
    *,
    epochs: int,
    seconds: float | Literal["dense"] | None = None,
    batch_size: int = 256,
    optimizer: str = "adam",
    lr: float | None = None,
    seed: int = 0,
    every: int = EVERY,
    clock: Callable[[], float] = time.perf_counter,
    watcher: Watcher | None = None,
    done: int = 0,
) -> tuple[Run, ...]:
    """Train contenders for the same epochs and, with `seconds`, anew for the same wall-clock time.

    Args:
        data: what to train and test on; a contender's own view of it goes before.
        contenders: what to train; dense comes first.
        epochs, seconds, batch_size, optimizer, seed, every, clock, watcher: see `compare`.
        lr: initial learning rate, the optimizer's default when None; a contender's own goes before.
        done: tasks that the watcher was told of before.
    Returns:
        the runs, in the order of contenders, first view first.
    Raises:
        ValueError: a setting is out of range, or the first contender is not dense.
    """
    _check_seconds(seconds)
    kind = contenders[0].kind if contenders else "no contender"
    if kind != "dense":
        raise ValueError(f"train_contenders: expected the dense contender first, got {kind}")
    rates = [learning_rate(optimizer, lr if own.lr is None else own.lr) for own in contenders]
    watcher = watcher or Watcher()
    numbers = itertools.count(done + 1)
    task_count = done + _trainings(len(contenders), seconds)

    def run(view: View, contender: Contender, rate: float, dense: Run | None, **stop: Any) -> Run:
        model, view_of_data = contender.make(), contender.data or data
        warm_up(model, view_of_data, batch_size, optimizer)
        task = f"train, equal {view}: {contender.label}"
        watcher.begin(task, next(numbers), task_count)
        result = train(
            model,
            view_of_data,
            **stop,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=rate,
            seed=seed,
            rewire=contender.rewire,
            every=every,
            clock=clock,
            on_progress=watcher.advance,
        )
        watcher.end(
            task, f"{100 * result.accuracy:.2f} % after {result.epochs:.1f} epochs, {result.seconds:.1f} s"
        )
        total = contender.prune_seconds + result.seconds
        return Run(
            view=view,
            **{name: value for name, value in vars(contender).items() if name not in NOT_IN_RUN},
            total_seconds=total,
            time_vs_dense=total / (dense.total_seconds if dense else total),
            flops_per_step=flops_per_step(model, view_of_data.sample, batch_size),
            layers=tuple(
                f"{layer.computes} ({layer.choice})" if layer.choice else layer.computes
                for layer in sp.summary(model).rows
            ),
            lr=rate,
            result=result,
        )

    first: list[Run] = []
    for contender, rate in zip(contenders, rates, strict=True):
        first.append(run("epochs", contender, rate, first[0] if first else None, epochs=epochs))
    if seconds is None:
        return tuple(first)
    limit = first[0].total_seconds if seconds == "dense" else seconds
    second = [dataclasses.replace(first[0], view="time")] if seconds == "dense" else []
    for contender, rate in list(zip(contenders, rates, strict=True))[len(second) :]:
        # A contender that spent it all on pruning trains for one step.
        left = max(limit - contender.prune_seconds, 1e-9)
        second.append(run("time", contender, rate, second[0] if second else None, seconds=left))
    return (*first, *second)


def _check_seconds(seconds: float | Literal["dense"] | None) -> None:
    if not (seconds in (None, "dense") or (isinstance(seconds, int | float) and 0 < seconds < math.inf)):
        raise ValueError(f'compare: expected more than 0 seconds, or "dense", got {seconds!r}')


def _trainings(contenders: int, seconds: float | Literal["dense"] | None) -> int:
    """How many networks are trained in both views; with "dense" the dense one is trained once."""
    return contenders if seconds is None else 2 * contenders - (seconds == "dense")
