"""Interleaved timing: rounds over all contenders, so that a drift of the machine's speed hits all alike."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from sparseprune.cost.quiet import Others

Call = Callable[[], object]

# A block has so many calls one after the other as fit into these seconds, like a training loop.
BLOCK_SECONDS = 0.02
# Most calls in a block, and most blocks of a contender.
MOST_CALLS = 50
MOST_BLOCKS = 30
WARM_UP_CALLS = 3
# After so long, fewer calls warm up.
WARM_UP_SECONDS = 0.2
# Blocks of calls that take so many seconds start without an untimed one.
SLOW_CALL = 1.5


class Clock(Protocol):
    """How long a call takes."""

    def seconds(self, call: Call) -> float:
        """Seconds of one call on the device, which is idle afterwards."""

    def wait(self) -> None:
        """Wait until the device is idle."""


class HostClock:
    """Time on the processor, for calls that compute there.

    Args:
        counter: returns seconds; replaced in tests.
    """

    def __init__(self, counter: Callable[[], float] = time.perf_counter) -> None:
        self.counter = counter

    def seconds(self, call: Call) -> float:
        start = self.counter()
        call()
        return self.counter() - start

    def wait(self) -> None:
        pass


class Step(NamedTuple):
    """What is timed: ``call``, within the context that ``around`` makes (once for each block, untimed)."""

    call: Call
    around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext


class Share(NamedTuple):
    """How often a contender runs: timed calls in a block, and blocks."""

    calls: int
    blocks: int


class Timed(NamedTuple):
    """What `interleaved` found.

    Attributes:
        seconds: ``{contender: seconds of each timed call}``.
        others: processors that other processes kept busy meanwhile, on average: 0.0 is a quiet machine; None
            where the system does not tell.
    """

    seconds: dict[str, list[float]]
    others: float | None


class Quartiles(NamedTuple):
    """Median and quartiles of a list of times, in seconds."""

    q1: float
    median: float
    q3: float


def quartiles(times: list[float]) -> Quartiles:
    """They are interpolated between the times."""
    if len(times) == 1:
        return Quartiles(times[0], times[0], times[0])
    return Quartiles(*statistics.quantiles(times, n=4, method="inclusive"))


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Collect garbage before, and none within: a collection would fall into whoever's turn it is."""
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def estimate(step: Step, clock: Clock) -> float:
    """Seconds of one call, roughly: the fastest of a few warm-up calls, or the first if it is slow."""
    times: list[float] = []
    with step.around():
        while len(times) < WARM_UP_CALLS and sum(times) < WARM_UP_SECONDS:
            times.append(clock.seconds(step.call))
    return min(times)


def share_out(estimates: Mapping[str, float], seconds: float, fewest_blocks: int) -> dict[str, Share]:
    """Divide a time budget evenly among contenders.

    Args:
        estimates: ``{contender: seconds of a call}``.
        seconds: budget of all together; slow contenders exceed it, as they run ``fewest_blocks`` at least.
        fewest_blocks: number of blocks that each contender gets at least.
    """
    shares = {}
    for name, call in estimates.items():
        calls = max(1, min(MOST_CALLS, round(BLOCK_SECONDS / max(call, 1e-9))))
        block = (calls + _untimed(call)) * max(call, 1e-9)
        blocks = int(seconds / len(estimates) / block)
        shares[name] = Share(calls, max(fewest_blocks, min(MOST_BLOCKS, blocks)))
    return shares


def interleaved(
    steps: Mapping[str, Step], seconds: float, *, fewest_blocks: int = 3, clock: Clock | None = None
) -> Timed:
    """Time every contender in blocks of consecutive calls, taking turns.

    A contender with fewer blocks than there are rounds runs in rounds spread evenly over all.

    Args:
        steps: ``{contender: what is timed}``, ready to run.
        seconds: time budget for all of them together.
        fewest_blocks: number of blocks that each runs, whatever the budget.
        clock: the processor's by default; replaced in tests.
    """
    clock = clock or HostClock()
    estimates = {name: estimate(step, clock) for name, step in steps.items()}
    shares = share_out(estimates, seconds, fewest_blocks)
    rounds = max((share.blocks for share in shares.values()), default=0)
    times: dict[str, list[float]] = {name: [] for name in steps}
    with without_collection():
        others = Others()
        for i in range(rounds):
            for name, step in steps.items():
                calls, blocks = shares[name]
                if (i + 1) * blocks // rounds == i * blocks // rounds:
                    continue
                with step.around():
                    for _ in range(_untimed(estimates[name])):
                        step.call()
                    times[name] += [clock.seconds(step.call) for _ in range(calls)]
        return Timed(times, others.processors())


def _untimed(call_seconds: float) -> int:
    # The first call of a block finds caches and free memory as another contender left them: no training loop
    # does.
    return 0 if call_seconds >= SLOW_CALL else 1
