"""Whether other processes disturb what is timed: the one test of a quiet machine."""

import os
import time

BUSY = 0.1  # processors that others keep busy: from here on figures of several threads are worthless
COARSE = 2  # ticks by which the system's counters of time may be wrong


class Others:
    """The processors that other processes keep busy from now on."""

    def __init__(self) -> None:
        self._begin, self._busy = time.perf_counter(), _cpu_seconds_of_others()

    def processors(self) -> float | None:
        """So many on average, 0.0 on a quiet machine; None where the system does not tell.

        What may come of the counters' coarseness alone is subtracted: 0.02 seconds on Linux.
        """
        busy = _cpu_seconds_of_others()
        if busy is None or self._busy is None:
            return None
        coarse = COARSE / os.sysconf("SC_CLK_TCK")
        return max(busy - self._busy - coarse, 0.0) / max(time.perf_counter() - self._begin, 1e-9)


def is_busy(others: float | None) -> bool:
    """Whether so many processors, kept busy by others, make a figure worthless; unknown ones do not."""
    return (others or 0.0) > BUSY


def _cpu_seconds_of_others() -> float | None:
    """Processor time of all other processes since the machine started, time stolen from it included."""
    try:
        with open("/proc/stat") as lines:
            user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(
                int, lines.readline().split()[1:]
            )
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()
