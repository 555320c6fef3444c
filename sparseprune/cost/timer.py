"""The one clock of the package: the fastest run of steps that take turns."""

import math
import time
from collections.abc import Callable, Sequence

import torch


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
    most: float = math.inf,
) -> list[float]:
    """Seconds of each step's fastest run; they take turns, so that a slow moment hits all alike.

    Args:
        steps: functions without arguments.
        device: device that they compute on.
        fewest, most: numbers of rounds; the first one warms up.
        seconds: time after which no further round begins, once there were ``fewest``.
    """
    best = [math.inf] * len(steps)
    rounds, begin = 0, time.perf_counter()
    with torch.enable_grad():
        while rounds < fewest or (rounds < most and time.perf_counter() - begin < seconds):
            for i, step in enumerate(steps):
                start = clock(device)
                step()
                best[i] = min(best[i], clock(device) - start)
            rounds += 1
    return best
