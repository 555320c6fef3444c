"""The page of a results file: what `page.html.j2` shows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import results_file
from bench.report import machine, points
from bench.report.charts import charts
from bench.report.columns import LEGEND, MILLI, Columns, columns, filled
from bench.report.terminal import losses, strongest_text
from bench.results_file import Results
from bench.rows import Row
from sparseprune.cost.quiet import is_busy
from sparseprune.experiments.page import page
from sparseprune.format import files

TEMPLATE = Path(__file__).with_name("page.html.j2")


def write(results: Path, out: Path) -> None:
    """Write the page of a results file.

    Args:
        results: JSONL, as ``python -m bench.run --out`` writes it.
        out: HTML to write.
    Raises:
        ValueError: the file has no header.
    """
    files.write(out, html(results_file.read(results)))


def html(results: Results) -> str:
    """The page of a run."""
    header, rows, targets = results
    if "contender" not in header:
        raise ValueError("expected results of `python -m bench.run --out`, got lines without a full header")
    contender, shown = header["contender"], columns(header["peak"])
    own = points.compared(rows, contender)
    drawn = points.points(own, shown)
    return page.html(
        f"sparseprune benchmarks, {header['machine']['date']}",
        points.cards(own, rows),
        _filters(own),
        charts(drawn, header["peak"]) if own else [],
        {"rows": drawn, "break_evens": points.break_evens(own)},
        template=TEMPLATE,
        machine=_machine(header, rows),
        contender=contender,
        cases=len({row.case for row in rows}),
        busy=len({row.case for row in rows if is_busy(row.others)}),
        targets=_targets(targets),
        losses=[
            {"case": row.case, "factor": factor, "busy": is_busy(row.others)}
            for row, factor in sorted(losses(rows, contender), key=lambda loss: loss[1])
        ],
        legend=LEGEND,
        groups=_groups(rows, shown),
    )


def _filters(own: Sequence[Row]) -> list[page.Filter]:
    """Kind of work, sparsity and threads of the rows that charts show."""
    if not own:
        return []
    kinds = {kind: words for kind, words in points.WORDS.items() if any(r.workload.kind == kind for r in own)}
    kinds |= {row.workload.kind: row.workload.kind for row in own if row.workload.kind not in kinds}
    sparsities = dict.fromkeys(points.sparsity_text(row.workload) for row in own)
    counts = sorted({row.threads for row in own})
    return [
        page.Filter("kind", "work", kinds, next(iter(kinds))),
        page.Filter("sparsity", "sparsity", {text: text for text in sorted(sparsities, key=_number)}),
        page.Filter("threads", "threads", {count: str(count) for count in counts}, counts[-1]),
    ]


def _number(text: str) -> float:
    return float(text.split()[0])


def _fields(row: Row) -> dict[str, Any]:
    """What filters go by."""
    sparsity = points.sparsity_text(row.workload)
    return {"kind": row.workload.kind, "sparsity": sparsity, "threads": row.threads}


def _machine(header: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """Lines about the machine, the settings and the strongest dense contenders."""
    settings = header["settings"]
    threads = ", ".join(map(str, settings["threads"]))
    only = f"; only workloads that match {settings['filter']}" if settings["filter"] else ""
    return [
        *str(machine.header_text(header)).strip().split("\n"),
        f"threads {threads}; {settings['seconds']:g} s of timing for a case{only}",
        "Every contender is verified against float64 before it is timed; they take turns; times are medians.",
        *str(strongest_text(rows)).strip().split("\n"),
    ]


def _targets(targets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A line for each target, a cell for each number of threads; lines without any figure apart."""
    counts = sorted({target["threads"] for target in targets})
    by_target: dict[tuple[str, str, float], dict[int, dict[str, Any]]] = {}
    for target in targets:
        key = (target["says"], target["over"], target["at_least"])
        by_target.setdefault(key, {})[target["threads"]] = target
    measured: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for (says, over, at_least), found in by_target.items():
        cells = [_target_cell(found.get(count)) for count in counts]
        line = {"says": says, "over": over, "at_least": at_least, "cells": cells}
        (measured if any(cell["verdict"] for cell in cells) else others).append(line)
    return {
        "threads": [points.threads_text(count) for count in counts],
        "measured": measured,
        "others": others,
        "met": sum(target["verdict"] == "met" for target in targets),
        "known": sum(target["measured"] is not None for target in targets),
    }


def _target_cell(target: dict[str, Any] | None) -> dict[str, str]:
    if target is None:
        return {"text": "", "verdict": ""}
    if target["measured"] is None:
        return {"text": "not measured", "verdict": ""}
    return {"text": f"{target['measured']:.2f}×", "verdict": target["verdict"]}


def _groups(rows: Sequence[Row], shown: Columns) -> list[dict[str, Any]]:
    """All rows, by kind of workload and shape, then by case, with the columns that are not empty there."""
    groups = []

    def group_of(row: Row) -> tuple[str, str]:
        return row.workload.kind, row.workload.shape

    for (kind, shape), found in itertools.groupby(sorted(rows, key=group_of), group_of):
        members = list(found)
        cells = filled(shown, members)
        lines = [
            {
                "case": row.case,
                "own": row.family == "own",
                "contender": row.contender,
                "ms": "" if row.seconds is None else f"{row.seconds * MILLI:.3f}",
                "cells": [column[i] for column in cells.values()],
                "fields": _fields(row),
                "status": row.status,
                "reason": row.reason,
            }
            for i, row in enumerate(members)
        ]
        groups.append(
            {
                "kind": kind,
                "shape": shape,
                "headings": [heading.replace("\n", " ") for heading in cells],
                "cases": [
                    (case, list(of_case))
                    for case, of_case in itertools.groupby(lines, lambda line: line["case"])
                ],
            }
        )
    return groups
