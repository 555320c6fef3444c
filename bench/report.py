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

from bench import peak
from bench.rows import OK, Row, best_dense, speedup, speedup_over
from bench.targets import Outcome, training_bytes
from sparseprune.cost import machine

MILLI = 1e3
GIGA = 1e9
MEGA = 1e6

LEGEND = (
    "ms: median of a call; IQR: width between its quartiles. x ...: speed-up over that contender, below 1 it "
    "is slower. NHWC: dense, channels_last. best f32, best bf16: the fastest dense contender of that "
    "precision in the case. GFLOP/s kept: operations of the matrix products with the kept weights alone, per "
    "second; of peak: that, as a fraction of what the cores could do in fused multiply-adds (float32, "
    "measured). MB (10^6 bytes): parameters, gradients and optimizer state; index MB: buffers (pattern, "
    "plans, masks)."
)

BUSY = 0.1  # processors kept busy by others: from here on figures of several threads are worthless

PEERS = ("sparseprop", "sparse_dot_mkl", "mkl", "scipy", "numpy")


def _factor(row: Row, over: str) -> str:
    factor = speedup_over(row, over)
    return "" if factor is None else f"{factor:.2f}"


def _rate(row: Row) -> str:
    return f"{row.kept_flops / row.seconds / GIGA:.1f}" if row.kept_flops and row.seconds else ""


def of_peak(row: Row, figures: dict[str, Any] | None) -> float | None:
    """Operations per second with kept weights over the FMA peak of as many cores as there are threads."""
    if figures is None or not row.kept_flops or not row.seconds:
        return None
    return row.kept_flops / row.seconds / (row.threads * figures["fma_gflops"] * GIGA)


def _bytes(row: Row, held: int) -> str:
    return f"{held / MEGA:.1f}" if "bytes" in row.facts else ""


# Heading, and what a timed row shows under it. A column that is empty in a case is left out of it.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "IQR": lambda row: "" if row.q1 is None or row.q3 is None else f"{(row.q3 - row.q1) * MILLI:.3f}",
    "x dense\nf32": lambda row: _factor(row, "dense-float32"),
    "x best\nf32": lambda row: _factor(row, best_dense("float32")),
    "x NHWC\nf32": lambda row: _factor(row, "dense-float32-nhwc"),
    "x dense\nbf16": lambda row: _factor(row, "dense-bfloat16"),
    "x best\nbf16": lambda row: _factor(row, best_dense("bfloat16")),
    "x numpy\npartition": lambda row: _factor(row, "numpy-partition"),
    "GFLOP/s\nkept": _rate,
    "MB": lambda row: _bytes(row, training_bytes(row)),
    "index\nMB": lambda row: _bytes(row, row.facts.get("bytes", {}).get("buffers", 0)),
}


def columns(figures: dict[str, Any] | None) -> dict[str, Callable[[Row], str]]:
    """Headings, and what a timed row shows under them; ``figures`` as `peak.measure` found it."""

    def share(row: Row) -> str:
        found = None if row.family == "dense" else of_peak(row, figures)
        return "" if found is None else f"{100 * found:.0f} %"

    return {**COLUMNS, "of\npeak": share, "calls": lambda row: str(row.calls)}


def case_table(rows: Sequence[Row], figures: dict[str, Any] | None = None) -> RenderableType:
    """The rows of one case; contenders without a time say why below the table."""
    cells = {
        heading: [show(row) if row.status == OK else "" for row in rows]
        for heading, show in columns(figures).items()
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


def notes_text(rows: Sequence[Row]) -> Text:
    """What the contenders say about themselves, once each."""
    notes = {f"  {row.contender}: {row.note}": None for row in rows if row.note and row.status == OK}
    return Text("\n".join(["notes", *notes]) + "\n")


def targets_table(outcomes: Sequence[Outcome], contender: str) -> Table:
    """Each target that was measured beside the figure, and whether it is met."""
    measured = [outcome for outcome in outcomes if outcome.measured is not None]
    met = sum(outcome.verdict == "met" for outcome in measured)
    words = f"{met} of {len(measured)} measured are met" if measured else "none of them was measured"
    table = Table(
        title=f"targets ({contender}): {words}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=0,
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
    for outcome in measured:
        target = outcome.target
        figures = (str(outcome.threads), f"{target.at_least:g}", f"{outcome.measured:.2f}")
        table.add_row(target.says, target.over, *figures, outcome.verdict)
    return table


def header(settings: dict[str, Any], contender: str) -> dict[str, Any]:
    """What all figures of a run depend on; ``contender`` is the one that targets and losses are about."""
    figures, why_not = peak.measure()
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
        "peak": figures,
        "no_peak": why_not,
        "contender": contender,
        "settings": settings,
    }


def header_text(header: dict[str, Any]) -> Text:
    """It in two lines, for people."""
    facts = header["machine"]
    return Text(
        f"{facts['cpu']}, {facts['cores']} cores, {facts['isa']}, torch {facts['torch']}, "
        f"sparseprune {facts['sparseprune']}, {facts['date']}; load average {header['load']:.1f} before\n"
        f"{peak_words(header)}\n"
    )


def peak_words(header: dict[str, Any]) -> str:
    """What one core can do, in a line."""
    found = header["peak"]
    if found is None:
        return f"what a core can do is not known: {header['no_peak']}"
    return (
        f"one core, {found['isa']}: {found['fma_gflops']:.0f} GFLOP/s in multiply-adds, "
        f"{found['load_fma_gflops']:.0f} with a load from L1 for each; "
        f"reads {found['l1_gbs']:.0f} GB/s from L1, {found['l2_gbs']:.0f} from L2, "
        f"{found['beyond_gbs']:.0f} from beyond"
    )


def json_line(type: str, content: dict[str, Any]) -> str:
    """One line of JSONL, which says what it is in "type"."""
    return json.dumps({"type": type, **content})
