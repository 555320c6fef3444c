"""``sparseprune compare``: dense, small dense and sparse networks side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from sparseprune.experiments import compare as comparison
from sparseprune.experiments.cli import options, report
from sparseprune.experiments.cli.progress import Bars
from sparseprune.experiments.data import load


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 <= number < 1 for number in numbers):
        raise typer.BadParameter(f"expected numbers in [0, 1) with commas between, got {text!r}")
    return numbers


def _budget(text: str | None) -> float | Literal["dense"] | None:
    if text is None:
        return None
    if text == "dense":
        return "dense"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise typer.BadParameter(f'expected a number of seconds above 0, or "dense", got {text!r}')
    return seconds


def compare(
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for results.json, table.md and curves.png.")
    ] = None,
    methods: Annotated[
        str, typer.Option("--methods", help="Pruning methods, commas between.")
    ] = "snip,grasp",
    sparsities: Annotated[
        str, typer.Option("--sparsities", help="Fractions of the weights to remove, commas between.")
    ] = "0.9,0.95",
    blocks: Annotated[
        str,
        typer.Option("--blocks", help="Rows of the blocks that are kept or removed, commas between: 1,4."),
    ] = "1",
    epochs: Annotated[
        int, typer.Option("--epochs", min=1, help="Passes over the data in the first view (equal epochs).")
    ] = 4,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="SECONDS|dense",
            help="Adds a second view: all are trained anew for the same wall-clock time, pruning included. "
            "SECONDS: so long. dense: as long as dense took for its epochs, which is then its run in both.",
        ),
    ] = None,
    shuffled: Annotated[
        bool, typer.Option("--shuffled", help="Add, as a control, each mask shuffled within its layers.")
    ] = False,
    scope: options.Scope = "global",
    prune_batches: options.PruneBatches = comparison.PRUNE_BATCHES,
    data: options.Data = "mnist5k",
    data_dir: options.DataDir = None,
    samples: options.Samples = None,
    model: options.Model = "wide_mlp",
    batch_size: options.BatchSize = 256,
    optimizer: options.OptimizerName = "adam",
    lr: options.LearningRate = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Train a dense network, small dense ones of as many weights, and pruned ones, and compare them.

    The first view gives all of them the same number of epochs.
    --budget adds a second one, which gives them the same wall-clock time.
    Evaluation is not counted in either.
    """
    fractions, seconds, shapes = _numbers(sparsities), _budget(budget), options.parse_blocks(blocks)
    if out is not None:
        report.require_matplotlib()
        out.mkdir(parents=True, exist_ok=True)
    with Bars() as bars:
        bars.begin(f"load {data}")
        dataset = load(data, data_dir, samples)
        bars.say(f"data: {dataset.name} from {dataset.source}")
        result = comparison.compare(
            dataset,
            model,
            methods=[method.strip() for method in methods.split(",")],
            sparsities=fractions,
            blocks=shapes,
            epochs=epochs,
            budget=seconds,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=lr,
            seed=seed,
            prune_batches=prune_batches,
            scope=scope,
            shuffled=shuffled,
            watcher=bars,
        )
    if out is not None:
        report.write(result, out)
    if as_json:
        typer.echo(json.dumps(result.to_dict()))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a log file need not fold the table at 80 columns
    for table in report.tables(result):
        console.print(table)
        console.print()
    console.print(report.facts(result), highlight=False, soft_wrap=True)
    if out is not None:
        console.print(f"results.json, table.md and curves.png are in {out}", highlight=False, soft_wrap=True)
