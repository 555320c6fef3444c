"""What is shown of a row, in a terminal and on the page: a heading and a text for each figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.rows import OK, Row, best_dense, speedup_over
from bench.targets import training_bytes

MILLI = 1e3
MEGA = 1e6
GIGA = 1e9

Columns = dict[str, Callable[[Row], str]]

LEGEND = (
    "ms: median of a call; IQR: width between its quartiles. x ...: speed-up over that contender, below 1 it "
    "is slower. NHWC: dense, channels_last. best f32, best bf16: the fastest dense contender of that "
    "precision in the case. GFLOP/s kept: operations of the matrix products with the kept weights alone, per "
    "second; of peak: that, as a fraction of what the cores could do in fused multiply-adds (float32, "
    "measured). MB (10^6 bytes): parameters, gradients and optimizer state; index MB: buffers (pattern, "
    "plans, masks)."
)


def _factor(over: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        factor = speedup_over(row, over)
        return "" if factor is None else f"{factor:.2f}"

    return show


def _rate(row: Row) -> str:
    return "" if row.flops_per_second is None else f"{row.flops_per_second / GIGA:.1f}"


def _bytes(row: Row, held: int) -> str:
    return f"{held / MEGA:.1f}" if "bytes" in row.facts else ""


# A column that is empty in a case is left out of it.
COLUMNS: Columns = {
    "IQR": lambda row: "" if row.q1 is None or row.q3 is None else f"{(row.q3 - row.q1) * MILLI:.3f}",
    "x dense\nf32": _factor("dense-float32"),
    "x best\nf32": _factor(best_dense("float32")),
    "x NHWC\nf32": _factor("dense-float32-nhwc"),
    "x dense\nbf16": _factor("dense-bfloat16"),
    "x best\nbf16": _factor(best_dense("bfloat16")),
    "x numpy\npartition": _factor("numpy-partition"),
    "GFLOP/s\nkept": _rate,
    "MB": lambda row: _bytes(row, training_bytes(row)),
    "index\nMB": lambda row: _bytes(row, row.facts.get("bytes", {}).get("buffers", 0)),
}


def columns(peak: dict[str, Any] | None) -> Columns:
    """All columns; ``peak`` holds what a core can do, as `bench.peak.measure` found it."""

    def of_peak(row: Row) -> str:
        rate = row.flops_per_second
        if peak is None or rate is None or row.family == "dense":
            return ""
        return f"{100 * rate / (row.threads * peak['fma_gflops'] * GIGA):.0f} %"

    return {**COLUMNS, "of\npeak": of_peak, "calls": lambda row: str(row.calls)}


def filled(columns: Columns, rows: Sequence[Row]) -> dict[str, list[str]]:
    """``{heading: a text for each row}`` of the columns that are not empty in these rows."""
    cells = {
        heading: [show(row) if row.status == OK else "" for row in rows] for heading, show in columns.items()
    }
    return {heading: column for heading, column in cells.items() if any(column)}
