"""The plot of break-even sparsities."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.report.break_even import break_even
from bench.report.plots.layers import USUAL_BATCH, WORDS, times
from bench.report.plots.style import COLOURS, OTHER_COLOUR, Series, legend, sparsity_axis
from bench.rows import Row, speedup
from bench.workloads import BATCH_INNER, FORWARD, STEP


def draw(rows: Sequence[Row]) -> Figure | None:
    """Break-even sparsity of each shape.

    Args:
        rows: those that `layers` returned for linear layers.
    """
    if not rows:
        return None
    groups: dict[str, dict[tuple[str, Series], list[tuple[float, float]]]] = {STEP: {}, FORWARD: {}}
    for row in rows:
        factor = speedup(row)
        assert factor is not None
        usual = row.workload.batch == USUAL_BATCH[row.workload.kind]
        batch = "" if usual else f", batch {row.workload.batch}"
        key = (f"{times(row.workload.shape)}{batch}", Series.of(row.workload))
        groups[row.workload.kind].setdefault(key, []).append((row.workload.density, factor))
    groups = {kind: group for kind, group in groups.items() if group}
    tallest = max(map(len, groups.values()))
    figure = Figure(figsize=(6.6 * len(groups), 1.6 + 0.27 * tallest), layout="constrained")
    markers = {"measured": "o", "extrapolated": "D", "not reached": ">"}
    for axes, (kind, group) in zip(
        figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True
    ):
        found = sorted(
            ((break_even(points), name, series) for (name, series), points in group.items()),
            key=lambda item: -item[0].density,
        )
        for place, (point, _, series) in enumerate(found):
            colour = COLOURS.get((series.block, series.dtype), OTHER_COLOUR)
            axes.plot((1, 1 / point.density), (place, place), color="#dddddd", linewidth=1, zorder=1)
            axes.plot(
                1 / point.density,
                place,
                marker=markers[point.how],
                color=colour,
                markerfacecolor=colour if point.how == "measured" else "white",
                markersize=6,
            )
        axes.set_yticks(range(len(found)), [_short(name, series) for _, name, series in found], fontsize=8)
        # The smallest is on top.
        axes.set_ylim(tallest - 0.3, -0.7)
        axes.set_xlim(0.95, 60)
        axes.set_title(WORDS[kind], fontsize=10)
        sparsity_axis(axes)
        axes.set_xlabel("break-even sparsity: sparse is faster to the right of the mark")
        axes.grid(axis="y", visible=False)
    labels = {
        "measured": "between two measured sparsities",
        "extrapolated": "extrapolated, time in proportion to weights (an upper bound)",
        "not reached": "slower at all measured sparsities: lies further right",
    }
    handles = [
        Line2D(
            [],
            [],
            color="black",
            marker=markers[how],
            markerfacecolor="black" if how == "measured" else "white",
            linestyle="none",
            label=label,
        )
        for how, label in labels.items()
    ]
    legend(figure, handles, 3)
    return figure


def _short(name: str, series: Series) -> str:
    words = [name, *([f"V={series.block}"] if series.block > 1 else [])]
    words += ["bf16"] if series.dtype == "bfloat16" else []
    words += ["batch-inner"] if series.layout == BATCH_INNER else []
    words += ["SNIP"] if series.mask == "snip" else []
    return ", ".join(words)
