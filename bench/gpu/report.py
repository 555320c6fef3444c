"""Results on a GPU for people: a table for each workload, losses, and measured break-even sparsities."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.breakeven import break_even
from bench.gpu.suite import Row
from bench.rows import FAILED, OK, WRONG
from bench.workloads import Workload

MICRO = 1e6
MEGA = 1e6

LEGEND = (
    "µs: median on the device, by CUDA events; IQR: width between its quartiles. Before each call a buffer "
    "of twice the L2 cache is written: weights and input come from memory. host µs: what the processor takes "
    "to hand over a call; a head start hides it from µs, a loop where it is the longer of the two does not. "
    "TFLOP/s: operations of the matrix products with the kept weights alone, whoever computes. GB/s: weights "
    "as stored, indices, input and output (in a step their gradients too), each once. x best: speed-up over "
    "the strongest dense of the same precision; x TF32: of float32 over the strongest dense in TF32; x dflt: "
    "over what torch does in float32 unless told otherwise (dense-float32, of convolutions dense-tf32; topk: "
    "torch-topk). Below 1 it is slower. inner: batch innermost in memory."
)


def _factor(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _micro(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * MICRO:.1f}"


def _spread(row: Row) -> str:
    return "" if row.q1 is None or row.q3 is None else _micro(row.q3 - row.q1)


# Heading, and what a timed row shows under it. A column that is empty in a case is left out of it.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "IQR": _spread,
    "host\nµs": lambda row: "" if row.host_seconds is None else f"{row.host_seconds * MICRO:.0f}",
    "TFLOP\n/s": lambda row: "" if row.tflops is None else f"{row.tflops:.2f}",
    "GB/s": lambda row: "" if row.gbs is None else f"{row.gbs:.0f}",
    "x\nbest": lambda row: _factor(row.over_best),
    "x\nTF32": lambda row: _factor(row.over_tf32),
    "x\ndflt": lambda row: _factor(row.over_default),
}


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )


def case_table(rows: Sequence[Row]) -> RenderableType:
    """The rows of one case; contenders without a time say why below the table."""
    cells = {
        heading: [show(row) if row.status == OK else "" for row in rows] for heading, show in COLUMNS.items()
    }
    cells = {heading: column for heading, column in cells.items() if any(column)}
    table = _table(rows[0].case)
    table.add_column("contender", min_width=19, no_wrap=True)
    table.add_column("µs", justify="right", no_wrap=True, min_width=8)
    for heading in cells:
        table.add_column(heading, justify="right", no_wrap=True, min_width=5)
    for i, row in enumerate(rows):
        time = _micro(row.seconds) if row.status == OK else row.status.upper()
        table.add_row(row.contender, time, *(column[i] for column in cells.values()))
    reasons = [Text(f"  {row.contender}: {reason(row)}") for row in rows if row.status != OK]
    return Group(table, *reasons, Text())


def reason(row: Row) -> str:
    """Why a row has no time, the first line of it."""
    return f"{row.status.upper()}: {row.reason.splitlines()[0] if row.reason else ''}"


def failures_text(rows: Sequence[Row]) -> Text:
    """Who was wrong or failed, why, and in how many cases; "" if nobody did."""
    bad = [f"{row.contender}: {reason(row)}" for row in rows if row.status in (WRONG, FAILED)]
    lines = [f"in {count} of {len(rows)} rows: {what}" for what, count in collections.Counter(bad).items()]
    return Text("\n".join(lines))


def losses_text(rows: Sequence[Row]) -> Text:
    """Every case in which sparseprune is slower than dense, and by how much."""
    comparisons: dict[str, Callable[[Row], float | None]] = {
        "the strongest dense of the same precision (topk: of torch)": lambda row: row.over_best,
        "the strongest dense in TF32, computing in float32": lambda row: row.over_tf32,
    }
    lines = []
    for rival, over in comparisons.items():
        own = [(row, factor) for row in rows if row.family == "own" and (factor := over(row)) is not None]
        lost = [(row, factor) for row, factor in own if factor < 1]
        lines.append(f"slower than {rival}: {len(lost)} of {len(own)}")
        by_case: dict[str, list[str]] = {}
        for row, factor in lost:
            by_case.setdefault(row.case, []).append(f"{row.contender.removeprefix('ours-')} {factor:.2f}")
        lines += [f"  {case}: {', '.join(factors)}" for case, factors in by_case.items()]
    return Text("\n".join(lines) + "\n")


def notes_text(rows: Sequence[Row]) -> Text:
    """What the contenders say about themselves, and the error that was accepted, once each."""
    notes: dict[str, None] = {}
    for row in rows:
        if row.status == OK:
            about = "; ".join(filter(None, [row.note, f"relative error up to {row.tolerance:g}"]))
            notes[f"  {row.contender}: {about}"] = None
    return Text("\n".join(["notes", *notes]) + "\n")


def _breakeven_key(workload: Workload) -> str:
    return f"{workload.kind}/{workload.shape}/n={workload.batch}"


def breakeven_table(rows: Sequence[Row]) -> Table:
    """Measured break-even sparsities over the strongest dense of the same precision, by V, in per cent."""
    points: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
    for row in rows:
        if row.family == "own" and row.over_best is not None and row.workload.batch:
            key = (_breakeven_key(row.workload), row.contender)
            of_block = points.setdefault(key, {}).setdefault(row.workload.block, [])
            of_block.append((row.workload.density, row.over_best))
    table = _table("sparsity (%) from which on sparse is faster than the strongest dense of its precision")
    table.caption = "<: faster at every sparsity measured; >: at none"
    table.caption_justify = "left"
    table.add_column("workload", no_wrap=True)
    table.add_column("contender", no_wrap=True)
    blocks = sorted({block for found in points.values() for block in found})
    for block in blocks:
        table.add_column(f"V={block}", justify="right", no_wrap=True, min_width=5)
    for (workload, contender), found in points.items():
        cells = [_crossing(found[block]) if block in found else "" for block in blocks]
        table.add_row(workload, contender, *cells)
    return table


def _crossing(points: list[tuple[float, float]]) -> str:
    found = break_even(points)
    if found.how == "extrapolated":  # too far to say more
        return f"<{100 * (1 - max(density for density, _ in points)):.0f}"
    return f"{'>' if found.how == 'not reached' else ''}{100 * (1 - found.density):.0f}"


def header_text(header: dict[str, Any]) -> Text:
    """The device and the versions in two lines."""
    facts, device = header["machine"], header["device"]
    first = device["name"]
    if device["type"] == "cuda":
        first = (
            f"{device['name']}, compute capability {device['compute_capability']}, "
            f"driver {device['driver']}, CUDA {device['cuda']}, L2 {device['l2_bytes'] / MEGA:.1f} MB"
        )
    return Text(
        f"{first}\ntorch {facts['torch']}, sparseprune {facts['sparseprune']}, {facts['date']}; "
        f"{facts['cpu']}\n"
    )
