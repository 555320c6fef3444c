"""The networks of the demo, and which of a mosaic's pixels the first layer of each looks at."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import sparseprune as sp
from sparseprune.experiments import models, networks
from sparseprune.experiments.data import Dataset, FirstBatches
from sparseprune.experiments.data.screening import screened
from sparseprune.experiments.meter import Meter
from sparseprune.experiments.models import Network
from sparseprune.experiments.networks import Contender, label_of
from sparseprune.experiments.watcher import Watcher
from sparseprune.scores import prunable

MODEL, CONV = "article_mlp", "small_conv"
SMALL = (0.02, 0.08)  # widths of the small dense networks: 20 and 80 hidden features
SCREENED = 0.3  # ... of the one on inputs that a test chose: 300
METHODS = ("magnitude", "random", "gradient", "grasp", "snip")
# Random scores have no ranks to share among layers. Magnitudes have, but they rank the layers' initial
# scales: the first layer, whose weights are the smallest, would keep a single one.
SCOPES = {"random": "layer", "magnitude": "layer"}
# The paper of iterative SNIP scores 60 times, which takes longer than all that is trained here.
ROUNDS = {"iter_snip": 5, "force": 5, "synflow": 100, "ntk_sap": 5}
# Learning rates by the network's label, or else its pruning method or kind: the best of five on validation
# samples (`python -m bench.mosaic tuned`, 20 passes). The optimizer's default for all others.
RATES = {
    "dense": 1e-3,
    "small dense": 1e-3,
    "small dense, h = 80": 3e-3,
    "screened": 3e-3,
    "conv": 3e-3,
    "magnitude": 3e-3,
    "random": 3e-3,
    "gradient": 3e-3,
    "snip": 1e-2,
    "iter_snip": 1e-2,
    "grasp": 1e-2,
}


class Made(NamedTuple):
    """A network to train, and how many first-layer weights look at each pixel, int64, (pixels,)."""

    contender: Contender
    kept: Tensor | None


def make_all(
    data: Dataset,
    informative: int,
    *,
    methods: Sequence[str] = METHODS,
    sparsity: float = 0.99,
    rescale: bool = True,
    width: float = 1.0,
    batch_size: int = 256,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    watcher: Watcher | None = None,
    task_count: int = 0,
) -> list[Made]:
    """Dense, small dense, F-test and small dense, a small convolutional network, and the pruned ones.

    Args:
        data: the mosaic.
        informative: number of inputs that matter, which the F-test is told.
        methods: pruning methods that `sparseprune.prune` knows.
        sparsity: fraction of the weights to remove; the last layer keeps all.
        rescale: whether to scale the weights that stay; see `sparseprune.rescale_weights`.
        width: factor of all hidden features.
        batch_size: samples per batch of scoring and per training step.
        seed: seed of initial weights, random masks and of the order of what is scored.
        clock: function that returns seconds.
        watcher, task_count: listener, and how many tasks it is to be told of in all.
    Returns:
        the networks, dense first.
    Raises:
        ValueError: an unknown method, or pruning fails.
    """
    watcher = watcher or Watcher()
    network = Network(MODEL, data.sample, data.classes, width=width)
    conv = Network(CONV, data.sample, data.classes, width=width)
    made = [_dense(network, seed)]
    made += [_dense(dataclasses.replace(network, width=width * part), seed, small=True) for part in SMALL]
    watcher.begin(task := f"choose {informative:,} inputs by F-test", 1, task_count)
    made.append(_screened(network, data, informative, seed, clock))
    watcher.end(task, f"{made[-1].contender.prune_seconds:.2f} s")
    made.append(
        Made(dataclasses.replace(networks.dense(conv, seed), label="small convolutional", kind="conv"), None)
    )
    for number, method in enumerate(methods, 2):
        watcher.begin(task := f"prune: {label_of(method, sparsity, (1, 1))}", number, task_count)
        made.append(
            pruned(
                network,
                FirstBatches(data, batch_size, seed),
                method,
                sparsity,
                rescale=rescale,
                batch_size=batch_size,
                seed=seed,
                clock=clock,
            )
        )
        one = made[-1].contender
        watcher.end(task, f"{one.weights:,} weights kept, {one.prune_seconds:.2f} s")
    return [one._replace(contender=_with_rate(one.contender)) for one in made]


def _with_rate(contender: Contender) -> Contender:
    of_kind = RATES.get(contender.method or contender.kind)
    return dataclasses.replace(contender, lr=RATES.get(contender.label, of_kind))


def _hidden(network: Network) -> int:
    """Features of the first hidden layer."""
    return len(next(iter(prunable(models.outline(network)).values())))


def _dense(network: Network, seed: int, small: bool = False) -> Made:
    contender = networks.dense(network, seed)
    hidden = _hidden(network)
    if small:
        contender = dataclasses.replace(contender, label=f"small dense, h = {hidden}", kind="small dense")
    return Made(contender, torch.full((math.prod(network.sample),), hidden))


def _screened(network: Network, data: Dataset, count: int, seed: int, clock: Callable[[], float]) -> Made:
    # Loading the package is no part of the test; where it is missing, `screened` says so.
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sklearn.feature_selection")
    start = clock()
    with Meter(torch.device("cpu")) as meter:
        view, chosen = screened(data, count)
    seconds = clock() - start
    small = dataclasses.replace(network, sample=view.sample, width=network.width * SCREENED)
    contender = dataclasses.replace(
        networks.dense(small, seed),
        label=f"F-test {count:,} + small dense",
        kind="screened",
        data=view,
        prune_seconds=seconds,
        prune_cpu_seconds=meter.cost.cpu_seconds,
        prune_joules=meter.cost.joules,
    )
    kept = torch.zeros(data.features, dtype=torch.int64)
    kept[chosen] = _hidden(small)
    return Made(contender, kept)


def pruned(
    network: Network,
    scored: Iterable[tuple[Tensor, Tensor]],
    method: str,
    sparsity: float,
    *,
    rescale: bool,
    batch_size: int,
    seed: int,
    clock: Callable[[], float],
) -> Made:
    """The network pruned at its initial weights; its last layer keeps all.

    Args:
        network: what to prune.
        scored: batches that score the weights.
        method, sparsity: see `sparseprune.prune`.
        rescale: whether to scale the weights that stay; see `sparseprune.rescale_weights`.
        batch_size: samples per training step.
        seed: seed of initial weights and random masks.
        clock: function that returns seconds.
    """
    model = models.build(network, seed)
    start = clock()
    with Meter(torch.device("cpu")) as meter:
        masks = sp.prune(
            model,
            scored,
            method=method,
            sparsity=sparsity,
            scope=SCOPES.get(method, "global"),
            keep="last",
            rounds=ROUNDS.get(method),
            seed=seed,
            # As `compare` has it: a layer that keeps none would end the whole comparison.
            min_per_layer=1,
        )
        if rescale:
            sp.rescale_weights(model, masks)
        sparse = sp.sparsify(model, masks, batch_size=batch_size, input_size=network.sample)
    contender = Contender(
        label=label_of(method, sparsity, (1, 1)),
        kind="sparse",
        method=method,
        sparsity=sparsity,
        block="1x1",
        weights=sum(int(mask.sum()) for mask in masks.values()),
        prune_seconds=clock() - start,
        make=lambda: copy.deepcopy(sparse),
        prune_cpu_seconds=meter.cost.cpu_seconds,
        prune_joules=meter.cost.joules,
    )
    return Made(contender, next(iter(masks.values())).sum(0))
