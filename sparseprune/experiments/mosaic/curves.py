"""Test accuracy against wall-clock time of the demo's networks, as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sparseprune.experiments.compare.plot import METHOD_COLOURS
from sparseprune.experiments.mosaic.theme import FIGURE_SPACE, THEMES, WIDTH, Theme, blank, save

# Inches.
HEIGHT, TOP, BOTTOM, LEFT, RIGHT = 4.7, 0.75, 0.55, 0.6, 2.25
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # seconds
GAP = 0.048  # between two labels, of the axis


def save_curves(
    runs: Sequence[Mapping[str, Any]], headline: str, note: str, path: Path, theme: Theme = THEMES[0]
) -> None:
    """Draw a curve for each run, which starts when its pruning ends and carries its label at its end.

    Args:
        runs: as results.json has them, dense first.
        headline, note: first and second line of the figure.
        path: PNG to write, 1660 pixels wide.
        theme: colours.
    """
    figure = blank(HEIGHT, theme, headline, note)
    axes = figure.add_axes(
        (LEFT / WIDTH, BOTTOM / HEIGHT, 1 - (LEFT + RIGHT) / WIDTH, 1 - (TOP + BOTTOM) / HEIGHT)
    )
    axes.set_facecolor(theme.page)
    methods = [run["method"] for run in runs if run["kind"] == "sparse"]
    ends = []
    for run in runs:
        seconds = [run["prune_seconds"] + point["seconds"] for point in run["result"]["curve"]]
        accuracy = [100 * point["accuracy"] for point in run["result"]["curve"]]
        style = _style(run, methods, theme)
        axes.plot(seconds, accuracy, solid_capstyle="round", **style)
        axes.plot(
            seconds[-1:], accuracy[-1:], "o", color=style["color"], markersize=4.5, zorder=style["zorder"]
        )
        ends.append((seconds[-1], accuracy[-1], run["label"], style["color"]))
    _finish(axes, theme)
    _label(axes, ends)
    save(figure, path)


def _style(run: Mapping[str, Any], methods: Sequence[str], theme: Theme) -> dict[str, Any]:
    """Dense is as dark as words, its small rivals are gray, controls are dashed; a method has a colour."""
    match run["kind"]:
        case "dense":
            return {"color": theme.text, "linewidth": 2.2, "zorder": 3}
        case "small dense":
            return {"color": theme.faint, "linewidth": 1.6, "zorder": 2}
        case "screened":
            return {"color": theme.accent, "linewidth": 1.8, "linestyle": (0, (4, 1.5)), "zorder": 3}
        case "conv":
            return {"color": theme.faint, "linewidth": 1.6, "linestyle": (0, (4, 1.5)), "zorder": 2}
    colour = METHOD_COLOURS[::-1][methods.index(run["method"]) % len(METHOD_COLOURS)]
    return {"color": colour, "linewidth": 2.0, "zorder": 4}


def _finish(axes: Axes, theme: Theme) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(low, high)
    axes.set_xlabel("wall-clock seconds, pruning included (logarithmic)", color=theme.text, fontsize=8.5)
    axes.set_ylabel("test accuracy (%)", color=theme.text, fontsize=8.5)
    axes.tick_params(colors=theme.text, labelsize=8, length=3, color=theme.line)
    axes.grid(color=theme.line, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.line)


def _label(axes: Axes, ends: Sequence[tuple[float, float, str, Any]]) -> None:
    """A label right of the axes for each curve, as high as its end where there is room, and a line to it."""
    low, high = axes.get_ylim()
    ordered = sorted(ends, key=lambda end: end[1])
    places = spread([(accuracy - low) / (high - low) for _, accuracy, *_ in ordered], GAP)
    # Not below the axis.
    places = [max(place, i * GAP) for i, place in enumerate(places)]
    for (seconds, accuracy, label, colour), place in zip(ordered, places, strict=True):
        axes.annotate(
            f"{accuracy:.1f}".rjust(5, FIGURE_SPACE) + f" %  {label}",
            (seconds, accuracy),
            (1.035, place),
            textcoords="axes fraction",
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.5,
                "alpha": 0.45,
                "shrinkA": 3,
                "relpos": (0, 0.5),
            },
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move rising places apart, by as little as their neighbours allow, so that each is a gap from the next.

    Args:
        places: rising numbers.
        gap: least distance of neighbours.
    Returns:
        the places, rising; a cluster stays centred on the mean of its own.
    """
    # Clusters of neighbours: the sum of where each would start, and how many there are.
    clusters: list[tuple[float, int]] = []
    for i, place in enumerate(places):
        clusters.append((place - i * gap, 1))
        while len(clusters) > 1 and clusters[-2][0] / clusters[-2][1] > clusters[-1][0] / clusters[-1][1]:
            total, count = clusters.pop()
            clusters[-1] = (clusters[-1][0] + total, clusters[-1][1] + count)
    starts = [total / count for total, count in clusters for _ in range(count)]
    return [start + i * gap for i, start in enumerate(starts)]
