"""``sparseprune ticket``: the lottery ticket of a network, round by round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sparseprune.experiments.cli import inputs, options, tables
from sparseprune.experiments.cli.progress import Bars
from sparseprune.experiments.ticket import run
from sparseprune.experiments.ticket.results import Search
from sparseprune.format import files


def ticket(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for results.json, table.md, ticket.png, and all that is needed to go on."
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=options.MOST, help="Number of prunings.")
    ] = 10,
    fraction: Annotated[
        float, typer.Option("--fraction", help="Part of the remaining weights that each round removes.")
    ] = 0.2,
    rewind: Annotated[
        int,
        typer.Option(
            "--rewind",
            min=0,
            max=options.MOST,
            metavar="STEPS",
            help="Set the weights back to what they were after so many steps; 0 is the start.",
        ),
    ] = 0,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls/--no-controls",
            help="Train each round's masks also on other initial weights, and shuffled within their layers.",
        ),
    ] = True,
    epochs: Annotated[
        int, typer.Option("--epochs", min=1, max=options.MOST, help="Passes over the data in each training.")
    ] = 4,
    data: options.Data = "mnist5k",
    data_args: options.DataArgs = "{}",
    data_dir: options.DataDir = None,
    samples: options.Samples = None,
    model: options.Model = "lenet_300_100",
    model_args: options.ModelArgs = "{}",
    batch_size: options.BatchSize = 256,
    optimizer: options.OptimizerName = "adam",
    lr: options.LearningRate = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Find a lottery ticket: train, remove the smallest weights, set the others back, and again.

    The later rounds train on sparse kernels. With --out each finished training
    is saved at once; after Ctrl-C or a kill the same command goes on with the
    next one, also with more --rounds.
    """
    inputs.require("ticket", "pandas", *(["matplotlib", "tabulate"] if out is not None else []))
    # pandas takes half a second, which other commands need not spend.
    from sparseprune.experiments.ticket import report

    if out is not None:
        for name in report.FILES:
            files.check(out / name)
    with Bars() as bars:
        dataset, network = inputs.load(bars, data, data_dir, samples, model, model_args, data_args)
        found = run.search(
            dataset,
            model,
            model_args=network.args,
            rounds=rounds,
            fraction=fraction,
            rewind=rewind,
            controls=controls,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=lr,
            seed=seed,
            folder=out,
            watcher=bars,
        )
    try:
        if out is not None:
            report.write(found, out)
    finally:
        # Also where nothing could be written.
        _print(found, as_json)
    if out is not None and not as_json:
        typer.echo(f"{', '.join(report.FILES[:-1])} and {report.FILES[-1]} are in {tables.shown(out)}")


def _print(found: Search, as_json: bool) -> None:
    from sparseprune.experiments.ticket import report

    if as_json:
        typer.echo(json.dumps(found.to_dict()))
        return
    console = tables.console(width=120)
    texts = report.texts(found)
    styles = ["bold" if number == "0" else None for number in texts["round"]]
    console.print(tables.rich_table(texts, report.headline(found), [], styles, padding=1))
    tables.print_line(console, report.facts(found))
