"""The plot of layers' speed-ups against sparsity."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from bench.report.plots.layers import USUAL_BATCH, WORDS, times
from bench.report.plots.style import FAINT, Series, legend, panel_grid, sparsity_axis
from bench.rows import Row, speedup


def draw(rows: Sequence[Row]) -> Figure | None:
    """Speed-up over the strongest dense against sparsity, usual batch: a panel for each kind and shape.

    Args:
        rows: those that `layers` returned.
    """
    panels: dict[tuple[str, tuple[int, ...], str], dict[Series, dict[float, float]]] = (
        collections.defaultdict(lambda: collections.defaultdict(dict))
    )
    for row in rows:
        factor = speedup(row)
        assert factor is not None
        if row.workload.batch == USUAL_BATCH[row.workload.kind]:
            key = (row.workload.kind, row.workload.sizes, row.workload.shape)
            panels[key][Series.of(row.workload)][row.workload.density] = factor
    panels = {key: lines for key, lines in panels.items() if max(map(len, lines.values())) > 1}
    if not panels:
        return None
    figure, all_axes = panel_grid(len(panels), 4.4)
    used: dict[Series, None] = {}
    all_densities = [density for lines in panels.values() for line in lines.values() for density in line]
    ends = (1 / max(all_densities), 1 / min(all_densities))
    lowest = min(factor for lines in panels.values() for line in lines.values() for factor in line.values())
    for axes, (key, lines) in zip(all_axes, sorted(panels.items()), strict=False):
        _references(axes, ends)
        for series, line in sorted(lines.items()):
            places, factors = zip(
                *sorted((1 / density, factor) for density, factor in line.items()), strict=True
            )
            axes.plot(places, factors, **series.style)
            used[series] = None
        axes.set_title(f"{WORDS[key[0]]}, {times(key[2])}", fontsize=10)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_locator(FixedLocator([2.0**i for i in range(-4, 8)]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.set_ylim(min(0.7, lowest * 0.8), ends[1] * 1.3)
        axes.set_xlim(ends[0] / 1.12, ends[1] * 1.12)
        sparsity_axis(axes)
        axes.set_ylabel("speed-up")
    handles = [Line2D([], [], **series.style, label=series.label) for series in sorted(used)]
    legend(figure, handles, 3)
    return figure


def _references(axes: Axes, ends: tuple[float, float]) -> None:
    """The ideal and the dense, between two values of 1/density."""
    axes.plot(ends, ends, color="black", linewidth=1, linestyle=":")
    axes.annotate(
        "ideal: 1/density", (ends[1], ends[1]), (-6, 0), textcoords="offset points", ha="right", fontsize=8
    )
    axes.axhline(1, color=FAINT, linewidth=1)
    axes.annotate(
        "strongest dense", (ends[1], 1), (0, -4), textcoords="offset points", ha="right", va="top", fontsize=8
    )
