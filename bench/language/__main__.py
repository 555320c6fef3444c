"""``python -m bench.language prepare | time | run``: a language model of characters at equal time.

``prepare`` fetches the text, ``time`` measures steps (nothing else should run), ``run`` tunes rates and
trains; interrupted, the same command goes on.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.language import run, text
from bench.language.contenders import PRECISIONS, contenders
from sparseprune.experiments.tuning import grid

FOLDER = Path(__file__).parents[1] / "results" / "language"
ACTIONS = ("prepare", "time", "run")
RATES = grid(4e-3, trials=4)


def main(
    action: Annotated[str, typer.Argument(help=", ".join(ACTIONS))],
    minutes: Annotated[str, typer.Option("--minutes", help="Lengths of training, commas between.")] = "2",
    seeds: Annotated[str, typer.Option("--seeds", help="Commas between.")] = "0,1,2",
    only: Annotated[str, typer.Option("--filter", help="Regular expression of models.")] = "",
    precisions: Annotated[
        str, typer.Option("--precisions", help="What is timed; bfloat16 only where the processor has it.")
    ] = ",".join(PRECISIONS),
    width: Annotated[int, typer.Option("--width", min=8, help="Features of a token.")] = 384,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = FOLDER,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Processor threads.")] = 2,
    limit_minutes: Annotated[
        float | None, typer.Option("--limit-minutes", help="Begin no run that would end later.")
    ] = None,
) -> None:
    """Do what is not done yet."""
    if action not in ACTIONS:
        raise typer.BadParameter(f"expected {', '.join(ACTIONS)}, got {action!r}")
    if action == "prepare":
        text.prepare()
        return
    torch.set_num_threads(threads)
    novels = text.load()
    chosen = [one for one in contenders(width) if re.search(only, one.name)]
    if action == "time":
        named = precisions.split(",")
        if unknown := sorted(set(named) - set(PRECISIONS)):
            raise typer.BadParameter(f"expected precisions of {', '.join(PRECISIONS)}, got {unknown[0]!r}")
        run.time_steps(chosen, novels, out, _say, named)
        return
    finished = run.perform(
        chosen,
        novels,
        out,
        budgets=sorted(60 * float(word) for word in minutes.split(",")),
        seeds=[int(word) for word in seeds.split(",")],
        rates=RATES,
        say=_say,
        deadline=None if limit_minutes is None else time.monotonic() + 60 * limit_minutes,
    )
    if not finished:
        _say("stopped before the limit; the same command goes on")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
