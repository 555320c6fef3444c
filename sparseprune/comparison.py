"""Train dense, small dense and sparse networks side by side, at equal epochs and at equal time."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

import sparseprune as sp
from sparseprune import machine, models
from sparseprune.data import Dataset, batches
from sparseprune.training import TrainResult, train, warm_up

# Batches that score the weights, by default: 5,120 samples at batch size 256. SNIP's error falls with the
# number of scored samples up to some thousands, and the cost stays well below one pass over the data.
PRUNE_BATCHES = 20

View = Literal["epochs", "time"]


@dataclass(frozen=True)
class Contender:
    """A network that can be trained any number of times from the same initial weights.

    Attributes:
        label: name in tables and plots.
        kind: "dense", "small dense" or "sparse".
        method, sparsity, block: how it was pruned, blocks as "4x1"; for "small dense", the sparsity whose
            weight count it matches.
        weights: weights that it keeps, biases excluded.
        prune_seconds: time to score, select and build the sparse layers.
        make: returns the untrained network.
    """

    label: str
    kind: str
    method: str | None
    sparsity: float | None
    block: str | None
    weights: int
    prune_seconds: float
    make: Callable[[], nn.Module]


@dataclass(frozen=True)
class Run:
    """One contender trained in one view; fields of `Contender` and `TrainResult`, and what follows from them.

    Attributes:
        view: "epochs" (as many epochs as all others) or "time" (as many seconds as all others).
        total_seconds: pruning and training; evaluation excluded.
        time_vs_dense: total_seconds over those of the dense contender in the same view.
        flops_per_step: of a full batch; see `flops_per_step`.
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
    lr: float = 1e-3,
    seed: int = 0,
    prune_batches: int = PRUNE_BATCHES,
    scope: str = "global",
    clock: Callable[[], float] = time.perf_counter,
    watcher: Watcher | None = None,
) -> Comparison:
    """Train a dense network and its sparse and small dense competitors, and measure them.

    Contenders: dense; for each sparsity, a small dense network with about as many weights as a sparse one
    keeps; for each method, sparsity and block, the dense network pruned on its initial weights. All start
    from the same seed. Everything is pruned before anything is trained, so that a mistake costs seconds.

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
        lr: initial learning rate of Adam.
        seed: of initial weights, order of samples and choice of the batches that are scored.
        prune_batches: number of training batches that are scored.
        scope: of the ranking of scores, "global" or per layer; see `sparseprune.prune`.
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
    sizes = models.layer_sizes(model, data.features, data.classes)
    pruned = list(itertools.product(methods, sparsities, blocks))
    second_view = len(sparsities) + len(pruned) + (budget != "dense") if budget is not None else 0
    task_count = len(sparsities) + 2 * len(pruned) + 1 + second_view
    number = itertools.count(1)
    watcher = watcher or Watcher()

    scored = prune_set(data, prune_batches, batch_size, seed)
    contenders = [_dense("dense", "dense", None, sizes, seed)]
    warm_up(contenders[0].make(), data, batch_size)
    for sparsity in sparsities:
        small = models.small_dense(sizes, max(1, round(models.weight_count(sizes) * (1 - sparsity))))
        label = f"small dense {'-'.join(map(str, small))}"
        contenders.append(_dense(label, "small dense", sparsity, small, seed))
    for method, sparsity, block in pruned:
        task = f"prune: {label_of(method, sparsity, block)}"
        watcher.begin(task, next(number), task_count)
        contender = _pruned(sizes, seed, scored, method, sparsity, block, scope, batch_size, clock)
        watcher.end(task, f"{contender.weights:,} weights kept, {contender.prune_seconds:.2f} s")
        contenders.append(contender)

    runs: list[Run] = []

    def run(contender: Contender, view: View, **stop: Any) -> None:
        network = contender.make()
        warm_up(network, data, batch_size)
        task = f"train, equal {view}: {contender.label}"
        watcher.begin(task, next(number), task_count)
        result = train(
            network,
            data,
            **stop,
            batch_size=batch_size,
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
                flops_per_step=flops_per_step(network, batch_size),
                layers=tuple(
                    f"{row.computes} ({row.choice})" if row.choice else row.computes
                    for row in sp.summary(network).rows
                ),
                result=result,
            )
        )

    for contender in contenders:
        run(contender, "epochs", epochs=epochs)
    seconds = runs[0].total_seconds if budget == "dense" else budget
    if seconds is not None:
        if budget == "dense":
            runs.append(dataclasses.replace(runs[0], view="time"))
        for contender in contenders[1:] if budget == "dense" else contenders:
            # Whoever spent it all on pruning trains for one step.
            run(contender, "time", budget=max(seconds - contender.prune_seconds, 1e-9))
    return Comparison(
        data={
            "name": data.name,
            "source": data.source,
            "train": len(data.train_x),
            "test": len(data.test_x),
            "features": data.features,
            "classes": data.classes,
        },
        model={"name": model, "sizes": list(sizes), "weights": models.weight_count(sizes)},
        settings={
            "epochs": epochs,
            "budget": budget,
            "budget_seconds": seconds,
            "batch_size": batch_size,
            "optimizer": "Adam (fused), cosine decay to 0",
            "lr": lr,
            "seed": seed,
            "prune_batches": len(scored),
            "scope": scope,
        },
        machine=machine.facts(),
        runs=tuple(runs),
    )


def label_of(method: str, sparsity: float, block: tuple[int, int]) -> str:
    """Name of a pruned network in tables and plots: "snip 90 %", with blocks "snip 90 % 4x1"."""
    label = f"{method} {100 * sparsity:.4g} %"
    return label if block == (1, 1) else f"{label} {block_text(block)}"


def block_text(block: tuple[int, int]) -> str:
    """(4, 1) as "4x1"."""
    return "x".join(map(str, block))


def prune_set(data: Dataset, count: int, batch_size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The first batches of the training data in the seed's order, for scoring.

    Args:
        data: where they come from.
        count: number of batches; all there are, if there are fewer.
        batch_size: samples per batch.
        seed: of the order.
    Returns:
        list of (inputs, labels).
    """
    order = torch.Generator().manual_seed(seed)
    return list(itertools.islice(batches(data.train_x, data.train_y, batch_size, order), count))


def flops_per_step(model: nn.Module, batch_size: int) -> int:
    """Floating-point operations of the matrix products of one training step, from the weights in the model.

    A multiplication and an addition for each weight and sample, in each of three products: forward, weight
    gradient, input gradient. The first layer needs no input gradient. A weight that a sparse layer does not
    store costs nothing; a layer that stays dense with its mask enforced costs as much as a dense one.

    Args:
        model: linear layers, dense and sparse, one after the other.
        batch_size: samples per step.
    Returns:
        operations; biases, activations, loss and optimizer are not counted.
    """
    stored = []
    for module in model.modules():
        if isinstance(module, sp.SparseLinear):
            stored.append(module.values.numel())
        elif isinstance(module, nn.Linear):
            stored.append(module.weight.numel())
    return 2 * batch_size * sum(n * (2 if i == 0 else 3) for i, n in enumerate(stored))


def _dense(label: str, kind: str, sparsity: float | None, sizes: Sequence[int], seed: int) -> Contender:
    return Contender(
        label, kind, None, sparsity, None, models.weight_count(sizes), 0.0, lambda: models.build(sizes, seed)
    )


def _pruned(
    sizes: Sequence[int],
    seed: int,
    scored: list[tuple[Tensor, Tensor]],
    method: str,
    sparsity: float,
    block: tuple[int, int],
    scope: str,
    batch_size: int,
    clock: Callable[[], float],
) -> Contender:
    model = models.build(sizes, seed)
    start = clock()
    masks = sp.prune(model, scored, method=method, sparsity=sparsity, scope=scope, block=block, seed=seed)
    sparse = sp.sparsify(model, masks, batch_size=batch_size)
    seconds = clock() - start
    kept = sum(int(mask.sum()) for mask in masks.values())
    return Contender(
        label=label_of(method, sparsity, block),
        kind="sparse",
        method=method,
        sparsity=sparsity,
        block=block_text(block),
        weights=kept,
        prune_seconds=seconds,
        # Copies of one network: which layers are sparse is measured, and must not differ from run to run.
        make=lambda: copy.deepcopy(sparse),
    )
