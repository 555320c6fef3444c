"""Test accuracy against wall-clock time, as a PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from sparseprune.experiments.compare.results import Run
from sparseprune.format import files

# Okabe and Ito's colours: people with colour blindness can tell them apart. Black and gray: dense networks.
METHOD_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "os^Dv"
LINES: tuple[Any, ...] = ("-", ":", "-.", (0, (1, 3)), (0, (5, 1)))
# Lines and markers of dense networks beside the dense one, all gray: "" is the marker of a sparsity.
DENSE_KINDS: dict[str, tuple[Any, str]] = {
    "small dense": ("--", ""),
    "screened": ("-.", "P"),
    "conv": ((0, (4, 1, 1, 1, 1, 1)), "X"),
}
LEGEND_SIZE = 9  # points
CHARACTER, LINE_SAMPLE = 0.55 * LEGEND_SIZE / 72, 0.6  # inches of a legend


def save_curves(views: Sequence[tuple[str, Sequence[Run]]], headline: str, path: Path) -> None:
    """Draw one panel for each view: a curve for each run, which starts when its pruning ends.

    Dense is black; other dense networks are gray: small ones dashed, those on screened inputs dash-dotted,
    convolutional ones with two dots. A method has a colour, a sparsity a marker and a shade, a block a line
    style.

    Args:
        views: title and runs of each.
        headline: title of the figure.
        path: PNG to write.
    """
    width = 1.5 + 4.6 * len(views)
    figure = Figure(figsize=(width, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(views), sharey=True, squeeze=False)[0]
    everything = [run for _, runs in views for run in runs]
    for panel, (title, runs) in zip(panels, views, strict=True):
        for run in runs:
            seconds = [run.prune_seconds + point.seconds for point in run.result.curve]
            accuracy = [100 * point.accuracy for point in run.result.curve]
            # About a dozen markers, the last point among them, however many passes there were.
            marked = range(len(seconds) - 1, -1, -math.ceil(len(seconds) / 12))
            panel.plot(seconds, accuracy, label=run.label, markevery=list(marked), **_style(run, everything))
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("wall-clock seconds (pruning and training)")
        panel.set_xlim(left=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].set_ylim(*interesting(everything))
    lines, labels = panels[0].get_legend_handles_labels()
    columns = int(width / (LINE_SAMPLE + CHARACTER * max(map(len, labels))))
    figure.legend(
        lines,
        labels,
        loc="outside lower center",
        ncols=min(max(columns, 1), 4),
        frameon=False,
        fontsize=LEGEND_SIZE,
        handlelength=3,
    )
    figure.suptitle(headline, fontsize=11)
    figure.savefig(picture := io.BytesIO(), format="png")
    files.write(path, picture.getvalue())


def _style(run: Run, everything: Sequence[Run]) -> dict[str, Any]:
    if run.kind == "dense":
        return {"color": "black", "linewidth": 2.2, "marker": ".", "zorder": 3}
    rank, ranks = _rank(run, everything)
    lightness = 0.55 * rank / max(ranks - 1, 1)
    marker = {"marker": MARKERS[rank % len(MARKERS)], "markersize": 4}
    if run.method is None:
        line, own_marker = DENSE_KINDS.get(run.kind, ("-", ""))
        marker |= {"marker": own_marker} if own_marker else {}
        return {"color": _lighter("#666666", lightness), "linestyle": line, "linewidth": 1.4, **marker}
    methods = list(dict.fromkeys(r.method for r in everything if r.method is not None))
    colour = METHOD_COLOURS[methods.index(run.method) % len(METHOD_COLOURS)]
    blocks = list(dict.fromkeys(r.block for r in everything if r.kind == "sparse"))
    line = LINES[blocks.index(run.block) % len(LINES)]
    return {"color": _lighter(colour, lightness), "linestyle": line, "linewidth": 1.6, **marker}


def _rank(run: Run, everything: Sequence[Run]) -> tuple[int, int]:
    """Place among the sparsities, or, without one, among the networks of its kind, and how many there are."""
    if run.sparsity is not None:
        sparsities = sorted({r.sparsity for r in everything if r.sparsity is not None})
        return sparsities.index(run.sparsity), len(sparsities)
    labels = list(dict.fromkeys(r.label for r in everything if r.kind == run.kind and r.sparsity is None))
    return labels.index(run.label), len(labels)


def _lighter(colour: str, part: float) -> tuple[float, ...]:
    return tuple(channel + (1 - channel) * part for channel in to_rgb(colour))


def interesting(runs: Sequence[Run]) -> tuple[float, float]:
    """Limits (in %) that show how the runs end; the climb of the first epoch may be cut off."""
    finals = [100 * run.result.accuracy for run in runs]
    points = [100 * point.accuracy for run in runs for point in run.result.curve]
    spread = max(finals) - min(finals)
    bottom = max(min(points), min(finals) - max(3.0, 0.6 * spread))
    margin = 0.04 * (max(points) - bottom) + 0.05
    return bottom - margin, max(points) + margin
