"""``sparseprune compare``: dense, small dense and sparse networks side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from sparseprune.experiments.cli import inputs, options, tables
from sparseprune.experiments.cli.progress import Bars
from sparseprune.experiments.compare import run
from sparseprune.experiments.compare.results import Comparison
from sparseprune.experiments.compare.savings import TITLE, savings
from sparseprune.experiments.compare.verdict import verdict
from sparseprune.experiments.networks import PRUNE_BATCHES
from sparseprune.experiments.page import what_to_install
from sparseprune.experiments.rewiring import EVERY
from sparseprune.format import files


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 <= number < 1 for number in numbers):
        raise typer.BadParameter(f"expected numbers in [0, 1) with commas between, got {text!r}")
    return numbers


def _seconds(text: str | None) -> float | Literal["dense"] | None:
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
        Path | None,
        typer.Option("--out", help="Folder for results.json, table.md, curves.png and curves.html."),
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
        int,
        typer.Option(
            "--epochs", min=1, max=options.MOST, help="Passes over the data in the first view (equal epochs)."
        ),
    ] = 4,
    limit: Annotated[
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
    screen: Annotated[
        int | None,
        typer.Option(
            "--screen",
            min=1,
            max=options.MOST,
            metavar="INPUTS",
            help="Add, as a control, a dense perceptron on so many inputs, picked by the F-test beforehand.",
        ),
    ] = None,
    rewire: options.Rewire = None,
    every: options.RewireEvery = EVERY,
    scope: options.Scope = "global",
    prune_batches: options.PruneBatches = PRUNE_BATCHES,
    data: options.Data = "mnist5k",
    data_args: options.DataArgs = "{}",
    data_dir: options.DataDir = None,
    samples: options.Samples = None,
    model: options.Model = "wide_mlp",
    model_args: options.ModelArgs = "{}",
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

    A network of your own is compared with small dense ones where its function
    takes a keyword width=1.0, a factor of its channels and hidden features.
    """
    fractions, seconds, shapes = _numbers(sparsities), _seconds(limit), options.parse_blocks(blocks)
    inputs.require("compare", "pandas", *(["matplotlib", "tabulate"] if out is not None else []))
    # pandas takes half a second, which other commands need not spend.
    from sparseprune.experiments.compare import report

    if out is not None:
        for name in (*report.FILES, report.PAGE):
            files.check(out / name)
    with Bars() as bars:
        dataset, network = inputs.load(bars, data, data_dir, samples, model, model_args, data_args)
        result = run.compare(
            dataset,
            model,
            model_args=network.args,
            methods=[method.strip() for method in methods.split(",")],
            sparsities=fractions,
            blocks=shapes,
            epochs=epochs,
            seconds=seconds,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=lr,
            seed=seed,
            prune_batches=prune_batches,
            scope=scope,
            shuffled=shuffled,
            screen=screen,
            rewire=options.parse_rewire(rewire),
            every=every,
            watcher=bars,
        )
    try:
        if out is not None:
            report.write(result, out)
            if not what_to_install():
                from sparseprune.experiments.compare import page

                files.write(out / report.PAGE, page.html(result))
    finally:
        # Also where nothing could be written.
        _print(result, as_json)
    if out is not None and not as_json:
        tables.print_files(tables.console(width=120), report.FILES, report.PAGE, out)


def _print(result: Comparison, as_json: bool) -> None:
    from sparseprune.experiments.compare import report

    if as_json:
        typer.echo(json.dumps(result.to_dict()))
        return
    console = tables.console(width=120)
    for title, runs in report.views(result):
        styles = [{"dense": "bold", "small dense": "dim"}.get(run.kind) for run in runs]
        console.print(tables.rich_table(report.texts(runs), title, ["network"], styles))
        console.print()
    if lines := savings(result.runs):
        for line in (f"{TITLE}:", *(f"  {line}" for line in lines), ""):
            tables.print_line(console, line)
    for line in (report.facts(result), *report.rewired(result)):
        tables.print_line(console, line)
    if sentences := verdict(result.runs):
        console.print()
        tables.print_line(console, " ".join(sentences))
