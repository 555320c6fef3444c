"""``python -m bench.methods EXPERIMENT``: methods of pruning compared, over several seeds.

A finished run is at once a line of the file; what has a line is not run again.
``python -m bench.methods plot`` draws the methods of the experiment "resnet8".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.methods import results
from bench.methods.experiment import perform
from bench.methods.points import EXPERIMENTS, cut, runs, those_like
from sparseprune.format import files

FOLDER = Path(__file__).parents[1] / "results" / "methods"
PLOT = "plot"
INTERRUPTED = 130  # exit code, as shells have it after Ctrl-C


def main(
    experiment: Annotated[str, typer.Argument(help=f"{', '.join(EXPERIMENTS)}, or {PLOT}.")],
    seeds: Annotated[str, typer.Option("--seeds", help="Commas between.")] = "0,1,2",
    out: Annotated[
        Path | None,
        typer.Option("--out", help=f"File of the runs, or picture; in {FOLDER.name}/ by default."),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads.")] = None,
    limit_minutes: Annotated[
        float | None, typer.Option("--limit-minutes", help="Stop before a run that would take longer.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Other passes over the data.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Fewer training samples.")] = None,
    only: Annotated[str, typer.Option("--filter", help="Regular expression of runs; --list.")] = "",
    list_only: Annotated[bool, typer.Option("--list", help="Print the runs, and do none.")] = False,
) -> None:
    """Do the runs that have no line in the file yet."""
    if experiment == PLOT:
        draw(out or FOLDER / "resnet8.png")
        return
    if experiment not in EXPERIMENTS:
        raise typer.BadParameter(f"expected {', '.join(EXPERIMENTS)} or {PLOT}, got {experiment!r}")
    chosen = those_like(cut(EXPERIMENTS[experiment], epochs, samples), re.compile(only))
    numbers = [int(seed) for seed in seeds.split(",")]
    if list_only:
        typer.echo("\n".join(run.label for run in runs(chosen, numbers)))
        return
    if threads is not None:
        torch.set_num_threads(threads)
    file = out or FOLDER / f"{experiment}.jsonl"
    files.check(file)
    try:
        perform(chosen, numbers, file, seconds=None if limit_minutes is None else 60 * limit_minutes)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
        raise typer.Exit(INTERRUPTED) from None


def draw(picture: Path) -> None:
    """Draw the runs of the file beside the picture that has its name."""
    # Matplotlib takes a second, which other commands need not spend.
    from bench.report.plots.methods import save

    save(results.read(picture.with_suffix(".jsonl")), picture)


if __name__ == "__main__":
    typer.run(main)
