"""Where the first layer looks: kept weights per pixel of each network, beside a sample of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from torch import Tensor

from sparseprune.experiments.data.mosaic import SIDE, TILE
from sparseprune.experiments.mosaic.theme import THEMES, WIDTH, Theme, blank, save

COLUMNS = 4
# Inches. Two dots for each of a mosaic's 200 pixels: what is drawn is not resampled.
PANEL, TOP, TITLE, CAPTION, BOTTOM = 2.0, 0.78, 0.27, 0.36, 0.62
FRAME = "#ff5a4f"
NOTHING = "#0a0a12"  # pixels of which no weight is kept: darker than all colours


@dataclass(frozen=True)
class Panel:
    """A square of the picture.

    Attributes:
        title, caption: the lines above and below it.
        pixels: kept first-layer weights per pixel, (height, width).
    """

    title: str
    caption: str
    pixels: Tensor


def save_picture(
    sample: Tensor,
    panels: Sequence[Panel],
    boxes: Sequence[tuple[int, int]],
    headline: str,
    note: str,
    aside: str,
    path: Path,
    theme: Theme = THEMES[0],
) -> None:
    """Draw a sample and, beside it, how many first-layer weights of each network look at each pixel.

    All panels share one logarithmic colour scale, from one weight to the most of any panel.

    Args:
        sample: gray values of one mosaic, (200, 200).
        panels: the networks, in reading order.
        boxes: top and left pixel of the tiles that are framed.
        headline, note: first and second line of the figure.
        aside: what stands in the place of a last panel, where one is free.
        path: PNG to write, 1660 pixels wide.
        theme: colours.
    """
    rows = -(-(1 + len(panels)) // COLUMNS)
    height = TOP + rows * (TITLE + PANEL + CAPTION) + BOTTOM
    figure = blank(height, theme, headline, note)
    gap = (WIDTH - COLUMNS * PANEL) / (COLUMNS + 1)

    def place(i: int) -> Axes:
        row, column = divmod(i, COLUMNS)
        left = gap + column * (PANEL + gap)
        below = BOTTOM + (rows - 1 - row) * (TITLE + PANEL + CAPTION) + CAPTION
        return figure.add_axes((left / WIDTH, below / height, PANEL / WIDTH, PANEL / height))

    axes = place(0)
    axes.imshow(sample.numpy(), cmap="gray", interpolation="nearest")
    _finish(axes, "a training sample", "the label is that of the frame", theme)
    _frame(axes, boxes, color=FRAME, linewidth=1.8)
    most = max((int(panel.pixels.max()) for panel in panels), default=1)
    scale, colours = LogNorm(1, max(most, 2)), _colours()
    for i, panel in enumerate(panels, 1):
        axes = place(i)
        axes.imshow(panel.pixels.numpy(), cmap=colours, norm=scale, interpolation="nearest")
        _finish(axes, panel.title, panel.caption, theme)
        _frame(axes, boxes, color="#ffffff", linewidth=0.5, alpha=0.55)
    if (1 + len(panels)) % COLUMNS:
        axes = place(1 + len(panels))
        axes.set_axis_off()
        axes.text(0.04, 1, aside, color=theme.text, fontsize=8, va="top", linespacing=1.6)
    _add_scale(figure, ScalarMappable(scale, colours), height, theme)
    save(figure, path)


def _colours() -> Colormap:
    # Without the darkest: a single weight must differ from none.
    shown = colormaps["inferno"](np.linspace(0.12, 1, 256))
    return ListedColormap(shown).with_extremes(bad=NOTHING)


def _finish(axes: Axes, title: str, caption: str, theme: Theme) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=theme.line, linewidth=0.5)
    axes.set_title(title, color=theme.text, fontsize=9.2, weight="bold", loc="left", pad=3)
    axes.text(0, SIDE + 5, caption, color=theme.text, fontsize=8, va="top", linespacing=1.35)


def _frame(axes: Axes, boxes: Sequence[tuple[int, int]], **style: Any) -> None:
    for top, left in boxes:
        # Just outside of the tile, whose pixels all stay visible.
        axes.add_patch(Rectangle((left - 1.5, top - 1.5), TILE + 2, TILE + 2, fill=False, **style))


def _add_scale(figure: Figure, shown: ScalarMappable, height: float, theme: Theme) -> None:
    width, right, middle = 2.6, 0.15, 0.33
    place = (1 - (width + right) / WIDTH, (middle - 0.05) / height, width / WIDTH, 0.1 / height)
    bar = figure.colorbar(shown, cax=figure.add_axes(place), orientation="horizontal")
    bar.outline.set_visible(False)
    bar.ax.xaxis.set_major_locator(FixedLocator([1, 10, 100, 1000]))
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    bar.ax.tick_params(labelsize=8, colors=theme.text, length=2, pad=2)
    figure.text(
        1 - (width + right + 0.12) / WIDTH,
        middle / height,
        "first-layer weights kept per pixel, one scale for all panels (darkest: none)",
        color=theme.text,
        fontsize=8,
        ha="right",
        va="center",
    )
