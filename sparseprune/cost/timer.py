"""The one clock of the package: the fastest run of steps that take turns, and whether it can be believed."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from sparseprune.cost.quiet import Others, is_busy

SAME = 0.05  # relative difference up to which times are one: of a step's two fastest runs, or of two steps


class Timed(NamedTuple):
    """What :func:`fastest` found.

    Attributes:
        seconds: each step's fastest run.
        disturbed: why they are not to be believed; empty where nothing is known against them.
    """

    seconds: list[float]
    disturbed: str = ""


def clock(device: torch.device) -> float:
    """Seconds, when all that was launched on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def fastest(
    steps: Sequence[Callable[[], object]],
    device: torch.device,
    *,
    fewest: int,
    seconds: float,
    patience: float,
) -> Timed:
    """Seconds of each step's fastest run; they take turns, so that a slow moment hits all alike.

    Noise only ever adds: the fastest run is the best guess, and one that a second run confirms within
    ``SAME``, while other processes were quiet, is known. Then two steps either differ by more than that or
    are a tie. Until all is known they are timed again, and no longer than ``patience``.

    Args:
        steps: functions without arguments.
        device: device that they compute on.
        fewest: number of rounds between two looks at the other processes, at least; the first one warms up.
        seconds: time between two such looks, at least.
        patience: time after which there is no further one.
    """
    two_fastest = [[math.inf, math.inf] for _ in steps]
    begin = clock(device)
    with torch.enable_grad():
        while True:
            others, rounds = Others(), 0
            now = window = clock(device)
            while rounds < fewest or now - window < seconds:
                for runs, step in zip(two_fastest, steps, strict=True):
                    start = clock(device)
                    step()
                    now = clock(device)
                    runs[:] = sorted((*runs, now - start))[:2]
                rounds += 1
            disturbed = _disturbed(others.processors(), two_fastest)
            if not disturbed or now - begin >= patience:
                return Timed([first for first, _ in two_fastest], disturbed)


def _disturbed(others: float | None, two_fastest: Sequence[Sequence[float]]) -> str:
    if is_busy(others):
        return f"other processes kept {others:.1f} processors busy"
    apart = max(second / max(first, 1e-9) - 1 for first, second in two_fastest)
    return f"the two fastest runs are {apart:.0%} apart" if apart > SAME else ""
