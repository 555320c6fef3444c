"""``python -m bench.run``: verify and time every contender on every workload, and report."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import sparseprune as sp
from bench import page, report, rows, targets
from bench.contenders import CONTENDERS
from bench.rows import FAILED, WRONG, Row
from bench.workloads import WORKLOADS

SECONDS = 0.7  # of timing for a case
THREADS = "1,2"
QUICK_SECONDS = 0.2
QUICK_THREADS = "2"
FILE_WIDTH = 120


def main(
    threads: Annotated[
        str | None,
        typer.Option(help=f"Numbers of threads; {THREADS} by default, {QUICK_THREADS} with --quick."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help=f"Time budget of a case; {SECONDS:g} by default.")
    ] = None,
    filter: Annotated[str, typer.Option(help="Regular expression: workloads whose id matches.")] = "",
    contender: Annotated[str, typer.Option(help="Regular expression: contenders whose name matches.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="A few workloads, 40 seconds.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write all results to this file, as JSONL, and a page beside it (.html)."),
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", help="Print workloads and contenders, run nothing.")
    ] = False,
) -> None:
    """Verify and time dense and sparse contenders on the same work, and compare with the targets."""
    counts = _thread_counts(threads or (QUICK_THREADS if quick else THREADS))
    chosen = [w for w in WORKLOADS if _regex("--filter", filter).search(w.id) and (w.quick or not quick)]
    taking_part = [c for c in CONTENDERS.values() if _regex("--contender", contender).search(c.name)]
    if not chosen or not taking_part:
        raise typer.BadParameter("no workload or no contender is left; --list shows what there is")
    if seconds is None:
        seconds = QUICK_SECONDS if quick else SECONDS
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = FILE_WIDTH  # tables in a file need not fit into a window
    if list_only:
        for workload in chosen:
            names = [c.name for c in taking_part if c.applies(workload)]
            console.print(f"{workload.id}: {', '.join(names)}", highlight=False)
        return
    own = f"sparseprune-{sp.ops.info()['isa']}"
    settings = {"threads": counts, "seconds": seconds, "quick": quick, "filter": filter}
    header = report.header(settings, own)
    console.print(report.header_text(header))
    results: list[Row] = []
    with contextlib.ExitStack() as stack:
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(out.open("w", encoding="utf-8")) if out else None

        def write(type: str, content: dict[str, object]) -> None:
            if file is not None:
                print(report.json_line(type, content), file=file, flush=True)

        write("header", header)
        progress = stack.enter_context(
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                console=console,
                transient=True,
                auto_refresh=False,  # a thread that redraws would take time from what is measured,
            )
        )
        cases = [rows.case_id(w, count) for w in chosen for count in rows.thread_counts(w, counts)]
        task = progress.add_task(cases[0], total=len(cases))
        for i, case in enumerate(
            rows.run(chosen, taking_part, counts, seconds, fewest_blocks=1 if quick else 3), start=1
        ):
            progress.update(task, completed=i, description=cases[min(i, len(cases) - 1)], refresh=True)
            console.print(report.case_table(case, header["peak"]))
            results += case
            for row in case:
                write("row", row.to_dict())
        outcomes = targets.outcomes(results, own, counts)
        for outcome in outcomes:
            write("target", outcome.to_dict())
    if out is not None:
        page.write(out, out.with_suffix(".html"))
    console.print(report.LEGEND, highlight=False)
    console.print(report.notes_text(results))
    console.print(report.strongest_text(results))
    console.print(report.losses_text(results, own))
    console.print(report.targets_table(outcomes, own))
    bad = [row for row in results if row.status in (WRONG, FAILED)]
    for row in bad:
        console.print(f"{row.id}: {row.status}: {row.reason}", highlight=False)
    if bad:
        raise typer.Exit(1)


def _thread_counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or len(set(counts)) < len(counts):
        raise typer.BadParameter(f"--threads: expected different numbers like 1,2, got {text!r}")
    return counts


def _regex(option: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise typer.BadParameter(f"{option}: {text!r} is not a regular expression: {error}") from error


if __name__ == "__main__":
    typer.run(main)
