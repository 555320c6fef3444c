"""The roofline: rates on kept weights against operations per byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from bench.report.plots.layers import times
from bench.report.plots.style import COLOURS, FAINT, OTHER_COLOUR, legend, tidy
from bench.rows import Row
from bench.workloads import BATCH_INNER, CONV_BATCH, STEPS

GIGA = 1e9


def draw(rows: Sequence[Row], peak: dict[str, Any] | None) -> Figure | None:
    """Rate on kept weights against operations per byte, with what a core can do at best.

    Args:
        rows: those that `layers` returned for one number of threads.
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
                times(row.workload.shape),
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
