"""Results for people (tables) and for machines (JSONL)."""

from __future__ import annotations

import collections
import importlib.metadata
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.rows import BEST_DENSE, OK, Row, speedup_over
from bench.targets import Outcome, training_bytes
from bench.workloads import BASELINES, DEFAULT_BASELINE
from sparseprune import machine

MILLI = 1e3
GIGA = 1e9
MEGA = 1e6

LEGEND = (
    "ms: median of a call; IQR: width between its quartiles. x ...: speed-up over that contender, below 1 it "
    "is slower. best f32: the fastest dense float32 contender of the case. GFLOP/s kept: operations of the "
    "matrix products with the kept weights alone, per second. of dense rate: that, as a fraction of the "
    "GFLOP/s that the best dense float32 reaches on all weights; divided by the density it is the speed-up. "
    "MB (10^6 bytes): parameters, gradients and optimizer state; index MB: buffers (pattern, plans, masks)."
)

BUSY = 0.1  # processors kept busy by others: from here on figures of several threads are worthless

PEERS = ("sparseprop", "scipy", "numpy")


def _factor(row: Row, over: str) -> str:
    factor = speedup_over(row, over)
    return "" if factor is None else f"{factor:.2f}"


def _rate(row: Row) -> str:
    return f"{row.kept_flops / row.seconds / GIGA:.1f}" if row.kept_flops and row.seconds else ""


def _of_dense_rate(row: Row) -> str:
    factor = speedup_over(row, BEST_DENSE)
    if factor is None or not row.kept_flops or row.family == "dense":
        return ""
    return f"{factor * row.kept_flops / row.dense_flops:.2f}"


def _bytes(row: Row, held: int) -> str:
    return f"{held / MEGA:.1f}" if "bytes" in row.facts else ""


# Heading, and what a timed row shows under it. A column that is empty in a case is left out of it.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "IQR": lambda row: "" if row.q1 is None or row.q3 is None else f"{(row.q3 - row.q1) * MILLI:.3f}",
    "x dense\nf32": lambda row: _factor(row, "dense-float32"),
    "x best\nf32": lambda row: _factor(row, BEST_DENSE),
    "x dense\nbf16": lambda row: _factor(row, "dense-bfloat16"),
    "x numpy\npartition": lambda row: _factor(row, "numpy-partition"),
    "GFLOP/s\nkept": _rate,
    "of dense\nrate": _of_dense_rate,
    "MB": lambda row: _bytes(row, training_bytes(row)),
    "index\nMB": lambda row: _bytes(row, row.facts.get("bytes", {}).get("buffers", 0)),
    "calls": lambda row: str(row.calls),
}


def case_table(rows: Sequence[Row]) -> RenderableType:
    """The rows of one case; contenders without a time say why below the table."""
    cells = {
        heading: [show(row) if row.status == OK else "" for row in rows] for heading, show in COLUMNS.items()
    }
    cells = {heading: column for heading, column in cells.items() if any(column)}
    table = Table(
        title=rows[0].case,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("contender", min_width=21, no_wrap=True)
    for heading in ("ms", *cells):
        table.add_column(heading, justify="right", no_wrap=True, min_width=8)
    for i, row in enumerate(rows):
        time = row.status if row.seconds is None else f"{row.seconds * MILLI:.3f}"
        table.add_row(row.contender, time, *(column[i] for column in cells.values()))
    reasons = [Text(f"  {row.contender}: {row.status}: {row.reason}") for row in rows if row.status != OK]
    others = max((row.others or 0.0 for row in rows), default=0.0)
    if others > BUSY:
        reasons.append(
            Text(f"  NOT A QUIET MACHINE: others kept {others:.2f} processors busy; measure again")
        )
    return Group(table, *reasons, Text())


def losses(rows: Sequence[Row], contender: str) -> list[str]:
    """Cases in which a contender is slower than the best dense float32 one, with the speed-up."""
    found = []
    for row in rows:
        factor = speedup_over(row, BEST_DENSE) if row.contender == contender else None
        if factor is None and row.contender == contender:
            factor = speedup_over(row, BASELINES.get(row.kind, DEFAULT_BASELINE))
        if factor is not None and factor < 1:
            found.append(f"{row.case}: {factor:.2f}")
    return found


def losses_text(rows: Sequence[Row], contender: str) -> Text:
    """A list of the losses, or a line that there are none."""
    found = losses(rows, contender)
    compared = sum(row.contender == contender and bool(row.speedup) for row in rows)
    rival = "the best dense float32 (topk: numpy)"
    lines = [f"slower than {rival}: {contender} in {len(found)} of {compared} cases"]
    return Text("\n".join([*lines, *(f"  {line}" for line in found)]) + "\n")


def strongest_text(rows: Sequence[Row]) -> Text:
    """Which dense float32 contender was the strongest, and in how many cases."""
    count: collections.Counter[str] = collections.Counter()
    for row in rows:
        rivals = [name for name in row.speedup if name.startswith("dense-float32")]
        if row.contender in rivals and len(rivals) > 1 and speedup_over(row, BEST_DENSE) == 1:
            count[row.contender] += 1
    cases = ", ".join(f"{name} in {number} cases" for name, number in count.most_common())
    return Text(f"strongest dense float32: {cases or 'not compared'}\n")


def notes_text(rows: Sequence[Row]) -> Text:
    """What the contenders say about themselves, once each."""
    notes = {f"  {row.contender}: {row.note}": None for row in rows if row.note and row.status == OK}
    return Text("\n".join(["notes", *notes]) + "\n")


def targets_table(outcomes: Sequence[Outcome], contender: str) -> Table:
    """Each target beside the figure measured, and whether it is met."""
    table = Table(
        title=f"targets ({contender})", title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=0
    )
    for heading, justify in {
        "target": "left",
        "over": "left",
        "threads": "right",
        "at least": "right",
        "measured": "right",
        "": "left",
    }.items():
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for outcome in outcomes:
        measured = "" if outcome.measured is None else f"{outcome.measured:.2f}"
        target = outcome.target
        table.add_row(
            target.says, target.over, str(outcome.threads), f"{target.at_least:g}", measured, outcome.verdict
        )
    return table


def header(settings: dict[str, Any]) -> dict[str, Any]:
    """What all figures of a run depend on."""
    versions = {}
    for name in PEERS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "type": "header",
        "machine": machine.facts(),
        "versions": versions,
        "load": os.getloadavg()[0],
        "settings": settings,
    }


def header_text(header: dict[str, Any]) -> Text:
    """One line of it, for people."""
    facts = header["machine"]
    return Text(
        f"{facts['cpu']}, {facts['cores']} cores, {facts['isa']}, torch {facts['torch']}, "
        f"sparseprune {facts['sparseprune']}, {facts['date']}; load average {header['load']:.1f} before\n"
    )


def json_line(type: str, content: dict[str, Any]) -> str:
    """One line of JSONL, which says what it is in "type"."""
    return json.dumps({"type": type, **content})
