"""``python -m bench.wide_data prepare|time|run|plot``: pruned networks and linear models on real wide data.

``prepare`` makes ``data/NAME.npz`` of what Debian's packages ship. ``time`` measures steps and pruning, while
nothing else runs. ``run`` tunes and trains. What is in the files of results is not done again. ``plot`` draws
accuracy against time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.wide_data import biology, prepared, text, timing
from bench.wide_data.run import SETTINGS, OutOfTimeError, perform
from sparseprune.format import files

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "bench" / "results" / "wide_data"
MAKERS = {"debian-text": text.prepare, "muscle-cells": biology.muscle_cells, "genotypes": biology.genotypes}
ALL = ",".join(MAKERS)
SPLIT_SEED = 0
INTERRUPTED = 130  # exit code, as shells have it after Ctrl-C

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
Data = Annotated[str, typer.Option("--data", help=f"{', '.join(MAKERS)}; commas between.")]
DataFolder = Annotated[Path, typer.Option("--data-dir", help="Folder of the prepared data.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the results.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads.")]


@app.command()
def prepare(data: Data = "debian-text", data_dir: DataFolder = ROOT / "data") -> None:
    """Make the data from Debian's packages, and print what it is."""
    for name in chosen(data):
        file = data_dir / f"{name}.npz"
        files.check(file)
        try:
            made = MAKERS[name](data_dir / "debian", SPLIT_SEED)
        except (OSError, ModuleNotFoundError) as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
        prepared.save(made, file)
        typer.echo(f"{file}\n{json.dumps(made.figures(), indent=1)}")


@app.command("time")
def time_all(
    data: Data = ALL, threads: Threads = None, out: Out = FOLDER, data_dir: DataFolder = ROOT / "data"
) -> None:
    """Time steps and pruning of all networks; nothing else should run meanwhile."""
    if threads is not None:
        torch.set_num_threads(threads)
    timing.perform(_read(chosen(data), data_dir), out, say=_say)


@app.command()
def run(
    data: Data = ALL,
    seeds: Annotated[str, typer.Option("--seeds", help="Commas between.")] = "0,1,2",
    limit_minutes: Annotated[
        float | None, typer.Option("--limit-minutes", help="Begin no training after that.")
    ] = None,
    threads: Threads = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Other passes over the data.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Fewer training samples.")] = None,
    only: Annotated[str, typer.Option("--filter", help="Regular expression of contenders.")] = "",
    out: Out = FOLDER,
    data_dir: DataFolder = ROOT / "data",
) -> None:
    """Tune every contender on the validation samples, then train it with every seed and test it once."""
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        perform(
            _read(chosen(data), data_dir),
            [int(seed) for seed in seeds.split(",")],
            out,
            seconds=None if limit_minutes is None else 60 * limit_minutes,
            epochs=epochs,
            samples=samples,
            only=only,
            say=_say,
        )
    except OutOfTimeError as stopped:
        typer.echo(f"{stopped}; the same command goes on where this one stopped", err=True)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def plot(out: Out = FOLDER) -> None:
    """Draw accuracy against time, of all data that there are results of."""
    # Matplotlib takes a second, which other commands need not spend.
    from bench.report.plots.wide_data import save

    save({name: out / f"{name}.jsonl" for name in SETTINGS}, out / "wide_data.png")


def _read(names: list[str], folder: Path) -> dict[str, prepared.Prepared]:
    try:
        return {name: prepared.read(folder / f"{name}.npz") for name in names}
    except FileNotFoundError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def chosen(data: str) -> list[str]:
    """Names of data sets, checked."""
    names = data.split(",")
    if unknown := [name for name in names if name not in MAKERS]:
        raise typer.BadParameter(f"expected {', '.join(MAKERS)}, got {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    app()
