"""A frontier as an interactive page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from sparseprune.experiments.frontier.plot import limits
from sparseprune.experiments.frontier.report import COLUMNS, LEGEND, edges, facts, headline, rewired, texts
from sparseprune.experiments.frontier.results import Record, passes
from sparseprune.experiments.frontier.statistics import statistics
from sparseprune.experiments.page import page
from sparseprune.experiments.page.charts import POINT, colours, hover, rows_chart, wide

FILTERS = {"epochs": "length", "rule": "rule", "block": "block"}  # fields, and what they are called


def html(records: Sequence[Record]) -> str:
    """The page: what came of it, accuracy against seconds, the table."""
    table = statistics(records)
    rows = [_row(line) for line in table.itertuples()]
    filters = []
    for field, label in FILTERS.items():
        values = list(dict.fromkeys(row[field] for row in rows if field in row))
        if len(values) > 1:
            # Accuracies of different lengths hide each other's differences.
            chosen = values[-1] if field == "epochs" else None
            filters.append(page.Filter(field, label, {value: value for value in values}, chosen))
    chart = page.Chart(
        "Test accuracy against time",
        "Seconds of pruning and training, means over seeds with one standard deviation both ways. Lines join "
        "the budgets of a family; what is at the lower edge is below it. Hover over a point, or tap "
        "it, for its figures.",
        _points(rows, limits(table)),
    )
    cells = texts(table)
    words = sum(heading in ("epochs", "network", "rule") for heading in cells.columns)
    return page.html(
        headline(records),
        _cards(table),
        filters,
        [chart],
        {"rows": rows},
        facts=[facts(records[0]), *edges(table), *rewired(records)],
        tables=[
            {
                "title": "All networks",
                "headings": list(cells.columns),
                "rows": cells.values.tolist(),
                "texts": words,
            }
        ],
        legend=LEGEND.replace(
            "**Bold**: no other network is as accurate in as little time (by the means). ", ""
        ),
    )


def _row(line: Any) -> dict[str, Any]:
    point = line.network
    row = {
        "epochs": passes(line.epochs),
        "family": line.family,
        "method": point.method_text,
        "kind": line.kind,
        "flops": line.flops,
        "seconds": line.seconds,
        "accuracy": 100 * line.accuracy,
        "hover": {
            "title": point.name,
            **{heading: text for heading, cell in COLUMNS.items() if (text := cell(line))},
        },
    }
    if line.kind == "sparse":
        row |= {"rule": line.rule, "block": f"{point.block_rows}x1"}
    for name, scale in (("seconds", 1), ("accuracy", 100)):
        deviation = getattr(line, f"{name}_std")
        if not math.isnan(deviation):
            row[f"{name}_low"], row[f"{name}_high"] = (
                row[name] - scale * deviation,
                row[name] + scale * deviation,
            )
    return row


def _points(rows: Sequence[dict[str, Any]], ends: tuple[float, float]) -> alt.LayerChart:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    x = (
        alt.X("seconds:Q")
        .scale(type="log", nice=False, padding=20)
        .axis(title="seconds of pruning and training (log scale)", format="~g", labelOverlap=True)
    )
    y = alt.Y("accuracy:Q").scale(domain=list(ends), nice=False, clamp=True).axis(title="test accuracy (%)")
    lines = rows_chart().encode(x=x, y=y, color=colours("method", methods, "network"))
    # Only where there are several seeds.
    bars = lines.transform_filter("isValid(datum.accuracy_low)").mark_rule(opacity=0.5)
    return wide(
        alt.layer(
            lines.mark_line(strokeWidth=1.3).encode(detail=["family:N", "epochs:N"], order="flops:Q"),
            bars.encode(y=alt.Y("accuracy_low:Q").title("test accuracy (%)"), y2="accuracy_high:Q"),
            bars.encode(x=alt.X("seconds_low:Q"), x2="seconds_high:Q"),
            lines.mark_point(filled=True, size=POINT, opacity=0.9).encode(
                shape=alt.Shape("kind:N")
                .scale(domain=["dense", "small dense", "sparse"], range=["square", "cross", "circle"])
                .legend(title="kind", orient="top"),
                tooltip=hover(),
            ),
        ),
        460,
    )


def _cards(table: pd.DataFrame) -> list[page.Card]:
    """Dense and the best pruned network in no more time; how often pruning beats being small."""
    longest = table[table.epochs == table.epochs.max()]
    cards = []
    for dense in longest[longest.kind == "dense"].itertuples():
        cards.append(page.Card(f"{100 * dense.accuracy:.2f} %", f"dense, in {dense.seconds:.1f} s"))
        within = longest[(longest.kind == "sparse") & (longest.seconds <= dense.seconds)]
        for line in within.sort_values("accuracy").tail(1).itertuples():
            says = f"the most accurate pruned: {line.network.name}, in {line.vs_dense:.2f}× dense's time"
            tone = "bad" if line.accuracy < dense.accuracy else "good"
            cards.append(page.Card(f"{100 * line.accuracy:.2f} %", says, tone=tone))
    compared = table[(table.kind == "sparse") & table.vs_small.notna()]
    if len(compared):
        better = int((compared.vs_small_low > 0).sum())
        says = "pruned networks beat a small dense one of the same time (95 % interval above 0)"
        cards.append(page.Card(f"{better} of {len(compared)}", says, tone="" if better else "bad"))
    return cards
