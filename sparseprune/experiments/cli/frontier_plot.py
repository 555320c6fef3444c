"""Test accuracy against measured training time of a frontier, as a PNG."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sparseprune.experiments.cli.plot import LINES, MARKERS, METHOD_COLOURS
from sparseprune.experiments.frontier.rules import RULES
from sparseprune.experiments.frontier.table import Row, Spread

FEW = 6  # sparse families that one panel holds
COLUMNS = 3  # panels side by side
BESIDE = ((5, -10), (-13, 4), (5, 4), (-13, -10), (-4, -14), (-4, 8))  # of a point, in points
BARS: dict[str, Any] = {"elinewidth": 0.8, "capsize": 1.5, "capthick": 0.8}
TITLES = {"uniform": "uniform density", "erk": "Erdős-Rényi-kernel densities", "global": "global ranking"}
DENSE, SMALL = "#000000", "#666666"


def save_frontier(rows: Sequence[Row], headline: str, path: Path) -> None:
    """Draw a line for each family, through its budgets, with one standard deviation both ways.

    Dense is a black star, its accuracy a thin line across; small dense is dashed and gray, with its budgets
    beside it. A method (a rule, where there is one method) has a colour, a block a marker and a line style.
    Few families share a panel; many have one for each rule, with dense and small dense in all of them.
    Networks far below most others, which have hardly learned, are triangles at the lower edge.

    Args:
        rows: see `sparseprune.experiments.frontier.table.rows`.
        headline: title of the figure.
        path: PNG to write.
    """
    sparse = [row for row in rows if row.point.kind == "sparse"]
    by_rule = sorted(sparse, key=lambda row: (RULES.index(str(row.point.rule)), row.point.exponent or 0.0))
    rules = list(dict.fromkeys(row.point.rule_text for row in by_rule))
    together = len({row.point.family for row in sparse}) <= FEW
    panel_rules = [rules] if together else [[rule] for rule in rules]
    columns = 2 if len(panel_rules) in (2, 4) else min(len(panel_rules), COLUMNS)
    lines = math.ceil(len(panel_rules) / columns)
    size = (7.4, 5.6) if together else (1.0 + 4.4 * columns, 1.4 + 3.3 * lines)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    handles: dict[str, Line2D] = {}
    for panel, shown in zip(panels, panel_rules, strict=False):
        _draw(panel, [row for row in sparse if row.point.rule_text in shown], sparse, together, handles)
        _draw(panel, [row for row in rows if row.point.kind != "sparse"], sparse, together, handles)
        panel.set_title("" if together else _title(shown[0]), fontsize=10)
        panel.grid(alpha=0.25, which="both", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(panel_rules) :]:
        panel.set_visible(False)
    _time_axis(panels[0], rows)
    for i, panel in enumerate(panels[: len(panel_rules)]):
        if i + columns >= len(panel_rules):
            panel.set_xlabel("seconds of pruning and training (log scale)")
            panel.tick_params(axis="x", labelbottom=True)
        if i % columns == 0:
            panel.set_ylabel("test accuracy (%)")
    low, high = _limits(rows)
    panels[0].set_ylim(low, high)
    for panel, shown in zip(panels, panel_rules, strict=False):
        for row in [row for row in sparse if row.point.rule_text in shown and 100 * row.accuracy.mean < low]:
            looks = {"marker": "v", "markersize": 7, "clip_on": False, "zorder": 6}
            panel.plot(row.seconds.mean, low, color=_style(row, sparse, together)["color"], **looks)
    inside = 72 * 0.85 * size[0] / columns, 72 * 0.7 * size[1] / lines  # the rest is text
    for panel, shown in zip(panels, panel_rules, strict=False):
        dense = [row for row in rows if row.point.kind != "sparse"]
        _name_budgets(panel, dense + [row for row in sparse if row.point.rule_text in shown], inside)
    order = sorted(handles, key=lambda label: label not in ("dense", "small dense"))
    figure.legend(
        [handles[label] for label in order],
        order,
        loc="outside lower center",
        ncols=min(len(order), 3 if together else 4),
        frameon=False,
        fontsize=9,
    )
    seeds = max(len(row.seeds) for row in rows)
    bars = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    below = "; ▼: below the lower edge" if any(100 * row.accuracy.mean < low for row in rows) else ""
    figure.suptitle(
        f"{headline}\n{bars}; numbers: budget, % of the dense training FLOPs{below}", fontsize=10.5
    )
    figure.savefig(path)


def _draw(
    panel: Axes, rows: Sequence[Row], sparse: Sequence[Row], together: bool, handles: dict[str, Line2D]
) -> None:
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row.point.family, []).append(row)
    for family, members in families.items():
        label = family if together or members[0].point.kind != "sparse" else _without_rule(members[0])
        style = _style(members[0], sparse, together)
        line = panel.errorbar(
            [row.seconds.mean for row in members],
            [100 * row.accuracy.mean for row in members],
            xerr=_errors([row.seconds for row in members], 1),
            yerr=_errors([row.accuracy for row in members], 100),
            **style,
            **BARS,
        ).lines[0]
        assert line is not None
        handles.setdefault(label, line)
        if family == "dense":
            panel.axhline(100 * members[0].accuracy.mean, color=DENSE, linewidth=0.6, alpha=0.5, zorder=1)


def _style(row: Row, sparse: Sequence[Row], together: bool) -> dict[str, Any]:
    point = row.point
    if point.kind == "dense":
        return {"color": DENSE, "marker": "*", "markersize": 13, "linestyle": "none", "zorder": 5}
    if point.kind == "small dense":
        line = {"linestyle": "--", "linewidth": 2}
        return {"color": SMALL, "marker": "x", "markersize": 6, "zorder": 4, **line}
    methods = len({r.point.method_text for r in sparse})

    def looks(row: Row) -> tuple[object, object]:
        """What decides the colour, and what the marker and the line."""
        point = row.point
        if together and methods == 1:
            return point.rule_text, point.block_rows
        # In one panel rules must be told apart too; with panels of their own only blocks.
        return point.method_text, (point.rule_text if together else None, point.block_rows)

    colours, shapes = (list(dict.fromkeys(looks(r)[part] for r in sparse)) for part in (0, 1))
    colour, shape = looks(row)
    i = shapes.index(shape)
    return {
        "color": METHOD_COLOURS[colours.index(colour) % len(METHOD_COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": LINES[i % len(LINES)],
        "linewidth": 1.4,
        "markersize": 4,
        "markerfacecolor": None if i == 0 else "white",
        "zorder": 3,
    }


def _without_rule(row: Row) -> str:
    rows = row.point.block_rows
    return f"{row.point.method_text}, {'single weights' if rows == 1 else f'{rows}x1 blocks'}"


def _title(rule: str) -> str:
    name, _, exponent = rule.partition("^")
    return TITLES.get(name, f"score / {'FLOPs' if name == 'cost' else 'seconds'}^{exponent}")


def _errors(spreads: Sequence[Spread], factor: float) -> list[float] | None:
    """Lengths of error bars; none at all where there is one seed."""
    if all(spread.std is None for spread in spreads):
        return None
    return [factor * (spread.std or 0.0) for spread in spreads]


def _name_budgets(panel: Axes, rows: Sequence[Row], size: tuple[float, float]) -> None:
    """Write its budget beside each point of small dense, where no other point or number is.

    Args:
        panel: with its final limits.
        rows: those that it shows.
        size: of the panel, about, in points (1 / 72 inch).
    """
    left, right = panel.get_xlim()
    bottom, top = panel.get_ylim()

    def place(row: Row) -> tuple[float, float]:
        x = math.log(row.seconds.mean / left) / math.log(right / left)
        return size[0] * x, size[1] * (100 * row.accuracy.mean - bottom) / (top - bottom)

    taken = [place(row) for row in rows]
    for row in rows:
        if row.point.kind != "small dense":
            continue
        x, y = place(row)
        for dx, dy in BESIDE:
            # The middle of the number, which is about 8 points wide and 6 high.
            at = x + dx + 4, y + dy + 3
            if all(abs(at[0] - x_) > 8 or abs(at[1] - y_) > 6 for x_, y_ in taken):
                taken.append(at)
                panel.annotate(
                    f"{100 * row.point.budget:.3g}",
                    (row.seconds.mean, 100 * row.accuracy.mean),
                    textcoords="offset points",
                    xytext=(dx, dy),
                    fontsize=7.5,
                    color=SMALL,
                    zorder=6,
                    path_effects=[withStroke(linewidth=2, foreground="white")],
                )
                break


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Limits (in %) with room for error bars, but not for sparse networks 2.5 times as far down as most."""
    top = max(row.accuracy.mean for row in rows)
    lowest = top - 2.5 * (top - statistics.median(row.accuracy.mean for row in rows))
    shown = [row.accuracy for row in rows if row.point.kind != "sparse" or row.accuracy.mean >= lowest]
    low = min(max(of.mean - (of.std or 0.0), min(of.mean, lowest)) for of in shown)
    high = max(of.mean + (of.std or 0.0) for of in shown)
    margin = 0.06 * (high - low) + 0.0005
    return 100 * (low - margin), 100 * (min(high, 1.0) + margin)


def _time_axis(panel: Axes, rows: Sequence[Row]) -> None:
    """A log axis with plain numbers, few enough not to touch each other."""
    low = min(row.seconds.mean - (row.seconds.std or 0.0) for row in rows)
    low = max(low, 0.2 * min(row.seconds.mean for row in rows))
    high = max(row.seconds.mean + (row.seconds.std or 0.0) for row in rows)
    panel.set_xscale("log")
    panel.set_xlim(low / 1.12, high * 1.12)
    # Leading digits that are labelled, by how many times longer the longest took.
    digits: dict[int, tuple[float, ...]] = {8: (1, 1.5, 2, 3, 5, 7), 20: (1, 2, 3, 5), 100: (1, 2, 5)}
    subs = next((subs for ratio, subs in digits.items() if high / low < ratio), (1,))
    panel.xaxis.set_major_locator(LogLocator(subs=subs))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
