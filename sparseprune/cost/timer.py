"""The one clock of the package: seconds of steps that take turns, and whether they can be believed."""

import heapq
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from sparseprune.cost.quiet import Others, is_busy

SAME = 0.05  # relative difference up to which times are one: of a step's two fastest runs, or of two steps


class Timed(NamedTuple):
    """What :func:`time_in_turns` found.

    Attributes:
        seconds: each step's fastest run; its median run where something disturbed them.
        disturbed: why they are not to be believed; empty where nothing is known against them.
    """

    seconds: list[float]
    disturbed: str = ""


def clock(device: torch.device) -> float:
    """Seconds, when all that was launched on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_in_turns(
    steps: Sequence[Callable[[], object]],
    device: torch.device,
    *,
    fewest: int,
    seconds: float,
    patience: float,
) -> Timed:
    """Seconds of each step; they take turns, so that a slow moment hits all alike.

    Noise only ever adds: the fastest run is the best guess, and one that a second run confirms within
    ``SAME``, while other processes were quiet, is known. Then two steps either differ by more than that or
    are a tie. Until all is known they are timed again, and no longer than ``patience``. What is not known in
    the end is told by medians: the fastest run of one step was luck then, and it need not be another's.

    Args:
        steps: functions without arguments.
        device: device that they compute on.
        fewest: number of rounds between two looks at the other processes, at least; the first one warms up.
        seconds: time between two such looks, at least.
        patience: time after which there is no further one.
    """
    runs: list[list[float]] = [[] for _ in steps]
    begin = clock(device)
    with torch.enable_grad():
        while True:
            others, rounds = Others(), 0
            now = window = clock(device)
            while rounds < fewest or now - window < seconds:
                for its_runs, step in zip(runs, steps, strict=True):
                    start = clock(device)
                    step()
                    now = clock(device)
                    its_runs.append(now - start)
                rounds += 1
            disturbed = _disturbed(others.processors(), runs)
            if not disturbed:
                return Timed([min(its_runs) for its_runs in runs])
            if now - begin >= patience:
                # The first round warms up.
                return Timed([statistics.median(its_runs[1:] or its_runs) for its_runs in runs], disturbed)


def _disturbed(others: float | None, runs: Sequence[Sequence[float]]) -> str:
    if is_busy(others):
        return f"other processes kept {others:.1f} processors busy"
    two_fastest = [heapq.nsmallest(2, its_runs) for its_runs in runs]
    apart = max(times[-1] / max(times[0], 1e-9) - 1 for times in two_fastest)
    return f"the two fastest runs are {apart:.0%} apart" if apart > SAME else ""
