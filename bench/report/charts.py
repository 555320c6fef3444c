"""The page's charts, in Vega-Lite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from sparseprune.experiments.page.charts import NARROW, POINT, colours, columns, hover, rows_chart, wide
from sparseprune.experiments.page.page import Chart

SPARSITIES = (0, 50, 70, 80, 90, 95, 98, 99)  # ticks, %
FOLDS = [round(100 / (100 - sparsity), 4) for sparsity in SPARSITIES]
SPARSITY_AXIS: dict[str, Any] = {
    "title": "sparsity (logarithmic in density)",
    "values": FOLDS,
    "labelExpr": "format(100 - 100 / datum.value, '.0f') + ' %'",
}
FACTOR = {"labelExpr": "format(datum.value, '~g') + '×'", "labelOverlap": True}
STEP = alt.Step(28)  # pixels of a row


def charts(points: Sequence[dict[str, Any]], peak: dict[str, Any] | None) -> list[Chart]:
    """All of them.

    Args:
        points: what `bench.report.points.points` returned.
        peak: figures of one core.
    """
    weights = sorted({point["weights"] for point in points}, key=lambda text: (len(text), text))
    sparsities = sorted({point["sparsity"] for point in points}, key=lambda text: float(text.split()[0]))
    found = [
        Chart(
            "How much faster",
            "Each point is a case: hover, or tap, for its row. Left of the line sparse is slower than the "
            "strongest dense contender of the same precision; a thin mark is what the kept operations allow.",
            _speedups(sparsities),
        ),
        Chart(
            "Speed-up against sparsity",
            "Lines join the cases that differ in sparsity alone. Dotted: the speed-up if time fell with the "
            "number of weights. V: weights are kept in blocks of V outputs by one input. batch-inner: "
            "activations have the batch innermost in memory.",
            _curves(weights),
        ),
        Chart(
            "Break-even sparsity of linear layers",
            "Sparse is faster to the right of the mark. Filled: between two measured sparsities. Open: "
            "faster at all of them, and continued in proportion to the weights, so that the true one lies "
            "further left. Triangle: slower at all of them.",
            _break_evens(weights),
            "break_evens",
        ),
    ]
    if peak is not None:
        found.append(
            Chart(
                "Roofline",
                "Operations count kept weights only: two for each weight and sample, times three in a "
                "training step. Bytes count what a call cannot do without, each once: values, one 4-byte "
                "index for each block, input and output, and in a step their gradients. Lines are what one "
                "core reached in a probe: multiply-adds in registers; one load from L1 for each, which "
                "limits V=1; and reading from L2 and from beyond it.",
                _roofline(weights, peak),
                needs="rate",
            )
        )
    return found


def _names() -> alt.Y:
    """A row for each workload but its sparsity, with its weights in a second line."""
    words = alt.Axis(
        labelExpr=f"{NARROW} ? split(datum.value, '|') : replace(datum.value, '|', ', ')",
        labelFontSize=11,
        labelLineHeight=12,
        labelLimit=300,
        title=None,
        grid=True,
        ticks=False,
        domain=False,
    )
    return alt.Y("row:N").sort(None).axis(words)


def _speedups(sparsities: list[str]) -> alt.LayerChart:
    axis = alt.X("speedup:Q").scale(type="log", base=2).axis(title="speed-up", orient="top", **FACTOR)
    rows = rows_chart()
    dense = rows_chart().mark_rule(style="ink", size=1.2).encode(x=alt.datum(1))
    allowed = (
        rows.transform_calculate(bound="datum.allowed || datum.speedup")
        .mark_tick(style="faint", thickness=1.2)
        .encode(
            x="bound:Q",
            y=_names(),
            opacity=alt.condition("isValid(datum.allowed)", alt.value(0.8), alt.value(0)),
        )
    )
    shown = rows.mark_circle(size=POINT, opacity=0.9).encode(
        x=axis, y=_names(), color=colours("sparsity", sparsities, "sparsity", narrow=3), tooltip=hover()
    )
    return wide(alt.layer(dense, allowed, shown), STEP)


def _curves(weights: list[str]) -> alt.LayerChart:
    x = alt.X("fold:Q").scale(type="log", nice=False, padding=12).axis(**SPARSITY_AXIS)
    y = alt.Y("speedup:Q").scale(type="log", base=2).axis(title="speed-up", **FACTOR)
    shown = rows_chart().encode(
        x=x,
        y=y,
        color=colours("weights", weights, "weights"),
        detail=["name:N", "series:N"],
        strokeDash=alt.StrokeDash("layout:N")
        .scale(domain=["batch-inner", "row-major"], range=[[1, 0], [5, 3]])
        .legend(title="layout", orient="top"),
    )
    ideal = rows_chart().mark_line(style="faint", strokeDash=[1, 3])
    dense = rows_chart().mark_rule(style="ink", size=1).encode(y=alt.datum(1))
    return wide(
        alt.layer(
            dense,
            ideal.encode(x="fold:Q", y="fold:Q"),
            shown.mark_line(strokeWidth=1.6),
            shown.mark_circle(size=POINT).encode(tooltip=hover(), strokeDash=alt.StrokeDashValue([1, 0])),
        ),
        360,
    )


def _break_evens(weights: list[str]) -> alt.LayerChart:
    rows = rows_chart()
    x = (
        alt.X("fold:Q")
        .scale(type="log", domain=[1, 60])
        .axis(**{**SPARSITY_AXIS, "title": "break-even sparsity"})
    )
    stems = rows.mark_rule(style="faint", opacity=0.35).encode(x=x, x2=alt.X2Datum(1), y=_names())
    marks = rows.mark_point(size=POINT, strokeWidth=1.8).encode(
        x=x,
        y=_names(),
        color=colours("weights", weights, "weights"),
        fill=alt.condition(
            "datum.how == 'measured'", colours("weights", weights, "weights"), alt.value("transparent")
        ),
        shape=alt.Shape("how:N")
        .scale(
            domain=["measured", "extrapolated", "not reached"], range=["circle", "diamond", "triangle-right"]
        )
        .legend(title="found", orient="top", columns=columns(3, 1)),
        tooltip=hover(),
    )
    return wide(alt.layer(stems, marks), STEP)


def _roofline(weights: list[str], peak: dict[str, Any]) -> alt.LayerChart:
    rows = rows_chart()
    x = alt.X("intensity:Q").scale(type="log", base=2, nice=False, padding=14)
    y = alt.Y("rate:Q").scale(type="log", base=2)
    marks = rows.mark_point(size=POINT, strokeWidth=1.8).encode(
        x=x.axis(title="operations on kept weights per byte", format="~g"),
        y=y.axis(title="GFLOP/s per thread, kept weights", format="~g"),
        color=colours("weights", weights, "weights"),
        shape=alt.Shape("layout:N")
        .scale(domain=["batch-inner", "row-major"], range=["circle", "square"])
        .legend(title="layout", orient="top"),
        tooltip=hover(),
    )
    fma, load = peak["fma_gflops"], peak["load_fma_gflops"]
    ceilings: list[alt.Chart] = []
    for level, words in ((fma, "multiply-adds"), (load, "a load from L1 for each")):
        at = _one({"level": level}).encode(y="level:Q")
        text = at.mark_text(style="words", align="right", dy=-6, text=f"{words}, {level:.0f} GFLOP/s")
        ceilings += [at.mark_rule(style="ink"), text.encode(x=alt.value("width"))]
    for bandwidth, words in ((peak["l2_gbs"], "L2"), (peak["beyond_gbs"], "beyond L2")):
        reached = f"min({fma}, datum.intensity * {bandwidth})"
        line = rows.transform_calculate(reached=reached)
        ceilings.append(line.mark_line(style="faint").encode(x="intensity:Q", y="reached:Q"))
        start = rows.transform_aggregate(intensity="min(intensity)").transform_calculate(reached=reached)
        text = start.mark_text(style="words", align="left", dy=-9, text=f"{words}, {bandwidth:.0f} GB/s")
        ceilings.append(text.encode(x="intensity:Q", y="reached:Q"))
    return wide(alt.layer(*ceilings, marks), 380)


def _one(row: dict[str, float]) -> alt.Chart:
    return alt.Chart(alt.InlineData([row]))
