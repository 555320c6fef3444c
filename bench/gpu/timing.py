"""Time on the device: CUDA events, a cold L2 cache, contenders taking turns."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch

from bench.timing import Call, Clock, HostClock, Step, without_collection
from bench.verify import message

ROUNDS = 30
QUICK_ROUNDS = 20
# Numbers of calls.
FEWEST_WARM_UP, MOST_WARM_UP = 6, 40
# After so long the warm-up ends, stable or not.
WARM_UP_SECONDS = 2.0
# Times are stable when the medians of the last two groups of calls differ by less than this fraction.
STABLE = 0.05
GROUP = 3

# Size of the buffer that is written before each timed call, in sizes of the L2 cache.
L2_TIMES = 2
# The device spins for so long before a timed call that the processor can hand over all of the call meanwhile;
# a millisecond at 2 GHz.
HEAD_START_CYCLES = 2_000_000


class CudaClock:
    """Time between two events on the current stream.

    Before the first event the L2 cache is filled with something else, by writing a buffer of twice its size,
    and the device spins for a millisecond, so that the time which the processor needs to hand over the call
    is not part of it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        l2 = torch.cuda.get_device_properties(device).L2_cache_size
        self.buffer = torch.empty(L2_TIMES * l2, dtype=torch.uint8, device=device)

    def seconds(self, call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.buffer.zero_()
        torch.cuda._sleep(HEAD_START_CYCLES)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)


def clock_for(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else HostClock()


class Timed(NamedTuple):
    """What was found of one contender.

    Attributes:
        seconds: times of the timed calls.
        host_seconds: what the processor needs to hand a call to the device, including waits for it that the
            call itself makes; the least of the warm-up.
    """

    seconds: list[float]
    host_seconds: float


def stable(times: list[float]) -> bool:
    """Whether the last calls took as long as those before them."""
    if len(times) < 2 * GROUP:
        return False
    before, after = statistics.median(times[-2 * GROUP : -GROUP]), statistics.median(times[-GROUP:])
    return abs(after - before) <= STABLE * before


def warm_up(step: Step, clock: Clock) -> float:
    """Call until times are stable; returns the least seconds that handing over took."""
    times: list[float] = []
    least = float("inf")
    started = time.perf_counter()
    with step.around():
        while len(times) < MOST_WARM_UP:
            if len(times) >= FEWEST_WARM_UP and stable(times):
                break
            if times and time.perf_counter() - started > WARM_UP_SECONDS:
                break
            times.append(clock.seconds(step.call))
            start = time.perf_counter()
            step.call()
            least = min(least, time.perf_counter() - start)
            clock.wait()
    return least


def in_rounds(
    steps: Mapping[str, Step], clock: Clock, rounds: int
) -> tuple[dict[str, Timed], dict[str, str]]:
    """Time one call of every contender in each round, in an order that is random but always the same.

    Args:
        steps: ``{contender: what is timed}``, ready to run.
        clock: the device's.
        rounds: number of calls of each contender.
    Returns:
        ``{contender: times}``, and ``{contender: error}`` of those that raised one; the others go on.
    """
    timed: dict[str, Timed] = {}
    failed: dict[str, str] = {}
    for name, step in steps.items():
        try:
            timed[name] = Timed([], warm_up(step, clock))
        except Exception as error:
            failed[name] = message(error)
    order = random.Random(0)
    with without_collection():
        for _ in range(rounds):
            for name in order.sample(list(timed), len(timed)):
                try:
                    with steps[name].around():
                        timed[name].seconds.append(clock.seconds(steps[name].call))
                except Exception as error:
                    failed[name] = message(error)
                    del timed[name]
    return timed, failed
