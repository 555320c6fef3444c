"""Seconds of a training step and of pruning or screening of all networks, which take turns.

Runs train while other processes may compute; their own seconds are no figures to compare. What a run costs is
pruning once, and its steps times the seconds of a step here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bench.ledger import Ledger
from bench.steps import step_seconds
from bench.wide_data.attempt import OPTIMIZER, Attempt, Settings
from bench.wide_data.contenders import LINEAR, Contender, contenders
from bench.wide_data.prepared import Prepared
from bench.wide_data.run import SETTINGS
from sparseprune.cost.quiet import Others, is_busy
from sparseprune.experiments.data import Dataset

TIMES = "times.jsonl"
SEED = 0
PRUNINGS = 2  # of each network; the first may load what later ones need not


def key_of(data: str, contender: str, variant: Mapping[str, Any]) -> dict[str, Any]:
    """What times are known by."""
    return {"data": data, "contender": contender, "inputs": variant.get("inputs")}


def perform(
    data: Mapping[str, Prepared],
    out: Path,
    *,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = print,
) -> None:
    """Time all networks on each data set that the file has no times of.

    Args:
        data: prepared data by name.
        out: folder of the file, lines of `bench.ledger`. A result has "step_seconds" (median of the rounds'
            medians), "steps" (all of them), "prune_seconds" (the lowest), and "disturbed", the processors
            that others kept busy, None on a quiet machine.
        clock: function that returns seconds; replaced in tests.
        say: function that is told of the progress.
    """
    with Ledger(out / TIMES) as ledger:
        for name, prepared in data.items():
            points = _points()
            keys = [key_of(name, contender.label, variant) for contender, variant in points]
            if all(ledger.get(key) is not None for key in keys):
                say(f"{name}: {ledger.file} has the times already; delete their lines to measure them again")
                continue
            others = Others()
            found = _measured(points, prepared, SETTINGS[name], clock)
            busy = others.processors()
            disturbed = busy if is_busy(busy) else None
            if disturbed is not None:
                say(f"{name}: others kept {disturbed:.1f} processors busy: delete the lines, measure again")
            for key, figures in zip(keys, found, strict=True):
                ledger.add(key, {**figures, "disturbed": disturbed})
                say(
                    f"{name}, {key['contender']}: {1e3 * figures['step_seconds']:.1f} ms a step, "
                    f"{figures['prune_seconds']:.2f} s of pruning or screening"
                )


def _points() -> list[tuple[Contender, Mapping[str, Any]]]:
    """Networks, with their variants."""
    networks = [contender for contender in contenders() if contender.kind != LINEAR]
    return [(contender, variant) for contender in networks for variant in contender.variants]


def _measured(
    points: list[tuple[Contender, Mapping[str, Any]]],
    prepared: Prepared,
    settings: Settings,
    clock: Callable[[], float],
) -> list[dict[str, Any]]:
    prunings: list[float] = []
    networks: list[tuple[nn.Module, Dataset]] = []
    for contender, variant in points:
        starts = [Attempt(contender, variant, prepared, settings, SEED, clock).start for _ in range(PRUNINGS)]
        prunings.append(min(start.seconds for start in starts))
        networks.append((starts[-1].model, starts[-1].data))
    rounds = step_seconds(
        networks, epochs=settings.epochs, batch_size=settings.batch_size, optimizer=OPTIMIZER, clock=clock
    )
    return [
        {"step_seconds": statistics.median(found), "steps": found, "prune_seconds": seconds}
        for found, seconds in zip(rounds, prunings, strict=True)
    ]
