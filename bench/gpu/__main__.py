"""``python -m bench.gpu``: verify and time every contender on a GPU, and report."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bench.contenders import Contender
from bench.gpu import model, report, suite
from bench.gpu.contenders import CONTENDERS
from bench.gpu.problems import WORKLOADS, case_id
from bench.gpu.suite import Row
from bench.gpu.timing import QUICK_ROUNDS, ROUNDS, Clock, clock_for
from bench.report import json_line
from bench.rows import FAILED, WRONG
from bench.run import FILE_WIDTH, _regex
from bench.workloads import Workload


def main(
    out: Annotated[Path | None, typer.Option(help="Write all results to this file, as JSONL.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few workloads, fewer rounds.")] = False,
    filter: Annotated[str, typer.Option(help="Regular expression: workloads whose id matches.")] = "",
    contender: Annotated[str, typer.Option(help="Regular expression: contenders whose name matches.")] = "",
    list_only: Annotated[
        bool, typer.Option("--list", help="Print workloads and contenders, run nothing.")
    ] = False,
    show_model: Annotated[
        bool, typer.Option("--model", help="Print the break-even sparsities that a model predicts.")
    ] = False,
) -> None:
    """Verify and time dense and sparse contenders on a GPU."""
    console = make_console()
    if show_model:
        console.print(f"{model.FIRST_LINE}\n", highlight=False)
        console.print(model.table())
        console.print(model.legend(), highlight=False, soft_wrap=False)
        return
    named, with_id = _regex("--contender", contender), _regex("--filter", filter)
    chosen = [w for w in WORKLOADS if with_id.search(case_id(w)) and (w.quick or not quick)]
    taking_part = [c for c in CONTENDERS.values() if named.search(c.name)]
    if not chosen or not taking_part:
        raise typer.BadParameter("no workload or no contender is left; --list shows what there is")
    if list_only:
        for workload in chosen:
            names = [c.name for c in taking_part if c.applies(workload)]
            console.print(f"{case_id(workload)}: {', '.join(names)}", highlight=False)
        return
    if reason := suite.why_not():
        console.print(f"skipped: {reason}", highlight=False)
        return
    device = torch.device("cuda", torch.cuda.current_device())
    rounds = QUICK_ROUNDS if quick else ROUNDS
    results = measure(chosen, taking_part, device, clock_for(device), rounds, out, console)
    if any(row.status in (WRONG, FAILED) for row in results):
        raise typer.Exit(1)


def make_console() -> Console:
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = FILE_WIDTH  # tables in a file need not fit into a window
    return console


def measure(
    chosen: Sequence[Workload],
    contenders: Sequence[Contender],
    device: torch.device,
    clock: Clock,
    rounds: int,
    out: Path | None,
    console: Console,
) -> list[Row]:
    """Run the suite, print a table after each workload, and write a row for each contender.

    Args:
        chosen, contenders, device, clock, rounds: see `suite.run`.
        out: JSONL file, a header and then rows; None: not written.
        console: where tables go.
    """
    settings = {"rounds": rounds, "workloads": len(chosen), "contenders": [c.name for c in contenders]}
    header = suite.header(device, settings)
    console.print(report.header_text(header))
    results: list[Row] = []
    with contextlib.ExitStack() as stack:
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(out.open("w", encoding="utf-8")) if out else None

        def write(type: str, content: dict[str, object]) -> None:
            if file is not None:
                print(json_line(type, content), file=file, flush=True)

        write("header", header)
        try:
            for case in suite.run(chosen, contenders, device, clock, rounds):
                console.print(report.case_table(case))
                results += case
                for row in case:
                    write("row", row.to_dict())
        except suite.DeviceLostError as error:
            console.print(f"the device does not answer any more, the rest was not run: {error}\n")
    console.print(report.LEGEND, highlight=False, soft_wrap=False)
    console.print(report.notes_text(results))
    console.print(report.breakeven_table(results))
    console.print(report.losses_text(results))
    console.print(report.failures_text(results))
    return results


if __name__ == "__main__":
    typer.run(main)
