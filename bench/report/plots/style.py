"""How the plots look: colours, markers, and the axis of sparsities."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.workloads import BATCH_INNER, Workload

# Ticks, %.
SPARSITIES = (0, 50, 70, 80, 90, 95, 98, 99)

# Okabe and Ito's colours, which people with colour blindness can tell apart, and two darker ones.
COLOURS = {
    (1, "float32"): "#0072B2",
    (2, "float32"): "#56B4E9",
    (4, "float32"): "#D55E00",
    (8, "float32"): "#E69F00",
    (16, "float32"): "#CC79A7",
    (1, "bfloat16"): "#009E73",
    (4, "bfloat16"): "#5B3A8E",
}
OTHER_COLOUR = "#666666"
FAINT = "#999999"


class Series(NamedTuple):
    """What a line of a plot has in common."""

    block: int
    dtype: str
    layout: str
    mask: str

    @classmethod
    def of(cls, workload: Workload) -> Series:
        return cls(workload.block, workload.dtype, workload.layout, workload.mask)

    @property
    def label(self) -> str:
        snip = ", SNIP mask" if self.mask == "snip" else ""
        return f"V={self.block}, {self.dtype}, {self.layout}{snip}"

    @property
    def style(self) -> dict[str, Any]:
        colour = COLOURS.get((self.block, self.dtype), OTHER_COLOUR)
        inner = self.layout == BATCH_INNER
        marker = "x" if self.mask == "snip" else ("o" if inner else "s")
        face = colour if inner or marker == "x" else "white"
        return {
            "color": colour,
            "linestyle": "-" if inner else "--",
            "marker": marker,
            "markerfacecolor": face,
            "markersize": 6,
            "linewidth": 1.6,
        }


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
