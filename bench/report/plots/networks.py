"""The plot of whole convolutional networks."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from bench.report.plots.layers import times
from bench.report.plots.style import COLOURS, FAINT, OTHER_COLOUR, legend, panel_grid, sparsity_axis
from bench.rows import OK, Row, best_dense, speedup, speedup_over
from bench.workloads import NETWORK_STEP

# Nothing else here is in bfloat16.
SNIP_COLOUR = COLOURS[1, "bfloat16"]
MASKS = {"uniform": "uniform", "snip": "global SNIP"}


class _Line(NamedTuple):
    """What the points of a line have in common."""

    mask: str
    block: int

    @property
    def label(self) -> str:
        return f"{MASKS.get(self.mask, self.mask)}, V={self.block}"

    @property
    def colour(self) -> str:
        return SNIP_COLOUR if self.mask == "snip" else COLOURS.get((self.block, "float32"), OTHER_COLOUR)


def draw(rows: Sequence[Row], contender: str, threads: int) -> Figure | None:
    """Speed-up of whole training steps over the strongest dense against sparsity: a panel for each network.

    Dotted: what the kept operations allow, dense FLOPs over kept FLOPs.

    Args:
        rows: all rows, of any kind.
        contender: the one whose steps are shown.
        threads: number of threads.
    """
    # (1/density, speed-up, dense FLOPs / kept FLOPs)
    panels: dict[str, dict[_Line, list[tuple[float, float, float]]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    in_bfloat16: dict[str, list[float]] = collections.defaultdict(list)
    for row in rows:
        work, factor = row.workload, speedup(row)
        chosen = (row.contender, row.threads, row.status) == (contender, threads, OK)
        if chosen and work.kind == NETWORK_STEP and factor is not None:
            point = (1 / work.density, factor, row.dense_flops / row.kept_flops)
            panels[work.shape][_Line(work.mask, work.block)].append(point)
            if (over := speedup_over(row, best_dense("bfloat16"))) is not None:
                in_bfloat16[work.shape].append(factor / over)
    if not panels:
        return None
    figure, all_axes = panel_grid(len(panels), 4.4)
    used: dict[_Line, None] = {}
    for axes, (shape, lines) in zip(all_axes, sorted(panels.items()), strict=True):
        for line, found in lines.items():
            used[line] = None
            places, factors, bounds = zip(*sorted(found), strict=True)
            axes.plot(places, factors, color=line.colour, marker="o", linewidth=1.6)
            axes.plot(places, bounds, color=line.colour, linestyle=":", linewidth=1)
        if in_bfloat16[shape]:
            axes.axhline(statistics.median(in_bfloat16[shape]), color=FAINT, linewidth=1, linestyle="--")
        axes.axhline(1, color=FAINT, linewidth=1)
        axes.set_title(times(shape), fontsize=10)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.set_ylabel("speed-up of a training step")
        axes.set_xlim(9, 60)
        sparsity_axis(axes)
    handles = [Line2D([], [], color=line.colour, marker="o", label=line.label) for line in used]
    handles += [
        Line2D([], [], color="black", linestyle=":", label="allowed by the kept FLOPs"),
        Line2D([], [], color=FAINT, linestyle="--", label="dense bfloat16"),
        Line2D([], [], color=FAINT, label="strongest dense float32"),
    ]
    legend(figure, handles, 3)
    return figure
