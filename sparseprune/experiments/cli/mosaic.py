"""``sparseprune mosaic``: what pruning before training finds among 40,000 inputs, and what that is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sparseprune.experiments.cli import inputs, options, tables
from sparseprune.experiments.cli.progress import Bars
from sparseprune.experiments.data.mosaic import MOMENTS, TASKS
from sparseprune.experiments.mosaic import run
from sparseprune.experiments.mosaic.contenders import METHODS
from sparseprune.format import files

MOSAIC = "Mosaic"


def mosaic(
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for results.json, table.md and the pictures.")
    ] = None,
    methods: Annotated[str, typer.Option("--methods", help="Pruning methods, commas between.")] = ",".join(
        METHODS
    ),
    sparsity: Annotated[float, typer.Option("--sparsity", help="Fraction of the weights to remove.")] = 0.99,
    rescale: Annotated[
        bool,
        typer.Option(
            "--rescale/--no-rescale", help="Scale the weights that stay to the norm of all, by layer."
        ),
    ] = True,
    epochs: Annotated[
        int, typer.Option("--epochs", min=1, max=options.MOST, help="Passes over the data.")
    ] = run.EPOCHS,
    width: Annotated[
        float, typer.Option("--width", help="Factor of the networks' hidden features, above 0.")
    ] = 1.0,
    samples: Annotated[
        int, typer.Option("--samples", rich_help_panel=MOSAIC, help="Training samples.")
    ] = 5000,
    test_samples: Annotated[
        int, typer.Option("--test-samples", rich_help_panel=MOSAIC, help="Test samples.")
    ] = 2000,
    tile: Annotated[
        int,
        typer.Option(
            "--tile", rich_help_panel=MOSAIC, help="The tile that says the label, row by row from 0."
        ),
    ] = 24,
    informative: Annotated[
        int,
        typer.Option(
            "--informative", rich_help_panel=MOSAIC, help="Tiles that say the label, by the class of most."
        ),
    ] = 1,
    jitter: Annotated[
        int,
        typer.Option(
            "--jitter", rich_help_panel=MOSAIC, help="Pixels by which each tile's image may be moved."
        ),
    ] = 0,
    contrast: Annotated[
        float,
        typer.Option(
            "--contrast", rich_help_panel=MOSAIC, help="Factor of the gray values of informative tiles."
        ),
    ] = 1.0,
    task: Annotated[
        str,
        typer.Option(
            "--task",
            rich_help_panel=MOSAIC,
            help=f"{' or '.join(TASKS)}: the class of the tile, or whether it and the next show the same.",
        ),
    ] = "tile",
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            rich_help_panel=MOSAIC,
            help=f"What tiles show: {' or '.join(MOMENTS)}; the first that is there by default.",
        ),
    ] = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Show what pruning before training finds: on mosaics, one tile of 49 matters.

    The network 40000-1000-1000-1000-10 is pruned, and trained for as many epochs
    as its rivals: dense, small dense, small dense on inputs that an F-test picks,
    and a small convolutional network.

    The picture shows which pixels each first layer looks at before any training.
    """
    inputs.require("mosaic", "pandas", *(["matplotlib", "tabulate"] if out is not None else []))
    # pandas takes half a second, which other commands need not spend.
    from sparseprune.experiments.mosaic import report

    if out is not None:
        for name in report.FILES:
            files.check(out / name)
    with Bars() as bars:
        found = run.demo(
            {
                "samples": samples,
                "test_samples": test_samples,
                "tile": tile,
                "informative": informative,
                "jitter": jitter,
                "contrast": contrast,
                "task": task,
                "images": images,
            },
            methods=[method.strip() for method in methods.split(",")],
            sparsity=sparsity,
            epochs=epochs,
            rescale=rescale,
            width=width,
            seed=seed,
            watcher=bars,
        )
    try:
        if out is not None:
            report.write(found, out)
    finally:
        # Also where nothing could be written.
        _print(found, as_json)
    if out is not None and not as_json:
        typer.echo(f"{', '.join(report.FILES)} are in {tables.shown(out)}")


def _print(found: run.Demo, as_json: bool) -> None:
    from sparseprune.experiments.mosaic import report

    content = found.to_dict()
    if as_json:
        typer.echo(json.dumps(content))
        return
    console = tables.console(width=120)
    styles = [report.STYLES.get(run["kind"]) for run in content["runs"]]
    console.print(tables.rich_table(report.texts(content), report.title(content), ["network"], styles))
    console.print()
    tables.print_line(console, report.verdict(content))
    console.print()
    tables.print_line(console, report.facts(content))
