"""The plots of the results page."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from bench.breakeven import break_even
from bench.rows import OK, Row, speedup
from bench.style import COLOURS, FAINT, OTHER_COLOUR, Series, legend, panel_grid, sparsity_axis, tidy
from bench.workloads import BATCH_INNER, CONV_BATCH, CONV_FORWARD, CONV_STEP, FORWARD, STEP, STEPS

GIGA = 1e9
LINEAR = (FORWARD, STEP)
WORDS = {
    FORWARD: "forward",
    STEP: "training step",
    CONV_FORWARD: "convolution, forward",
    CONV_STEP: "convolution, training step",
}
USUAL_BATCH = {FORWARD: 256, STEP: 256, CONV_FORWARD: CONV_BATCH, CONV_STEP: CONV_BATCH}


def layers(rows: Iterable[Row], contender: str, threads: int, kinds: Sequence[str] = LINEAR) -> list[Row]:
    """A contender's timed rows of layers of these kinds that have something to be compared with."""
    return [
        row
        for row in rows
        if row.contender == contender
        and row.threads == threads
        and row.status == OK
        and row.workload.kind in kinds
        and speedup(row) is not None
    ]


def speedups(rows: Sequence[Row]) -> Figure | None:
    """Speed-up over the strongest dense against sparsity, usual batch: a panel for each kind and shape.

    Args:
        rows: from `layers`.
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
        axes.set_title(f"{WORDS[key[0]]}, {_times(key[2])}", fontsize=10)
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
        "ideal: 1/density",
        (ends[1], ends[1]),
        (-6, 0),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    axes.axhline(1, color=FAINT, linewidth=1)
    axes.annotate(
        "strongest dense",
        (ends[1], 1),
        (0, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
    )


def roofline(rows: Sequence[Row], peak: dict[str, Any] | None) -> Figure | None:
    """Rate on kept weights against operations per byte, with what a core can do at best.

    Args:
        rows: from `layers`, of one thread count.
        peak: figures of one core.
    """
    if not rows or peak is None:
        return None
    figure = Figure(figsize=(9.5, 6.4), layout="constrained")
    axes = figure.subplots()
    used: dict[tuple[int, str], None] = {}
    lowest, highest, slowest = 1e9, 0.0, 1e9
    for row in rows:
        assert row.seconds is not None
        intensity = row.kept_flops / row.kept_bytes
        rate = row.kept_flops / row.seconds / row.threads / GIGA
        lowest, highest, slowest = min(lowest, intensity), max(highest, intensity), min(slowest, rate)
        key = (row.workload.block, row.workload.dtype)
        used[key] = None
        colour = COLOURS.get(key, OTHER_COLOUR)
        inner = row.workload.layout == BATCH_INNER
        axes.plot(
            intensity,
            rate,
            marker="^" if row.workload.kind in STEPS else "o",
            color=colour,
            markerfacecolor=colour if inner else "white",
            markersize=3.5 if row.workload.batch < CONV_BATCH else 6.5,
            linestyle="none",
        )
        if min(row.workload.sizes[:2]) < 64:
            axes.annotate(
                _times(row.workload.shape),
                (intensity, rate),
                (0, 6 if row.workload.dtype == "float32" else -14),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
            )
    left, right = lowest / 1.8, highest * 2.2
    _ceilings(axes, peak, left, right)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlim(left, right)
    axes.set_ylim(min(slowest, left * peak["beyond_gbs"]) / 1.5, peak["fma_gflops"] * 1.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("operations on kept weights per byte that has to be moved (FLOP/byte)")
    axes.set_ylabel("GFLOP/s per thread, kept weights")
    tidy(axes)
    handles = [
        Line2D(
            [],
            [],
            color=COLOURS.get(key, OTHER_COLOUR),
            marker="D",
            linestyle="none",
            label=f"V={key[0]}, {key[1]}",
        )
        for key in sorted(used)
    ]
    handles += [
        Line2D([], [], color="black", marker=marker, markerfacecolor=face, linestyle="none", label=label)
        for marker, face, label in (
            ("o", "black", "forward, batch-inner"),
            ("o", "white", "forward, row-major or NCHW"),
            ("^", "black", "step, batch-inner"),
            ("^", "white", "step, row-major or NCHW"),
        )
    ]
    handles += [Line2D([], [], color="black", marker=".", linestyle="none", label="small: few samples")]
    legend(figure, handles, 4)
    return figure


def _ceilings(axes: Axes, peak: dict[str, Any], left: float, right: float) -> None:
    """What a core can do at best, between two intensities."""
    for label, level in (
        (f"FMA peak, {peak['fma_gflops']:.0f} GFLOP/s", peak["fma_gflops"]),
        (f"one load from L1 for each FMA, {peak['load_fma_gflops']:.0f} GFLOP/s", peak["load_fma_gflops"]),
    ):
        axes.plot((left, right), (level, level), color="black", linewidth=1.2)
        axes.annotate(label, (right, level), (-4, 3), textcoords="offset points", ha="right", fontsize=8)
    for label, bandwidth in (("L2", peak["l2_gbs"]), ("beyond L2", peak["beyond_gbs"])):
        ridge = peak["fma_gflops"] / bandwidth
        axes.plot((left, ridge), (left * bandwidth, peak["fma_gflops"]), color=FAINT, linewidth=1.2)
        axes.annotate(
            f"{label}, {bandwidth:.0f} GB/s",
            (0.6 * peak["load_fma_gflops"] / bandwidth, 0.6 * peak["load_fma_gflops"]),
            (-6, 0),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )


def break_evens(rows: Sequence[Row]) -> Figure | None:
    """Break-even sparsity of each shape.

    Args:
        rows: from `layers`, linear.
    """
    if not rows:
        return None
    groups: dict[str, dict[tuple[str, Series], list[tuple[float, float]]]] = {STEP: {}, FORWARD: {}}
    for row in rows:
        factor = speedup(row)
        assert factor is not None
        usual = row.workload.batch == USUAL_BATCH[row.workload.kind]
        batch = "" if usual else f", batch {row.workload.batch}"
        key = (f"{_times(row.workload.shape)}{batch}", Series.of(row.workload))
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
        axes.set_ylim(tallest - 0.3, -0.7)  # the smallest on top
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


def _times(shape: str) -> str:
    return shape.replace("x", "×")
