"""A comparison as an interactive page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from sparseprune.experiments.compare.plot import interesting
from sparseprune.experiments.compare.report import LEGEND, facts, headline, rewired, texts, views
from sparseprune.experiments.compare.results import Comparison, Run
from sparseprune.experiments.compare.verdict import better, verdict
from sparseprune.experiments.page import page
from sparseprune.experiments.page.charts import POINT, colours, hover, rows_chart, wide

KINDS = {"dense": [1, 0], "small dense": [6, 3], "sparse": [1, 0], "screened": [2, 2], "conv": [8, 2, 2, 2]}


def html(comparison: Comparison) -> str:
    """The page: what came of it, accuracy against seconds, tables."""
    shown = views(comparison)
    rows = [row for title, runs in shown for run in runs for row in _rows(title, run)]
    sparsities = sorted(
        {row["sparsity"] for row in rows if "sparsity" in row}, key=lambda s: float(s.split()[0])
    )
    blocks = list(dict.fromkeys(row["block"] for row in rows if "block" in row))
    filters = [page.Filter("view", "view", {title: title for title, _ in shown}, shown[0][0])]
    for field, values in (("sparsity", sparsities), ("block", blocks)):
        if len(values) > 1:
            filters.append(page.Filter(field, field, {value: value for value in values}))
    chart = page.Chart(
        "Test accuracy against time",
        "Seconds of pruning and training. Hover over a point, or tap it, for its run. A dense network is "
        "compared with each choice of sparsity and block.",
        _curves(rows, interesting(comparison.runs)),
    )
    return page.html(
        headline(comparison),
        _cards(shown[0][1]),
        filters,
        [chart],
        {"rows": rows},
        facts=[" ".join(verdict(comparison.runs)), facts(comparison), *rewired(comparison)],
        tables=[_table(title, runs) for title, runs in shown],
        legend=LEGEND,
    )


def _rows(title: str, run: Run) -> list[dict[str, Any]]:
    """A row for each evaluation."""
    cells = {_on_a_line(heading): column[0] for heading, column in texts([run]).items()}
    of_run: dict[str, Any] = {"view": title, "label": run.label, "kind": run.kind}
    of_run["method"] = run.method or run.kind
    if run.kind == "sparse" and run.sparsity is not None:
        of_run |= {"sparsity": f"{100 * run.sparsity:.4g} %", "block": run.block}
    rows = []
    for point in run.result.curve:
        seconds = run.prune_seconds + point.seconds
        told = {"title": run.label, "at this point": f"{100 * point.accuracy:.2f} % after {seconds:.1f} s"}
        told |= {heading: text for heading, text in cells.items() if text and heading != "network"}
        rows.append({**of_run, "seconds": seconds, "accuracy": 100 * point.accuracy, "hover": told})
    return rows


def _curves(rows: Sequence[dict[str, Any]], limits: tuple[float, float]) -> alt.LayerChart:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    low, high = limits
    dashes = alt.StrokeDash("kind:N").scale(domain=kinds, range=[KINDS[kind] for kind in kinds]).legend(None)
    lines = rows_chart().encode(
        x=alt.X("seconds:Q").axis(title="wall-clock seconds (pruning and training)"),
        y=alt.Y("accuracy:Q").scale(domain=[low, min(high, 100)], nice=False).axis(title="test accuracy (%)"),
        color=colours("method", methods, "network"),
        detail="label:N",
    )
    return wide(
        alt.layer(
            lines.mark_line(clip=True, strokeWidth=1.6).encode(strokeDash=dashes),
            lines.mark_circle(clip=True, size=POINT).encode(tooltip=hover()),
        ),
        420,
    )


def _cards(runs: Sequence[Run]) -> list[page.Card]:
    """Dense, and the most accurate of those that were pruned and of the small dense ones."""
    dense = [run for run in runs if run.kind == "dense"]
    best = {kind: max(of, key=_accuracy) for kind in ("sparse", "small dense") if (of := _of(runs, kind))}
    cards = [page.Card(_percent(run), f"dense, in {run.total_seconds:.1f} s") for run in dense]
    rivals = dense + _of(runs, "small dense")
    for kind, run in best.items():
        words, tone = "pruned" if kind == "sparse" else kind, ""
        if kind == "sparse":
            tone = "bad" if any(better(other, run) for other in rivals) else "good"
        says = f"the most accurate {words}: {run.label}, in {run.time_vs_dense:.2f}× dense's time"
        cards.append(page.Card(_percent(run), says, tone=tone))
    return cards


def _of(runs: Sequence[Run], kind: str) -> list[Run]:
    return [run for run in runs if run.kind == kind]


def _accuracy(run: Run) -> float:
    return run.result.accuracy


def _percent(run: Run) -> str:
    return f"{100 * run.result.accuracy:.2f} %"


def _on_a_line(heading: str) -> str:
    return heading.replace("/\n", "/").replace("\n", " ")


def _table(title: str, runs: Sequence[Run]) -> dict[str, Any]:
    cells = texts(runs)
    headings = [_on_a_line(heading) for heading in cells.columns]
    return {"title": title, "headings": headings, "rows": cells.values.tolist(), "texts": 1}
