"""Results in a terminal."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.report.columns import LEGEND, MILLI, Columns, columns, filled
from bench.rows import OK, Row, speedup
from bench.targets import Outcome
from sparseprune.cost.quiet import is_busy

__all__ = ["LEGEND", "case_table", "losses_text", "notes_text", "strongest_text", "targets_table"]


def titled(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=0, show_edge=False
    )


def rows_table(
    rows: Sequence[Row], unit: str, time: Callable[[float], str], shown: Columns, widths: tuple[int, int]
) -> RenderableType:
    """The rows of one case; contenders without a time say why below the table.

    Args:
        rows: those of the case.
        unit: heading of the times.
        time: formats seconds.
        shown: further columns.
        widths: least characters of the names and of the further columns.
    """
    table = titled(rows[0].case)
    table.add_column("contender", min_width=widths[0], no_wrap=True)
    table.add_column(unit, justify="right", no_wrap=True, min_width=8)
    cells = filled(shown, rows)
    for heading in cells:
        table.add_column(heading, justify="right", no_wrap=True, min_width=widths[1])
    for i, row in enumerate(rows):
        first = row.status if row.seconds is None else time(row.seconds)
        table.add_row(row.contender, first, *(column[i] for column in cells.values()))
    reasons = [Text(f"  {row.contender}: {reason(row)}") for row in rows if row.status != OK]
    return Group(table, *reasons)


def reason(row: Row) -> str:
    """Why a row has no time, the first line of it."""
    return f"{row.status}: {row.reason.splitlines()[0] if row.reason else ''}"


def case_table(rows: Sequence[Row], peak: dict[str, Any] | None = None) -> RenderableType:
    """The rows of one case, and a warning where the machine was not quiet."""
    table = rows_table(rows, "ms", lambda seconds: f"{seconds * MILLI:.3f}", columns(peak), widths=(21, 8))
    others = max((row.others or 0.0 for row in rows), default=0.0)
    busy = f"  NOT A QUIET MACHINE: others kept {others:.2f} processors busy; measure again"
    return Group(table, *([Text(busy)] if is_busy(others) else []), Text())


def losses(rows: Sequence[Row], contender: str) -> list[tuple[Row, float]]:
    """Rows of a contender that is slower than the best dense one of the same precision, with the speed-up."""
    factors = [(row, speedup(row)) for row in rows if row.contender == contender]
    return [(row, factor) for row, factor in factors if factor is not None and factor < 1]


def losses_text(rows: Sequence[Row], contender: str) -> Text:
    """A list of the losses, or a line that there are none."""
    found = losses(rows, contender)
    compared = sum(row.contender == contender and speedup(row) is not None for row in rows)
    rival = "the best dense contender of the same precision (topk: numpy)"
    lines = [f"slower than {rival}: {contender} in {len(found)} of {compared} cases"]
    return Text("\n".join([*lines, *(f"  {row.case}: {factor:.2f}" for row, factor in found)]) + "\n")


def strongest(rows: Sequence[Row], dtype: str) -> dict[str, int]:
    """``{contender: cases of this precision in which it is the fastest dense one}``, most first."""
    count = collections.Counter(
        row.contender
        for row in rows
        if row.workload.dtype == dtype and row.contender.startswith(f"dense-{dtype}") and speedup(row) == 1
    )
    return dict(count.most_common())


def strongest_text(rows: Sequence[Row]) -> Text:
    """Which dense contender was the strongest, and in how many cases."""
    lines = []
    for dtype in sorted({row.workload.dtype for row in rows}, reverse=True):
        cases = ", ".join(f"{name} in {number} cases" for name, number in strongest(rows, dtype).items())
        lines.append(f"strongest dense {dtype}: {cases or 'not compared'}")
    return Text("\n".join(lines) + "\n")


def notes_text(rows: Sequence[Row], tolerances: bool = False) -> Text:
    """What the contenders say about themselves, and if asked for the error that was accepted, once each."""
    notes: dict[str, None] = {}
    for row in rows:
        accepted = f"relative error up to {row.tolerance:g}" if tolerances else ""
        if row.status == OK and (about := "; ".join(filter(None, [row.note, accepted]))):
            notes[f"  {row.contender}: {about}"] = None
    return Text("\n".join(["notes", *notes]) + "\n")


def targets_table(outcomes: Sequence[Outcome], contender: str) -> Table:
    """Each target that was measured beside the figure, and whether it is met."""
    measured = [outcome for outcome in outcomes if outcome.measured is not None]
    met = sum(outcome.verdict == "met" for outcome in measured)
    words = f"{met} of {len(measured)} measured are met" if measured else "none of them was measured"
    table = titled(f"targets ({contender}): {words}")
    for heading in ("target", "over"):
        table.add_column(heading, no_wrap=True)
    for heading in ("threads", "at least", "measured"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for outcome in measured:
        target = outcome.target
        figures = (str(outcome.threads), f"{target.at_least:g}", f"{outcome.measured:.2f}")
        table.add_row(target.says, target.over, *figures, outcome.verdict)
    return table
