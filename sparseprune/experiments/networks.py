"""Networks to compare: dense, small and dense, pruned, and pruned with masks that were shuffled."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

import sparseprune as sp
from sparseprune._controls import shuffled_masks
from sparseprune.experiments import models
from sparseprune.experiments.data import Dataset, screening
from sparseprune.experiments.meter import Meter
from sparseprune.experiments.models import Network
from sparseprune.experiments.rewiring import REWIRE

# Batches that score the weights, by default: 5,120 samples at batch size 256. SNIP's error falls with the
# number of scored samples up to some thousands, and the cost stays well below one pass over the data.
PRUNE_BATCHES = 20
# Networks to which neither the places of inputs nor their number matters.
PERCEPTRONS = ("article_mlp", "wide_mlp", "lenet_300_100")
# What is kept or removed together; see `sparseprune.prune`.
Block = tuple[int, int] | Literal["auto", "channel"]


@dataclass(frozen=True)
class Contender:
    """A network that can be trained any number of times from the same initial weights.

    Attributes:
        label: name in tables and plots.
        kind: "dense", "small dense", "sparse", "screened" (dense, on inputs that were chosen beforehand) or
            "conv" (a convolutional network beside perceptrons).
        method, sparsity, block: how it was pruned, blocks as "4x1"; for "small dense", the sparsity whose
            weight count it matches.
        weights: weights that it keeps, biases excluded.
        prune_seconds: time to score, select and build the sparse layers; of "screened", to choose the inputs.
        make: function that returns the untrained network.
        data: its own view of the data, such as a screened one; None for that of all others.
        lr: its own learning rate; None for that of all others.
        rewire: how its pattern moves while it is trained, "rigl" or "set"; None for not at all.
        prune_cpu_seconds, prune_joules: what `prune_seconds` cost; see `sparseprune.experiments.meter`.
    """

    label: str
    kind: str
    method: str | None
    sparsity: float | None
    block: str | None
    weights: int
    prune_seconds: float
    make: Callable[[], nn.Module]
    data: Dataset | None = None
    lr: float | None = None
    rewire: str | None = None
    prune_cpu_seconds: float | None = 0.0
    prune_joules: float | None = 0.0


def dense(network: Network, seed: int) -> Contender:
    """The whole network."""
    weights = models.weight_count(network)
    return Contender("dense", "dense", None, None, None, weights, 0.0, lambda: models.build(network, seed))


def small_dense(network: Network, sparsity: float, seed: int) -> Contender:
    """A narrower network with about as many weights as the network of this sparsity keeps."""
    small = models.small_dense(network, max(1, round(models.weight_count(network) * (1 - sparsity))))
    return replace(
        dense(small, seed),
        label=f"small dense, width {small.width:.3g}",
        kind="small dense",
        sparsity=sparsity,
    )


def screened(network: Network, data: Dataset, count: int, seed: int, clock: Callable[[], float]) -> Contender:
    """The control of which inputs matter: the F-test picks them, and the same network sees these alone.

    Args:
        network: one of `PERCEPTRONS`; narrower, too.
        data: what inputs are picked from, by its training part.
        count: number of inputs to pick.
        seed: seed of the initial weights.
        clock: function that returns seconds.
    Returns:
        the contender, with data of its own; screening counts as its pruning.
    Raises:
        ValueError: another network, or a count that is not between 1 and the number of inputs.
        ModuleNotFoundError: scikit-learn is not installed.
    """
    check_screen(network, count)
    # Importing scikit-learn takes a second, which is none of screening's.
    screening.f_statistics(torch.eye(4), torch.tensor([0, 0, 1, 1]))
    start = clock()
    with Meter() as meter:
        view, _ = screening.screened(data, count)
    seconds = clock() - start
    small = replace(network, sample=view.sample)
    return replace(
        dense(small, seed),
        label=f"F-test {count} + small dense",
        kind="screened",
        prune_seconds=seconds,
        prune_cpu_seconds=meter.cost.cpu_seconds,
        prune_joules=meter.cost.joules,
        data=view,
    )


def check_screen(network: Network, count: int) -> None:
    """Raise ValueError unless the network can be compared with itself on so many of its inputs."""
    if network.name not in PERCEPTRONS:
        raise ValueError(
            "screen: expected a network that takes any number of inputs in any order, one of "
            f"{', '.join(PERCEPTRONS)}, got {network.name}"
        )
    inputs = math.prod(network.sample)
    if not 1 <= count <= inputs:
        raise ValueError(f"screen: expected to pick 1 to {inputs:,} inputs, got {count:,}")


def pruned(
    network: Network,
    scored: Iterable[tuple[Tensor, Tensor]],
    method: str,
    sparsity: float,
    block: tuple[int, int],
    *,
    scope: str,
    batch_size: int,
    seed: int,
    shuffled: bool,
    clock: Callable[[], float],
    rewire: Sequence[str] = (),
) -> list[Contender]:
    """The network pruned on its initial weights; with its masks shuffled as a control; with masks that move.

    Args:
        network: what to prune.
        scored: batches that score the weights.
        method, sparsity, block, scope: see `sparseprune.prune`.
        batch_size: samples in a training step; see `sparseprune.sparsify`.
        seed: seed of initial weights, random masks and shuffling.
        shuffled: whether to make the control. It is charged the seconds of the masks that it came from.
        clock: function that returns seconds.
        rewire: how its pattern moves while it is trained, for a contender each, which is named after that.
    Returns:
        the contender, the control if wanted, and those of `rewire`.
    Raises:
        ValueError: see `sparseprune.prune`.
    """
    model = models.build(network, seed)
    start = clock()
    with Meter(next(model.parameters()).device) as meter:
        # A weight in each layer: one layer that keeps none would end the whole comparison.
        masks = sp.prune(
            model,
            scored,
            method=method,
            sparsity=sparsity,
            scope=scope,
            block=block,
            seed=seed,
            min_per_layer=1,
        )
        sparse = sp.sparsify(model, masks, batch_size=batch_size, input_size=network.sample)
    seconds = clock() - start

    def contender(method: str, sparse: nn.Module, rewire: str | None = None) -> Contender:
        return Contender(
            label=label_of(method, sparsity, block),
            kind="sparse",
            method=method,
            sparsity=sparsity,
            block=block_text(block),
            weights=sum(int(mask.sum()) for mask in masks.values()),
            prune_seconds=seconds,
            # Copies of one network: which layers are sparse is measured, and must not differ between runs.
            make=lambda: copy.deepcopy(sparse),
            rewire=rewire,
            prune_cpu_seconds=meter.cost.cpu_seconds,
            prune_joules=meter.cost.joules,
        )

    made = [contender(method, sparse)]
    if shuffled:
        others = shuffled_masks(masks, seed)
        control = sp.sparsify(model, others, batch_size=batch_size, input_size=network.sample)
        made.append(contender(f"{method} shuffled", control))
    return [*made, *(contender(REWIRE[how], sparse, how) for how in rewire)]


def sparsity_of(masks: Mapping[str, Tensor]) -> float:
    """Fraction of the weights that masks remove."""
    removed = sum(mask.numel() - int(mask.sum()) for mask in masks.values())
    return removed / max(sum(mask.numel() for mask in masks.values()), 1)


def label_of(method: str, sparsity: float, block: Block) -> str:
    """Name of a pruned network in tables and plots: "snip 90 %", with blocks "snip 90 % 4x1"."""
    label = f"{method} {100 * sparsity:.4g} %"
    return label if block == (1, 1) else f"{label} {block_text(block)}"


def block_text(block: Block) -> str:
    """(4, 1) as "4x1"; "auto" and "channel" as they are."""
    return block if isinstance(block, str) else "x".join(map(str, block))


def no_small_dense(network: Network) -> str:
    """One line that says why small dense networks are left out, and what to do."""
    return (
        f"no small dense networks: {network.name} has no keyword width=1.0; "
        "give it one, a factor of its channels and hidden features, to compare with narrower networks"
    )
