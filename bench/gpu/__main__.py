"""``python -m bench.gpu``: verify and time every contender on a GPU, and report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bench import command, results_file
from bench.contenders import Contender
from bench.contenders.gpu import CONTENDERS
from bench.gpu import device, model, suite
from bench.gpu.timing import QUICK_ROUNDS, ROUNDS, clock_for
from bench.gpu.workloads import WORKLOADS, case_id
from bench.report import gpu as report
from bench.report import terminal
from bench.rows import Row
from bench.timing import Clock
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
    console = command.make_console()
    if show_model:
        console.print(f"{model.FIRST_LINE}\n", highlight=False)
        console.print(report.model_table())
        console.print(model.legend(), highlight=False, soft_wrap=False)
        return
    chosen, taking_part = command.choose(
        WORKLOADS, CONTENDERS.values(), filter, contender, quick, id_of=case_id
    )
    if list_only:
        command.print_list(console, chosen, taking_part, id_of=case_id)
        return
    if reason := device.why_not():
        console.print(f"skipped: {reason}", highlight=False)
        return
    gpu = torch.device("cuda", torch.cuda.current_device())
    rounds = QUICK_ROUNDS if quick else ROUNDS
    results = measure(chosen, taking_part, gpu, clock_for(gpu), rounds, out, console)
    if any(map(command.is_bad, results)):
        raise typer.Exit(1)


def measure(
    chosen: Sequence[Workload],
    contenders: Sequence[Contender],
    gpu: torch.device,
    clock: Clock,
    rounds: int,
    out: Path | None,
    console: Console,
) -> list[Row]:
    """Run the suite, print a table after each workload, and write a row for each contender.

    Args:
        chosen, contenders, gpu, clock, rounds: see `suite.run`.
        out: JSONL file, a header and then rows; None: not written.
        console: the one that tables are printed on.
    """
    settings = {"rounds": rounds, "workloads": len(chosen), "contenders": [c.name for c in contenders]}
    header = device.header(gpu, settings)
    console.print(report.header_text(header))
    results: list[Row] = []
    with results_file.writer(out) as write:
        write("header", header)
        try:
            for case in suite.run(chosen, contenders, gpu, clock, rounds):
                console.print(report.case_table(case))
                results += case
                for row in case:
                    write("row", row.to_dict())
        except suite.DeviceLostError as error:
            console.print(f"the device does not answer any more, the rest was not run: {error}\n")
    console.print(report.LEGEND, highlight=False, soft_wrap=False)
    console.print(terminal.notes_text(results, tolerances=True))
    console.print(report.break_even_table(results))
    console.print(report.losses_text(results))
    console.print(report.failures_text(results))
    return results


if __name__ == "__main__":
    typer.run(main)
