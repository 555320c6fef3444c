"""Test accuracy against measured training time of a frontier, as a PNG."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sparseprune.experiments.compare.plot import LINES, MARKERS, METHOD_COLOURS
from sparseprune.experiments.frontier.points import Point
from sparseprune.experiments.frontier.results import passes
from sparseprune.experiments.frontier.rules import RULES
from sparseprune.format import files

FEW = 6  # sparse families that one panel holds
COLUMNS = 3  # panels side by side
BESIDE = ((5, -10), (-13, 4), (5, 4), (-13, -10), (-4, -14), (-4, 8))  # of a point, in points
BARS: dict[str, Any] = {"elinewidth": 0.8, "capsize": 1.5, "capthick": 0.8}
TITLES = {"uniform": "uniform density", "erk": "Erdős-Rényi-kernel densities", "global": "global ranking"}
DENSE, SMALL = "#000000", "#666666"


def save_frontier(table: pd.DataFrame, headline: str, path: Path) -> None:
    """Draw a line for each family, through its budgets, with one standard deviation both ways.

    Dense is a black star, its accuracy a thin line across; small dense is dashed and gray, with its budgets
    beside it. A method (a rule, where there is one method) has a colour, a block a marker and a line style.
    Each length of training has a panel with scales of its own. Where there is one length, few families share
    a panel; many have one for each rule, with dense and small dense in all of them.
    Networks far below most others, which have hardly learned, are triangles at the lower edge.

    Args:
        table: see `sparseprune.experiments.frontier.statistics.statistics`.
        headline: title of the figure.
        path: PNG to write.
    """
    by_length = table.epochs.nunique() > 1
    together = by_length or table[table.kind == "sparse"].family.nunique() <= FEW
    shown = _by_length(table) if by_length else [("", table)] if together else _by_rule(table)
    columns = 2 if len(shown) in (2, 4) else min(len(shown), COLUMNS)
    lines = math.ceil(len(shown) / columns)
    size = (7.4, 5.6) if len(shown) == 1 else (1.0 + 4.4 * columns, 1.4 + 3.3 * lines)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    # Rules are compared with each other; lengths differ too much to be told apart on one scale.
    share = not by_length
    panels = figure.subplots(lines, columns, sharex=share, sharey=share, squeeze=False).flatten()
    looks = _looks(list(table.network), together)
    handles: dict[str, Line2D] = {}
    for panel, (title, networks) in zip(panels, shown, strict=False):
        _draw(panel, networks, looks, together, handles)
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.25, which="both", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        _time_axis(panel, networks if by_length else table)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    for i, panel in enumerate(panels[: len(shown)]):
        if i + columns >= len(shown):
            panel.set_xlabel("seconds of pruning and training (log scale)")
            panel.tick_params(axis="x", labelbottom=True)
        if i % columns == 0:
            panel.set_ylabel("test accuracy (%)")
    # The rest is text.
    inside = 72 * 0.85 * size[0] / columns, 72 * 0.7 * size[1] / lines
    any_below = False
    for panel, (_, networks) in zip(panels, shown, strict=False):
        low, high = limits(networks if by_length else table)
        panel.set_ylim(low, high)
        below = networks[100 * networks.accuracy < low]
        any_below |= len(below) > 0
        for line in below.itertuples():
            triangle = {"marker": "v", "markersize": 7, "clip_on": False, "zorder": 6}
            panel.plot(line.seconds, low, color=looks[line.family]["color"], **triangle)
        _name_budgets(panel, networks, inside)
    order = sorted(handles, key=lambda label: label not in ("dense", "small dense"))
    figure.legend(
        [handles[label] for label in order],
        order,
        loc="outside lower center",
        ncols=min(len(order), 3 if together else 4),
        frameon=False,
        fontsize=9,
    )
    seeds = max(map(len, table.seeds))
    bars = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    below = "; ▼: below the lower edge" if any_below else ""
    figure.suptitle(
        f"{headline}\n{bars}; numbers: budget, % of the dense training FLOPs{below}", fontsize=10.5
    )
    figure.savefig(picture := io.BytesIO(), format="png")
    files.write(path, picture.getvalue())


def _by_length(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Title and networks of a panel for each length of training."""
    return [(passes(int(str(epochs))), networks) for epochs, networks in table.groupby("epochs")]


def _by_rule(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Title and networks of a panel for each rule, dense and small dense in all of them."""
    is_sparse = table.kind == "sparse"
    by_rule = sorted(
        table.network[is_sparse], key=lambda point: (RULES.index(str(point.rule)), point.exponent or 0.0)
    )
    rules = dict.fromkeys(point.rule_text for point in by_rule)
    # Dense is drawn last.
    return [
        (_title(rule), pd.concat([table[is_sparse & (table.rule == rule)], table[~is_sparse]]))
        for rule in rules
    ]


def _draw(
    panel: Axes,
    table: pd.DataFrame,
    looks: dict[str, dict[str, Any]],
    together: bool,
    handles: dict[str, Line2D],
) -> None:
    for family, members in table.groupby("family", sort=False):
        point = members.network.iloc[0]
        line = panel.errorbar(
            members.seconds,
            100 * members.accuracy,
            xerr=_errors(members.seconds_std),
            yerr=_errors(100 * members.accuracy_std),
            **looks[str(family)],
            **BARS,
        ).lines[0]
        assert line is not None
        handles.setdefault(str(family) if together or point.kind != "sparse" else _without_rule(point), line)
        if family == "dense":
            panel.axhline(100 * members.accuracy.iloc[0], color=DENSE, linewidth=0.6, alpha=0.5, zorder=1)


def _looks(points: list[Point], together: bool) -> dict[str, dict[str, Any]]:
    """How the line of each family is drawn.

    Args:
        points: all networks.
        together: whether all rules are in one panel, where they must be told apart too.
    """
    sparse = [point for point in points if point.kind == "sparse"]
    by_rule = together and len({point.method_text for point in sparse}) == 1

    def colour_of(point: Point) -> object:
        return point.rule_text if by_rule else point.method_text

    def shape_of(point: Point) -> object:
        return (point.rule_text if together and not by_rule else None, point.block_rows)

    colours = list(dict.fromkeys(map(colour_of, sparse)))
    shapes = list(dict.fromkeys(map(shape_of, sparse)))
    looks: dict[str, dict[str, Any]] = {
        "dense": {"color": DENSE, "marker": "*", "markersize": 13, "linestyle": "none", "zorder": 5},
        "small dense": {
            **{"color": SMALL, "marker": "x", "markersize": 6, "zorder": 4},
            **{"linestyle": "--", "linewidth": 2},
        },
    }
    for point in sparse:
        i = shapes.index(shape_of(point))
        looks[point.family] = {
            "color": METHOD_COLOURS[colours.index(colour_of(point)) % len(METHOD_COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": LINES[i % len(LINES)],
            "linewidth": 1.4,
            "markersize": 4,
            "markerfacecolor": None if i == 0 else "white",
            "zorder": 3,
        }
    return looks


def _without_rule(point: Point) -> str:
    rows = point.block_rows
    return f"{point.method_text}, {'single weights' if rows == 1 else f'{rows}x1 blocks'}"


def _title(rule: str) -> str:
    name, _, exponent = rule.partition("^")
    return TITLES.get(name, f"score / {'FLOPs' if name == 'cost' else 'seconds'}^{exponent}")


def _errors(deviations: pd.Series) -> pd.Series | None:
    """Lengths of error bars; none at all where there is one seed."""
    return None if deviations.isna().all() else deviations.fillna(0.0)


def _name_budgets(panel: Axes, table: pd.DataFrame, size: tuple[float, float]) -> None:
    """Write its budget beside each point of small dense, where no other point or number is.

    Args:
        panel: axes with their final limits.
        table: networks that it shows.
        size: width and height of the panel, about, in points (1 / 72 inch).
    """
    left, right = panel.get_xlim()
    bottom, top = panel.get_ylim()
    accuracy = 100 * table.accuracy
    x = size[0] * np.log(table.seconds / left) / math.log(right / left)
    y = size[1] * (accuracy - bottom) / (top - bottom)
    taken = list(zip(x, y, strict=True))
    for i in np.flatnonzero(table.kind == "small dense"):
        for dx, dy in BESIDE:
            # The middle of the number, which is about 8 points wide and 6 high.
            middle = x.iloc[i] + dx + 4, y.iloc[i] + dy + 3
            if all(abs(middle[0] - x_) > 8 or abs(middle[1] - y_) > 6 for x_, y_ in taken):
                taken.append(middle)
                panel.annotate(
                    f"{100 * table.flops.iloc[i]:.3g}",
                    (table.seconds.iloc[i], accuracy.iloc[i]),
                    textcoords="offset points",
                    xytext=(dx, dy),
                    fontsize=7.5,
                    color=SMALL,
                    zorder=6,
                    path_effects=[withStroke(linewidth=2, foreground="white")],
                )
                break


def limits(table: pd.DataFrame) -> tuple[float, float]:
    """Limits (in %) with room for error bars, but not for sparse networks 2.5 times as far down as most."""
    lowest = table.accuracy.max() - 2.5 * (table.accuracy.max() - table.accuracy.median())
    shown = table[(table.kind != "sparse") | (table.accuracy >= lowest)]
    deviation = shown.accuracy_std.fillna(0.0)
    low = np.maximum(shown.accuracy - deviation, np.minimum(shown.accuracy, lowest)).min()
    high = (shown.accuracy + deviation).max()
    margin = 0.06 * (high - low) + 0.0005
    return 100 * (low - margin), 100 * (min(high, 1.0) + margin)


def _time_axis(panel: Axes, table: pd.DataFrame) -> None:
    """A log axis with plain numbers, few enough not to touch each other."""
    deviation = table.seconds_std.fillna(0.0)
    low = max((table.seconds - deviation).min(), 0.2 * table.seconds.min())
    high = (table.seconds + deviation).max()
    panel.set_xscale("log")
    panel.set_xlim(low / 1.12, high * 1.12)
    # Leading digits that are labelled, by how many times longer the longest took.
    digits: dict[int, tuple[float, ...]] = {8: (1, 1.5, 2, 3, 5, 7), 20: (1, 2, 3, 5), 100: (1, 2, 5)}
    subs = next((subs for ratio, subs in digits.items() if high / low < ratio), (1,))
    panel.xaxis.set_major_locator(LogLocator(subs=subs))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
