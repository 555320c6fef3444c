"""``python -m bench.mosaic EXPERIMENT``: the mosaic with tuned rates, and where pruning before training pays.

- "tuned": all networks on the base, their rates tuned with equal trials.
- "region": a few of them on other settings.
- "time": seconds of a training step and of pruning of all networks of "tuned", on a quiet machine.
- "plot": draws "region".

A finished run is at once a line of the file; what has a line is not run again.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.mosaic import timing
from bench.mosaic.experiment import perform
from bench.mosaic.points import EXPERIMENTS, FULL, QUICK, those_like
from sparseprune.format import files

FOLDER = Path(__file__).parents[1] / "results" / "mosaic"
RATES = "rates.log"
TIME, PLOT = "time", "plot"
NAMES = (*EXPERIMENTS, TIME, PLOT)
INTERRUPTED = 130  # exit code, as shells have it after Ctrl-C


def main(
    experiment: Annotated[str, typer.Argument(help=", ".join(NAMES))],
    seeds: Annotated[str, typer.Option("--seeds", help="Commas between.")] = "0,1,2",
    out: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = FOLDER,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads.")] = None,
    limit_minutes: Annotated[
        float, typer.Option("--limit-minutes", help="Stop before a run that would take longer.")
    ] = math.inf,
    only: Annotated[str, typer.Option("--filter", help="Regular expression of runs; --list.")] = "",
    list_only: Annotated[bool, typer.Option("--list", help="Print the runs, and do none.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny networks and few samples, to see that all runs.")
    ] = False,
) -> None:
    """Do the runs that have no line in the file yet."""
    if experiment not in NAMES:
        raise typer.BadParameter(f"expected {', '.join(NAMES)}, got {experiment!r}")
    if quick and out == FOLDER:
        raise typer.BadParameter("expected --out with --quick, whose figures are no results")
    if threads is not None:
        torch.set_num_threads(threads)
    size = QUICK if quick else FULL
    if experiment == PLOT:
        draw(out)
        return
    file = out / f"{experiment}.jsonl"
    files.check(file)
    try:
        if experiment == TIME:
            timing.perform(file, size=size)
            return
        numbers = [int(seed) for seed in seeds.split(",")]
        chosen = those_like(EXPERIMENTS[experiment](numbers), re.compile(only))
        if list_only:
            typer.echo("\n".join(run.label for run in chosen))
            return
        perform(chosen, file, out / RATES, size=size, seconds=60 * limit_minutes)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
        raise typer.Exit(INTERRUPTED) from None


def draw(folder: Path) -> None:
    """Draw the region, for light and for dark pages."""
    # Matplotlib and pandas take a second, which other commands need not spend.
    from bench.mosaic import results
    from bench.report.plots.mosaic import save

    for picture in save(results.read(folder), folder):
        typer.echo(picture)


if __name__ == "__main__":
    typer.run(main)
