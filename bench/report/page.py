"""One self-contained HTML page of a results file: what `page.html.j2` shows, and the plots in it."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from bench import results_file
from bench.report import machine
from bench.report.columns import LEGEND, MILLI, Columns, columns, filled
from bench.report.plots import break_evens, layers, networks, roofline, speedups
from bench.report.terminal import losses, strongest_text
from bench.results_file import Results
from bench.rows import Row
from bench.workloads import CONV_BATCH, CONVOLUTIONS, NETWORK_STEP
from sparseprune.cost.quiet import is_busy
from sparseprune.format import files

TEMPLATE = "page.html.j2"


def write(results: Path, page: Path) -> None:
    """Write the page of a results file.

    Args:
        results: JSONL, as ``python -m bench.run --out`` writes it.
        page: HTML to write.
    Raises:
        ValueError: the file has no header.
    """
    files.write(page, html(results_file.read(results)))


def html(results: Results) -> str:
    """The page of a run."""
    header, rows, targets = results
    if "contender" not in header:
        raise ValueError("expected results of `python -m bench.run --out`, got lines without a full header")
    contender = header["contender"]
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    network_rows = [row for row in rows if row.workload.kind == NETWORK_STEP]
    return templates.get_template(TEMPLATE).render(
        title=f"sparseprune benchmarks, {header['machine']['date']}",
        machine=_machine(header, rows),
        contender=contender,
        cases=len({row.case for row in rows}),
        busy=len({row.case for row in rows if is_busy(row.others)}),
        targets=_targets(targets),
        conv_batch=CONV_BATCH,
        network_batch=network_rows[0].workload.batch if network_rows else 0,
        figures=_figures(rows, network_rows, header),
        losses=[
            {"case": row.case, "factor": factor, "busy": is_busy(row.others)}
            for row, factor in sorted(losses(rows, contender), key=lambda loss: loss[1])
        ],
        legend=LEGEND,
        groups=_groups(rows, columns(header["peak"])),
    )


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
        "threads": [_threads(count) for count in counts],
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


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


# ---- plots -------------------------------------------------------------------------------------------------


def _figures(
    rows: Sequence[Row], network_rows: Sequence[Row], header: dict[str, Any]
) -> dict[str, list[dict[str, str]]]:
    """The figures of each section, by number of threads, linear layers before convolutions."""
    contender = header["contender"]
    threads = sorted({row.threads for row in rows})

    def of_layers(
        name: str, figure: Callable[[list[Row]], Figure | None], counts: Sequence[int], kinds: Sequence[str]
    ) -> list[dict[str, str]]:
        of = "convolutions, " if kinds is CONVOLUTIONS else ""
        return [
            _figure(figure(layers.layers(rows, contender, count, kinds)), name, f"{of}{_threads(count)}")
            for count in counts
        ]

    measured = {row.workload.kind for row in rows}
    kinds = [kinds for kinds in (layers.LINEAR, CONVOLUTIONS) if measured & set(kinds)]
    return {
        "speedups": [figure for of in kinds for figure in of_layers("speedups", speedups.draw, threads, of)],
        "networks": [
            _figure(networks.draw(network_rows, contender, count), "networks", _threads(count))
            for count in sorted({row.threads for row in network_rows})
        ],
        "roofline": [
            figure
            for of in kinds
            for figure in of_layers(
                "roofline", lambda found: roofline.draw(found, header["peak"]), threads[:1], of
            )
        ],
        # Convolutions are measured at high sparsities alone: too far from where they break even.
        "break_evens": of_layers("break-evens", break_evens.draw, threads, layers.LINEAR),
    }


def _figure(figure: Figure | None, name: str, words: str) -> dict[str, str]:
    alt = f"{name}, {words}"
    return {"words": words, "alt": alt, "image": "" if figure is None else image(figure, alt)}


def image(figure: Figure, words: str) -> str:
    """A figure as an SVG in a data URI, the same bytes at every call with these words."""
    with matplotlib.rc_context({"svg.hashsalt": words}):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ---- all results -------------------------------------------------------------------------------------------


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
