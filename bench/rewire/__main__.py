"""``python -m bench.rewire cost | time | run | plot``: do networks that rewire themselves pay?

- "cost": milliseconds and memory of a rewiring beside a training step; nothing else should run.
- "time": seconds of steps and rewirings of the contenders of a study; nothing else should run.
- "run": tunes rates and trains, for equal epochs, and for the time that RigL takes for them. A finished run
  is at once a line of the file; what has a line is not run again.
- "plot": draws accuracy against seconds.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.rewire import cost, run
from bench.rewire.points import EPOCHS, FULL, QUICK, STUDIES, VIEWS, Study, runs
from sparseprune.format import files

FOLDER = Path(__file__).parents[1] / "results" / "rewire"
ACTIONS = ("cost", "time", "run", "plot")
INTERRUPTED = 130  # exit code, as shells have it after Ctrl-C


def main(
    action: Annotated[str, typer.Argument(help=", ".join(ACTIONS))],
    model: Annotated[str, typer.Option("--model", help=f"Study: {', '.join(STUDIES)}.")] = "resnet8",
    epochs: Annotated[
        str, typer.Option("--epochs", help="Lengths, commas between; the study's shortest by default.")
    ] = "",
    views: Annotated[
        str, typer.Option("--views", help="epochs, time; the latter needs what the action time measures.")
    ] = EPOCHS,
    seeds: Annotated[str, typer.Option("--seeds", help="Commas between.")] = "0,1,2",
    only: Annotated[str, typer.Option("--filter", help="Regular expression of runs; --list.")] = "",
    out: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = FOLDER,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Processor threads.")] = 2,
    limit_minutes: Annotated[
        float, typer.Option("--limit-minutes", help="Stop before a run that would take longer.")
    ] = math.inf,
    list_only: Annotated[bool, typer.Option("--list", help="Print the runs, and do none.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few samples and rates, to see that all runs.")
    ] = False,
) -> None:
    """Do what is not done yet."""
    if action not in ACTIONS:
        raise typer.BadParameter(f"expected {', '.join(ACTIONS)}, got {action!r}")
    if model not in STUDIES:
        raise typer.BadParameter(f"expected --model {', '.join(STUDIES)}, got {model!r}")
    if quick and out == FOLDER:
        raise typer.BadParameter("expected --out with --quick, whose figures are no results")
    torch.set_num_threads(threads)
    study, size = STUDIES[model], QUICK if quick else FULL
    if action == "plot":
        draw(study, out)
        return
    try:
        if action == "cost":
            files.check(out / cost.FILE)
            cost.perform(out / cost.FILE, rounds=1 if quick else cost.ROUNDS, say=run.say)
            return
        if action == "time":
            files.check(out / run.TIMES)
            run.time_steps(study, out, size=size, rounds=1 if quick else run.ROUNDS)
            return
        chosen = [
            one
            for one in runs(study, _numbers(epochs) or study.epochs[:1], _views(views), _numbers(seeds))
            if re.search(only, one.label)
        ]
        if list_only:
            typer.echo("\n".join(one.label for one in chosen))
            return
        files.check(out / run.RUNS)
        run.perform(study, chosen, out, size=size, seconds=60 * limit_minutes)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _numbers(words: str) -> list[int]:
    return [int(word) for word in words.split(",") if word]


def _views(words: str) -> list[str]:
    named = words.split(",")
    if unknown := sorted(set(named) - set(VIEWS)):
        raise typer.BadParameter(f"expected --views of {', '.join(VIEWS)}, got {unknown[0]!r}")
    return named


def draw(study: Study, folder: Path) -> None:
    """Draw the runs of a study."""
    # Matplotlib takes a second, which other commands need not spend.
    from bench.report.plots.rewire import save

    save(study, folder, picture := folder / f"{study.name}.png")
    typer.echo(picture)


if __name__ == "__main__":
    typer.run(main)
