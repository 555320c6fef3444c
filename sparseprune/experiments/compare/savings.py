"""What pruning saved over dense at equal epochs: seconds, CPU-seconds, memory, and energy where measured."""

from __future__ import annotations

from collections.abc import Sequence

from sparseprune.experiments.compare.results import Run
from sparseprune.experiments.meter import UNMEASURED

TITLE = "What it saved over dense at equal epochs, pruning included"


def savings(runs: Sequence[Run]) -> list[str]:
    """A line for each sparse network, and one that says how energy was measured.

    Args:
        runs: the runs of a comparison.
    Returns:
        the lines; none where there is no sparse network.
    """
    trained = [run for run in runs if run.view == "epochs"]
    dense = next((run for run in trained if run.kind == "dense"), None)
    sparse = [run for run in trained if run.kind == "sparse"]
    if dense is None or not sparse:
        return []
    return [*(f"{run.label}: {_saved(run, dense)}" for run in sparse), _energy(dense)]


def cpu_seconds(run: Run) -> float | None:
    """CPU-seconds of pruning and training; None where they were not measured."""
    return _total(run.prune_cpu_seconds, run.result.cpu_seconds)


def joules(run: Run) -> float | None:
    """Energy of pruning and training; None where it was not measured."""
    return _total(run.prune_joules, run.result.joules)


def held_bytes(run: Run) -> float:
    """Bytes that training holds: parameters, gradients, optimizer state, and indices."""
    return float(sum(run.result.bytes.values()))


def _saved(run: Run, dense: Run) -> str:
    figures = [
        (run.total_seconds, dense.total_seconds, "s"),
        (cpu_seconds(run), cpu_seconds(dense), "CPU-s"),
        (held_bytes(run) / 1e6, held_bytes(dense) / 1e6, "MB"),
        (joules(run), joules(dense), "J"),
    ]
    # What took no time at all cannot be compared.
    known = [(now, then, unit) for now, then, unit in figures if now is not None and then]
    return ", ".join(_difference(*figures) for figures in known)


def _difference(now: float, then: float, unit: str) -> str:
    if now == then:
        return f"as many {unit}"
    more = "more" if now > then else "less"
    return f"{abs(now - then):.1f} {unit} {more} ({100 * (now / then - 1):+.0f} %)"


def _total(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _energy(dense: Run) -> str:
    source = dense.result.energy
    if dense.result.joules is None:
        why = source.removeprefix(UNMEASURED).removeprefix(": ")
        return f"energy: {UNMEASURED}" + (f" ({why})" if why else "")
    return f"energy: {source}, of all that ran there"
