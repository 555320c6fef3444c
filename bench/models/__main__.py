"""``python -m bench.models``: models of other libraries, and whether all that is promised works with them.

Each is pruned as a stranger would, made sparse, compared with the dense model with zeros, trained, compiled,
exported, saved and loaded. Weights are random, and nothing is downloaded. A finished model is at once a line
of the file; what has a line is not tried again.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

FILE = Path(__file__).parents[1] / "results" / "models" / "models.jsonl"
INTERRUPTED = 130  # exit code, as shells have it after Ctrl-C


def main(
    only: Annotated[str, typer.Option("--filter", help="Regular expression of models; --list.")] = "",
    list_only: Annotated[bool, typer.Option("--list", help="Print the models, and try none.")] = False,
    out: Annotated[Path, typer.Option("--out", help="File of the results.")] = FILE,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Processor threads.")] = 1,
) -> None:
    """Try the models that have no line in the file yet."""
    # Before their libraries are imported.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from bench.models import run
    from bench.models.catalogue import MODELS
    from sparseprune.format import files

    try:
        wanted = re.compile(only)
    except re.error as error:
        raise typer.BadParameter(f"--filter: {only!r} is not a regular expression: {error}") from error
    models = [model for model in MODELS if wanted.search(model.name)]
    if list_only:
        typer.echo("\n".join(model.name for model in models))
        return
    torch.set_num_threads(threads)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.check(out)
    try:
        run.perform(models, out, say=_say)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
