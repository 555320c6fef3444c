"""The plot of the language model: bits a character against seconds, a panel for each length of training."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.ledger import Row
from bench.report.plots.style import OTHER_COLOUR, tidy
from bench.report.tables.language import SMALL, frame
from sparseprune.format import files

# Dense is black, narrower networks are gray and dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GRAYS = ("#999999", OTHER_COLOUR, "#333333")


def save(rows: list[Row], path: Path) -> None:
    """Draw the mean over the seeds of each model's validation bits, and a dot with its test bits at the end.

    Args:
        rows: runs of ``python -m bench.language``.
        path: PNG to write.
    """
    runs = frame(rows)
    budgets = sorted(runs["budget"].unique())
    styles = _styles(list(runs["contender"].unique()))
    figure = Figure(figsize=(1.5 + 4.8 * len(budgets), 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    for panel, budget in zip(panels, budgets, strict=True):
        of_budget = runs[runs["budget"] == budget]
        for name, found in of_budget.groupby("contender", sort=False):
            _draw(panel, found, float(budget), str(name), styles[str(name)])
        panel.set_title(f"{budget / 60:g} minutes each, {of_budget['seed'].nunique()} seeds", fontsize=10)
        panel.set_xlabel("seconds of pruning and training")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        panel.set_xlim(left=0)
        tidy(panel)
    best, worst = runs["bits"].min(), runs["bits"].max()
    panels[0].set_ylim(best - 0.1, worst + 1.2 * (worst - best) + 0.1)
    panels[0].set_ylabel("bits a character (held-out text)")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(picture := io.BytesIO(), format="png")
    files.write(path, picture.getvalue())


def _styles(names: list[str]) -> dict[str, dict[str, Any]]:
    colours, grays = iter(COLOURS), iter(GRAYS)
    styles: dict[str, dict[str, Any]] = {}
    for name in names:
        if name.startswith(SMALL):
            styles[name] = {"color": next(grays), "linestyle": "--", "linewidth": 1.4}
        elif name.startswith("dense"):
            styles[name] = {
                "color": "black",
                "linestyle": ":" if "float32" in name else "-",
                "linewidth": 1.8,
            }
        else:
            styles[name] = {"color": next(colours), "linestyle": "-", "linewidth": 1.6}
    return styles


def _draw(panel: Axes, found: pandas.DataFrame, budget: float, name: str, style: dict[str, Any]) -> None:
    first = found.iloc[0]
    seconds = [first["prune_seconds"] + step * first["step_seconds"] for step, _ in first["curve"]]
    curves = [[bits for _, bits in curve] for curve in found["curve"]]
    means = [sum(column) / len(column) for column in zip(*curves, strict=True)]
    panel.plot(seconds, means, label=name, **style)
    panel.plot(budget, found["bits"].mean(), "o", color=style["color"], markersize=5)
