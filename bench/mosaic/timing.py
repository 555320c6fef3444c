"""Seconds of a training step and of pruning of every network, which take turns on a quiet machine."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.ledger import Ledger
from bench.mosaic.points import BASE, FULL, TUNED, Point, Size
from bench.mosaic.run import OPTIMIZER, Work
from bench.steps import step_seconds
from sparseprune.cost.quiet import Others, is_busy
from sparseprune.experiments.networks import Contender

SEED = 0
PRUNINGS = 3  # of each network; the first one may time layers, which later ones need not


def perform(
    file: Path,
    *,
    size: Size = FULL,
    points: Sequence[Point] = TUNED,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> None:
    """Time all networks on the base, and add the one line that holds them, unless the file has it.

    Steps are those of a training: a batch is gathered and made float32, forward, backward, Adam.

    Args:
        file: lines of `bench.ledger`; made if missing. Its result has "networks", by label "step_seconds"
            (median of the rounds' medians), "steps" and "prunings" (all of them), "prune_seconds" (median);
            and "disturbed", the processors that others kept busy, None on a quiet machine.
        size: how wide; of its steps no more than `bench.steps.STEPS` at a time.
        points: networks to time.
        clock: function that returns seconds; replaced in tests.
        say: function that is told of the progress.
    """
    key = {**dataclasses.asdict(size.cut(BASE)), "width": size.width, "networks": [p.label for p in points]}
    with Ledger(file) as ledger:
        if ledger.get(key) is not None:
            say(f"{file} has the times already; delete their line to measure them again")
            return
        others = Others()
        networks = measured(points, size, clock, say)
        busy = others.processors()
        disturbed = busy if is_busy(busy) else None
        if disturbed is not None:
            say(f"others kept {disturbed:.1f} processors busy: not to be believed; delete the line")
        ledger.add(key, {"networks": networks, "disturbed": disturbed})


def measured(
    points: Sequence[Point], size: Size, clock: Callable[[], float], say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Figures of each network by its label; see `perform`."""
    # No rate is needed, so no journal of rates.
    work = Work(size, Path(), clock)
    setting = size.cut(BASE)
    contenders: list[Contender] = []
    prunings: list[list[float]] = []
    for point in points:
        made = [work.make(setting, SEED, point).contender for _ in range(PRUNINGS)]
        prunings.append([contender.prune_seconds for contender in made])
        contenders.append(made[-1])
        say(f"{point.label}: made in {statistics.median(prunings[-1]):.2f} s")
    data = work.data(setting, SEED)
    rounds = step_seconds(
        [(contender.make(), contender.data or data) for contender in contenders],
        epochs=size.epochs(setting.samples),
        batch_size=size.batch_size,
        optimizer=OPTIMIZER,
        clock=clock,
        say=say,
    )
    return {
        point.label: {
            "step_seconds": statistics.median(found),
            "steps": found,
            "prune_seconds": statistics.median(seconds),
            "prunings": seconds,
        }
        for point, found, seconds in zip(points, rounds, prunings, strict=True)
    }
