"""``python -m bench.run``: verify and time every contender on every workload, and report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import sparseprune as sp
from bench import command, results_file, suite, targets
from bench.contenders import CONTENDERS
from bench.report import machine, page, terminal
from bench.rows import Row
from bench.workloads import WORKLOADS

# Seconds of timing for a case, and numbers of threads.
SECONDS = 0.7
THREADS = "1,2"
QUICK_SECONDS = 0.2
QUICK_THREADS = "2"


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
    quick: Annotated[bool, typer.Option("--quick", help="A few workloads, a minute.")] = False,
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
    chosen, taking_part = command.choose(
        WORKLOADS, CONTENDERS.values(), filter, contender, quick, id_of=lambda workload: workload.id
    )
    if seconds is None:
        seconds = QUICK_SECONDS if quick else SECONDS
    console = command.make_console()
    if list_only:
        command.print_list(console, chosen, taking_part, id_of=lambda workload: workload.id)
        return
    own = f"sparseprune-{sp.ops.info()['isa']}"
    settings = {"threads": counts, "seconds": seconds, "quick": quick, "filter": filter}
    header = machine.header(settings, own)
    console.print(machine.header_text(header))
    results: list[Row] = []
    with results_file.writer(out) as write, _progress(console) as progress:
        write("header", header)
        cases = [suite.case_id(w, count) for w in chosen for count in suite.thread_counts(w, counts)]
        task = progress.add_task(cases[0], total=len(cases))
        for i, case in enumerate(
            suite.run(chosen, taking_part, counts, seconds, fewest_blocks=1 if quick else 3), start=1
        ):
            progress.update(task, completed=i, description=cases[min(i, len(cases) - 1)], refresh=True)
            console.print(terminal.case_table(case, header["peak"]))
            results += case
            for row in case:
                write("row", row.to_dict())
        outcomes = targets.outcomes(results, own, counts)
        for outcome in outcomes:
            write("target", outcome.to_dict())
    if out is not None:
        page.write(out, out.with_suffix(".html"))
    console.print(terminal.LEGEND, highlight=False)
    console.print(terminal.notes_text(results))
    console.print(terminal.strongest_text(results))
    console.print(terminal.losses_text(results, own))
    console.print(terminal.targets_table(outcomes, own))
    bad = [row for row in results if command.is_bad(row)]
    for row in bad:
        console.print(f"{row.id}: {row.status}: {row.reason}", highlight=False)
    if bad:
        raise typer.Exit(1)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        # A thread that redraws would take time from what is measured.
        auto_refresh=False,
    )


def _thread_counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or len(set(counts)) < len(counts):
        raise typer.BadParameter(f"--threads: expected different numbers like 1,2, got {text!r}")
    return counts


if __name__ == "__main__":
    typer.run(main)
