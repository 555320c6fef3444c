"""How the plots look: colours, markers, and the axis of sparsities."""

from __future__ import annotations

import itertools

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

# Ticks, %.
SPARSITIES = (0, 50, 70, 80, 90, 95, 98, 99)

OTHER_COLOUR = "#666666"
FAINT = "#999999"


def panel_grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(count, 2)
    lines = -(-count // columns)
    figure = Figure(figsize=(6.2 * columns, height * lines + 0.9), layout="constrained")
    grid = list(itertools.chain.from_iterable(figure.subplots(lines, columns, squeeze=False)))
    for unused in grid[count:]:
        unused.set_visible(False)
    return figure, grid[:count]


def sparsity_axis(axes: Axes) -> None:
    """Places are 1/density on a logarithmic axis; labels are sparsities."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    shown = [s for s in SPARSITIES if low <= 100 / (100 - s) <= high]
    axes.xaxis.set_major_locator(FixedLocator([100 / (100 - s) for s in shown]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{100 - 100 / place:.0f} %"))
    axes.set_xlabel("sparsity (logarithmic in density)")
    tidy(axes)


def tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def legend(figure: Figure, handles: list[Line2D], columns: int) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
