"""Which rows of single layers are plotted, and their words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.rows import OK, Row, speedup
from bench.workloads import CONV_BATCH, CONV_FORWARD, CONV_STEP, FORWARD, STEP

LINEAR = (FORWARD, STEP)
WORDS = {
    FORWARD: "forward",
    STEP: "training step",
    CONV_FORWARD: "convolution, forward",
    CONV_STEP: "convolution, training step",
}
USUAL_BATCH = {FORWARD: 256, STEP: 256, CONV_FORWARD: CONV_BATCH, CONV_STEP: CONV_BATCH}


def layers(rows: Iterable[Row], contender: str, threads: int, kinds: Sequence[str] = LINEAR) -> list[Row]:
    """A contender's timed rows of layers of these kinds that have something to be compared with."""
    return [
        row
        for row in rows
        if row.contender == contender
        and row.threads == threads
        and row.status == OK
        and row.workload.kind in kinds
        and speedup(row) is not None
    ]


def times(shape: str) -> str:
    """A shape for readers: 1024×1024."""
    return shape.replace("x", "×")
