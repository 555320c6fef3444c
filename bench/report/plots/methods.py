"""The plot of methods of pruning: accuracy against sparsity, and against measured time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.methods.points import AFTER_TRAINING, DENSE, PRUNED, SMALL_DENSE, TICKET
from bench.methods.results import Record
from bench.report.plots.style import FAINT, OTHER_COLOUR, legend, sparsity_axis, tidy
from bench.report.tables.methods import frame
from sparseprune.format import files

BLACK = "#000000"
ERK = "random, ERK densities"
# A colour and a marker for each family of methods: kin have one hue.
LOOKS: dict[str, tuple[str, str]] = {
    "random": (FAINT, "o"),
    ERK: (FAINT, "s"),
    "magnitude": ("#8C510A", "v"),
    "gradient": ("#E69F00", "^"),
    "snip": ("#0072B2", "o"),
    "iter_snip": ("#56B4E9", "s"),
    "force": ("#5B3A8E", "D"),
    "grasp": ("#009E73", "o"),
    "grasp_abs": ("#7BBF3A", "s"),
    "synflow": ("#D55E00", "o"),
    "prospr": ("#CC79A7", "o"),
    "ntk_sap": ("#882255", "s"),
    SMALL_DENSE: (OTHER_COLOUR, "x"),
    AFTER_TRAINING: (BLACK, "v"),
    TICKET: (BLACK, "o"),
}
DASHED = (SMALL_DENSE, AFTER_TRAINING, TICKET, ERK)
# Further below dense than so many times the median, networks are marked at the lower edge.
FAR = 3.0


def save(records: list[Record], path: Path) -> None:
    """Draw a line for each method through its sparsities, means over the seeds, as a PNG.

    Left against sparsity, with one standard deviation; right against total seconds. A line across and a star
    are the dense network; triangles at the lower edge are networks far below most others.

    Args:
        records: runs of one network on one data set, the dense one among them.
        path: PNG to write.
    """
    runs = frame(records)
    table = means(runs)
    dense, others = table.loc[[DENSE]].iloc[0], table.drop(index=DENSE)
    figure = Figure(figsize=(12.4, 6.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    low, high = _limits(others, dense)
    names = [name for name in LOOKS if name in others.index]
    for panel, place in zip(panels, ("place", "seconds"), strict=True):
        for name in names:
            _draw(panel, others.loc[[name]], place, name, low)
        panel.axhline(dense.accuracy, color=BLACK, linewidth=0.8, zorder=1)
    panels[1].plot(dense.seconds, dense.accuracy, color=BLACK, marker="*", markersize=13, zorder=5)
    panels[0].set_ylim(low, high)
    panels[0].set_ylabel("test accuracy (%)")
    sparsity_axis(panels[0])
    _time_axis(panels[1])
    handles = [Line2D([], [], color=BLACK, marker="*", markersize=11, label=DENSE)]
    handles += [Line2D([], [], label=name, **_style(name)) for name in names]
    legend(figure, handles, 6)
    seeds = runs["seed"].nunique()
    below = "; ▼ on the edge: below it" if (others.accuracy < low).any() else ""
    first, threads = records[0], records[0].machine["threads"]
    figure.suptitle(
        f"{first.model} on {first.data}, epochs {first.settings['epochs']}, {threads} threads; "
        f"mean of {seeds} seeds, bars: standard deviation{below}",
        fontsize=10.5,
    )
    figure.savefig(picture := io.BytesIO(), format="png")
    files.write(path, picture.getvalue())


def means(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Means over the seeds: accuracy and its deviation in %, seconds, and 1 / density; indexed by family."""
    family = runs["kind"].where(runs["kind"] != PRUNED, runs["method"])
    family = family.where(runs["scope"] != "erk", ERK)
    plain = runs["control"].isna() & (runs["scope"] != "layer") & runs["failed"].isna()
    groups = runs.assign(family=family)[plain].groupby(["family", "sparsity"], sort=True, dropna=False)
    found = pandas.DataFrame(
        {
            "accuracy": 100 * groups["accuracy"].mean(),
            "deviation": 100 * groups["accuracy"].std().fillna(0.0),
            "seconds": groups["total_seconds"].mean(),
        }
    ).reset_index("sparsity")
    found["place"] = 1 / (1 - found["sparsity"].astype(float))
    # The first rounds of a lottery ticket keep more than any other network.
    return found[
        found["sparsity"].isna() | (found["sparsity"] >= runs[runs["kind"] == PRUNED]["sparsity"].min())
    ]


def _style(name: str) -> dict[str, Any]:
    colour, marker = LOOKS[name]
    return {
        "color": colour,
        "marker": marker,
        "markersize": 4.5,
        "linewidth": 1.5,
        "linestyle": "--" if name in DASHED else "-",
        "markerfacecolor": "white" if name in DASHED and marker != "x" else colour,
    }


def _draw(panel: Axes, line: pandas.DataFrame, place: str, name: str, low: float) -> None:
    style = _style(name)
    shown = line[line.accuracy >= low]
    panel.plot(shown[place], shown.accuracy, **style)
    if place == "place":
        panel.errorbar(
            shown[place],
            shown.accuracy,
            yerr=shown.deviation,
            fmt="none",
            ecolor=style["color"],
            elinewidth=0.7,
        )
    for where in line[line.accuracy < low][place]:
        panel.plot(where, low, "v", color=style["color"], markersize=7, clip_on=False, zorder=6)


def _limits(others: pandas.DataFrame, dense: pandas.Series) -> tuple[float, float]:
    """Limits in %, without the networks that are far below dense."""
    lowest = dense.accuracy - FAR * (dense.accuracy - others.accuracy.median())
    shown = others[others.accuracy >= lowest]
    low = (shown.accuracy - shown.deviation).clip(lower=lowest).min()
    high = max((shown.accuracy + shown.deviation).max(), dense.accuracy)
    margin = 0.04 * (high - low) + 0.05
    return low - margin, high + margin


def _time_axis(panel: Axes) -> None:
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("seconds of pruning and training (log scale)")
    tidy(panel)
