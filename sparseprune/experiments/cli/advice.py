"""Whether pruning a network pays in time, from what is measured already; nothing is timed for it."""

from __future__ import annotations

import re

import sparseprune as sp
from sparseprune.cost.speedup import SpeedUp

HARDLY = 1.1  # times as fast as dense, up to which a network does not gain
# Of a layer's choice, as `sparseprune.summary` tells it: "dense 1.2 ms, sparse 3 ms a step".
SECONDS = re.compile(r"(sparse|dense) ([\d.e+-]+) ms")
SLOW = "Pruned like this, the network does not get faster"
REMEDY = (
    "Prune more, or use larger blocks or batches: `sparseprune cost` shows the density below which a layer "
    "gains. Or take a narrower dense network, as `sparseprune compare` does."
)


def advice(summary: sp.Summary, speedup: SpeedUp | None = None) -> str | None:
    """A sentence or two for a network that does not get faster, with the measured figure.

    Args:
        summary: of the sparse model.
        speedup: of the whole training step, where it was timed; else the layers' own times are added up.
    Returns:
        the sentences; None for a network that gains, or where too little is known.
    """
    if speedup is not None:
        ratio = f"its training step is {speedup.measured:.2f} times as fast as dense"
        return None if speedup.measured > HARDLY else f"{SLOW}: {ratio}. {REMEDY}"
    layers = [row for row in summary.rows if row.weights]
    chosen = [_milliseconds(row.choice) for row in layers]
    times = [time for time in chosen if time is not None]
    if len(times) < len(layers) or not times:
        return None
    dense = sum(time["dense"] for time in times)
    sparse = sum(
        time["sparse" if row.computes.startswith("sparse") else "dense"]
        for row, time in zip(layers, times, strict=True)
    )
    doubt = " (other processes ran meanwhile)" if any("disturbed" in row.choice for row in layers) else ""
    if not any(row.computes.startswith("sparse") for row in layers):
        return f"{SLOW}: all layers are faster dense, {dense:.3g} ms a step{doubt}. {REMEDY}"
    if dense > HARDLY * sparse:
        return None
    return f"{SLOW}: its layers take {sparse:.3g} ms a step, and dense {dense:.3g} ms{doubt}. {REMEDY}"


def _milliseconds(choice: str) -> dict[str, float] | None:
    """The layer's time sparse and dense; None where they were not measured."""
    found = {kind: float(number) for kind, number in SECONDS.findall(choice)}
    return found if len(found) == 2 else None
