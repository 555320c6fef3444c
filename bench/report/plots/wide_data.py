"""The plot of real wide data: test accuracy against seconds of all contenders, a panel for each data set."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.report.plots.style import legend, panel_grid, tidy
from bench.report.tables.wide_data import Runs, read
from bench.wide_data.contenders import DENSE, LINEAR, SCREENED, SMALL_DENSE, SPARSE
from sparseprune.format import files

# A colour and a marker for each kind; pruned networks have one for each method.
LOOKS = {
    DENSE: ("#000000", "s"),
    SMALL_DENSE: ("#666666", "s"),
    SCREENED: ("#009E73", "D"),
    LINEAR: ("#CC79A7", "^"),
    "snip": ("#0072B2", "o"),
    "grasp": ("#56B4E9", "o"),
    "magnitude": ("#E69F00", "o"),
    "random": ("#D55E00", "o"),
}


def save(results: Mapping[str, Path], picture: Path) -> None:
    """Draw the picture.

    Args:
        results: files of runs by name of the data set; those that do not exist are left out.
        picture: PNG file.
    Raises:
        FileNotFoundError: there is none.
    """
    found = {name: read(file) for name, file in results.items() if file.is_file()}
    if not found:
        raise FileNotFoundError(
            "plot: expected results, found none; python -m bench.wide_data run makes them"
        )
    figure, panels = panel_grid(len(found), 4.4)
    for axes, (name, runs) in zip(panels, found.items(), strict=True):
        _panel(axes, name, runs)
    kinds = [Line2D([], [], color=c, marker=m, linestyle="", label=kind) for kind, (c, m) in LOOKS.items()]
    legend(figure, kinds, len(kinds) if len(found) > 1 else 4)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    files.write(picture, stream.getvalue())


def _panel(axes: Axes, name: str, runs: Runs) -> None:
    for label, found in runs.frame.groupby("contender", sort=False):
        kind, label = found["kind"].iloc[0], str(label)
        colour, marker = LOOKS[label.split()[0] if kind == SPARSE else kind]
        seconds, accuracy = found["total_seconds"].mean(), 100 * found["accuracy"].mean()
        deviation = 100 * found["accuracy"].std() if len(found) > 1 else 0.0
        axes.errorbar(seconds, accuracy, deviation, color=colour, marker=marker, markersize=6, capsize=2)
        axes.annotate(
            _short(label, kind), (seconds, accuracy), (5, 4), textcoords="offset points", fontsize=7.5
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("seconds, pruning or screening included")
    axes.set_ylabel("test accuracy %")
    axes.set_title(f"{name}: {runs.figures['inputs']:,} inputs", fontsize=10, loc="left")
    axes.margins(x=0.12)
    tidy(axes)


def _short(label: str, kind: str) -> str:
    """What the marker does not say: "98 %", "h = 80"."""
    if kind == SPARSE:
        return label.split(maxsplit=1)[1]
    if kind in (SMALL_DENSE, SCREENED):
        return f"h = {label.split(',')[-1].split()[0]}"
    return (
        "" if kind == DENSE else label.replace("logistic regression", "logistic").replace("complement ", "")
    )
