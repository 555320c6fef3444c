"""The plot of a study: accuracy against seconds of pruning and training, a line for each contender."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.report.plots.style import tidy
from bench.report.tables.rewire import frame
from bench.rewire.points import DENSE, SMALL_DENSE, Point, Study
from bench.rewire.run import read_times, seconds_of
from sparseprune.format import files

# Dense is black, narrower networks are gray and dashed.
COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#D55E00")
GRAYS = ("#bbbbbb", "#999999", "#777777", "#555555")


def save(study: Study, folder: Path, path: Path) -> None:
    """Draw mean accuracies over the seeds at all lengths, with one standard deviation.

    Args:
        study: what was run.
        folder: results of ``python -m bench.rewire``, times among them.
        path: PNG to write.
    Raises:
        ValueError: there are no runs, or no times.
    """
    runs, timed = frame(folder, study.name), read_times(folder, study.name)
    if not len(runs) or timed is None:
        raise ValueError(f"bench.rewire: expected runs and times of {study.name} in {folder}, got none")
    figure = Figure(figsize=(7.2, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for point, style in _styles(study):
        found = runs[runs["network"] == point.label]
        if not len(found) or point.label not in timed["networks"]:
            continue
        at = found.groupby("steps")["accuracy"].agg(["mean", "std"]).sort_index()
        seconds = [seconds_of(timed["networks"][point.label], steps, study.every) for steps in at.index]
        axes.errorbar(seconds, at["mean"], at["std"].fillna(0), label=point.label, capsize=2, **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("seconds of pruning, training and rewiring (measured)")
    axes.set_ylabel("test accuracy %")
    axes.set_title(f"{study.name}, {runs['seed'].nunique()} seeds", fontsize=10)
    tidy(axes)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(picture := io.BytesIO(), format="png")
    files.write(path, picture.getvalue())


def _styles(study: Study) -> list[tuple[Point, dict[str, Any]]]:
    colours, grays = iter(COLOURS), iter(GRAYS)
    styles: list[tuple[Point, dict[str, Any]]] = []
    for point in study.points:
        if point.kind == DENSE:
            style: dict[str, Any] = {"color": "black", "linewidth": 1.8}
        elif point.kind == SMALL_DENSE:
            style = {"color": next(grays), "linestyle": "--", "linewidth": 1.3}
        else:
            style = {"color": next(colours), "linewidth": 1.6}
        styles.append((point, {"marker": "o", "markersize": 4, **style}))
    return styles
