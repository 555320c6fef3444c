"""Seconds of steps and of rewirings of networks that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

import sparseprune as sp
from bench.rewire.points import Method
from bench.rewire.training import Batches, Trainer
from bench.timing import Quartiles, quartiles, without_collection
from sparseprune.cost.quiet import Others, is_busy
from sparseprune.experiments.optimizers import make_optimizer

BLOCK = 6  # steps of a network in a row: one that is not timed, some, and one that rewires
RATE = 1e-6  # so small that what is timed does not change: no activations die, no gradients vanish


class Timed(NamedTuple):
    """What a network's steps take, in seconds.

    Attributes:
        step: of a step without a rewiring.
        rewiring: by how much the step is longer that ends with one; None where the pattern stays.
    """

    step: Quartiles
    rewiring: Quartiles | None

    def to_dict(self) -> dict[str, Any]:
        """For files."""
        return {name: None if it is None else it._asdict() for name, it in self._asdict().items()}


def trainer(
    model: nn.Module, samples: Batches, optimizer: str, method: Method | None, seed: int = 0
) -> Trainer:
    """A network whose pattern moves, if it does, at the last step of every block, by the largest part."""
    updates = make_optimizer(model, optimizer, RATE)
    rewire = None if method is None else sp.Rewire(model, updates, method, every=BLOCK, seed=seed)
    return Trainer(model, samples, updates, rewire)


def take_turns(
    trainers: Mapping[str, Trainer],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Timed], float | None]:
    """Time steps of all, block by block.

    Args:
        trainers: what `trainer` made, new.
        rounds: number of blocks of each; one more comes before them, to warm up.
        clock: function that returns seconds.
        say: function that is told of the rounds.
    Returns:
        the times of each, and the processors that others kept busy meanwhile.
    """
    steps: dict[str, list[float]] = {name: [] for name in trainers}
    rewirings: dict[str, list[float]] = {name: [] for name in trainers}
    for one in trainers.values():
        _block(one, clock)
    others = Others()
    for number in range(rounds):
        for name, one in trainers.items():
            with without_collection():
                seconds = _block(one, clock)
            if one.rewire is None:
                steps[name] += seconds
            else:
                steps[name] += seconds[:-1]
                # Beside steps of the same block, which the machine's drift hits alike.
                rewirings[name].append(seconds[-1] - statistics.median(seconds[:-1]))
        say(f"round {number + 1} of {rounds}")
    return {
        name: Timed(quartiles(steps[name]), quartiles(found) if (found := rewirings[name]) else None)
        for name in trainers
    }, others.processors()


def _block(one: Trainer, clock: Callable[[], float]) -> list[float]:
    """Seconds of the steps of a block but the first, which finds caches as another network left them."""
    seconds = []
    for _ in range(BLOCK):
        start = clock()
        one.step()
        seconds.append(clock() - start)
    return seconds[1:]


def disturbed(others: float | None, say: Callable[[str], None]) -> float | None:
    """The processors that others kept busy where these times are not to be believed; None on a quiet one."""
    if not is_busy(others):
        return None
    say(f"others kept {others:.1f} processors busy: not to be believed; delete the line, and measure again")
    return others
