"""A whole experiment: the runs that have no line in the file yet, one after the other, within a time."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.ledger import Ledger
from bench.mosaic.points import FULL, Run, Size
from bench.mosaic.run import OutOfTimeError, Work


def key_of(run: Run, size: Size = FULL) -> dict[str, Any]:
    """What a line of the file is known by: the setting, the network's label, its passes and the seed."""
    setting = size.cut(run.setting)
    return {
        **dataclasses.asdict(setting),
        "network": run.point.label,
        "epochs": size.epochs(setting.samples),
        "width": size.width,
        "seed": run.seed,
    }


def perform(
    runs: Sequence[Run],
    file: Path,
    rates: Path,
    *,
    size: Size = FULL,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> bool:
    """Do every run that has no line in the file yet, and add its line.

    Args:
        runs: what to do, in this order.
        file: lines of `bench.ledger`; made if missing.
        rates: journal of the tuned rates; made if missing.
        size: how long and how wide.
        seconds: time that all may take. What would exceed it, as far as earlier runs tell, is not begun.
        clock: function that returns seconds; replaced in tests.
        say: function that is told of the progress.
    Returns:
        whether all is done.
    Raises:
        BlockingIOError: another process works on this file.
    """
    end = clock() + seconds
    work = Work(size, rates, clock, lambda: end - clock(), say)
    with Ledger(file) as ledger:
        todo = [run for run in runs if ledger.get(key_of(run, size)) is None]
        for number, run in enumerate(todo, len(runs) - len(todo) + 1):
            try:
                if work.left() < _expected_seconds(ledger, run):
                    raise OutOfTimeError
                result = work.measure(run)
            except OutOfTimeError:
                say(f"stopped before {run.label}; the same command goes on")
                return False
            ledger.add(key_of(run, size), result)
            say(
                f"{number}/{len(runs)} {run.label}: {100 * result['accuracy']:.2f} % with lr "
                f"{result['lr']:.2g}, {result['wall_seconds']:.1f} s"
            )
    return True


def _expected_seconds(ledger: Ledger, run: Run) -> float:
    """The longest that this network took; 0 where it has no line."""
    same = (row for row in ledger.rows if row["key"]["network"] == run.point.label)
    return max((row["result"]["wall_seconds"] for row in same), default=0.0)
