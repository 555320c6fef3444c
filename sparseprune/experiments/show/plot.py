"""Densities of layers, and where a first layer looks, as a PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from torch import Tensor

from sparseprune.experiments.compare.plot import MARKERS, METHOD_COLOURS
from sparseprune.experiments.show.layers import Layer
from sparseprune.format import files

WIDTH, DOTS = 9.0, 200  # inches, dots per inch: 1800 pixels, sharp where 900 are shown
MOST_NAMES = 40  # of layers below the axis
COLUMNS = 4  # of images


def save_picture(
    sets: Sequence[tuple[str, Sequence[Layer]]], images: Sequence[Tensor], headline: str, path: Path
) -> None:
    """Draw the density of each layer, a line for each set of masks, and what is alive of it.

    Args:
        sets: label and layers of each; all of one network.
        images: kept weights per pixel of each, or none at all.
        headline: title of the figure.
        path: PNG to write, 1800 pixels wide.
    """
    rows = -(-len(images) // COLUMNS)
    heights = [4.4] + [2.3] * rows
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.6), dpi=DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(headline, fontsize=12)
    top, *below = figure.subfigures(
        1 + bool(rows), 1, height_ratios=[heights[0], sum(heights[1:])][: 1 + bool(rows)], squeeze=False
    )[:, 0]
    _draw_densities(top.subplots(), sets)
    _add_legend(top, sets)
    for part in below:
        _draw_images(part, [label for label, _ in sets], images, rows)
    figure.savefig(picture := io.BytesIO(), format="png")
    files.write(path, picture.getvalue())


def _draw_densities(axes: Axes, sets: Sequence[tuple[str, Sequence[Layer]]]) -> None:
    names = [layer.name for layer in sets[0][1]]
    numbers = [d for _, layers in sets for layer in layers for d in (layer.density, layer.alive_density)]
    lowest = min(filter(None, numbers), default=0.1)
    # The lowest line that has a number: what is below means none, if there are layers of none.
    numbered = lowest if 0 in numbers else 0.0
    floor = lowest / 2  # where layers without a weight are marked: a logarithm has no zero
    axes.set_yscale("log")
    axes.set_ylim(floor / 1.4, 1.5)
    for i, (_, layers) in enumerate(sets):
        # Side by side, where several methods keep as many.
        places = [j + 0.4 * ((i + 0.5) / len(sets) - 0.5) for j in range(len(layers))]
        _draw_set(axes, places, layers, *_style(i), floor)
    every = -(-len(names) // MOST_NAMES)
    axes.set_xticks(range(0, len(names), every), names[::every], fontsize=9)
    if max(map(len, names), default=0) * len(names[::every]) > 90:
        axes.tick_params(axis="x", labelrotation=50)
        for label in axes.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.yaxis.set_major_locator(LogLocator(10))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{100 * d:.4g} %" if d >= numbered else ""))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("layer", fontsize=10)
    axes.set_ylabel("density: weights kept", fontsize=10)
    axes.tick_params(axis="y", labelsize=9)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_set(
    axes: Axes, places: Sequence[float], layers: Sequence[Layer], colour: str, marker: str, floor: float
) -> None:
    """A marker for what each layer keeps, from which a stem leads down to what is alive, or to a cross."""
    kept = [layer.density or math.nan for layer in layers]
    axes.plot(places, kept, color=colour, marker=marker, markersize=6, linewidth=1.3)
    thick: dict[str, Any] = {"linestyle": "none", "color": colour, "markeredgewidth": 1.8, "zorder": 3}
    known = [(x, layer) for x, layer in zip(places, layers, strict=True) if layer.alive is not None]
    alive = [layer.alive_density or math.nan for _, layer in known]
    axes.plot([x for x, _ in known], alive, marker="_", markersize=9, **thick)
    stems = [(x, layer.density, layer.alive_density or floor) for x, layer in known if layer.kept]
    axes.vlines(
        [x for x, _, _ in stems], [y for *_, y in stems], [y for _, y, _ in stems], colour, linewidth=1
    )
    none = [x for x, layer in zip(places, layers, strict=True) if layer.kept == 0 or layer.alive == 0]
    axes.plot(none, [floor] * len(none), marker="x", markersize=7, **thick)


def _style(i: int) -> tuple[str, str]:
    return METHOD_COLOURS[i % len(METHOD_COLOURS)], MARKERS[i % len(MARKERS)]


def _add_legend(figure: Any, sets: Sequence[tuple[str, Sequence[Layer]]]) -> None:
    handles = []
    for i, (label, _) in enumerate(sets):
        colour, marker = _style(i)
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=6, linewidth=1.3, label=label))
    gray: dict[str, Any] = {"color": "#666666", "linestyle": "none", "markeredgewidth": 1.8}
    layers = [layer for _, of in sets for layer in of]
    if any(layer.alive for layer in layers):
        handles.append(Line2D([], [], marker="_", markersize=9, label="alive: on a path", **gray))
    if any(layer.kept == 0 or layer.alive == 0 for layer in layers):
        handles.append(Line2D([], [], marker="x", markersize=7, label="none kept or alive", **gray))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9.5)


def _draw_images(figure: Any, labels: Sequence[str], images: Sequence[Tensor], rows: int) -> None:
    columns = min(len(images), COLUMNS)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    most = max(int(image.max()) for image in images)
    for panel in panels:
        panel.set_axis_off()
    shown = None
    for panel, label, image in zip(panels, labels, images, strict=False):
        shown = panel.imshow(
            image.numpy(), cmap="viridis", vmin=0, vmax=max(most, 1), interpolation="nearest"
        )
        panel.set_title(label, fontsize=9.5)
    bar = figure.colorbar(shown, ax=panels, shrink=0.85, pad=0.02)
    for panel in panels:
        # Not next to the bar, where there is but one.
        panel.set_anchor("C")
    bar.set_label("kept weights\nper pixel, first layer", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    bar.outline.set_visible(False)
