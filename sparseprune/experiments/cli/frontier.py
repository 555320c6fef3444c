"""``sparseprune frontier``: accuracy against measured time of dense, small dense and sparse networks."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparseprune.experiments import compare as comparison
from sparseprune.experiments.cli import options
from sparseprune.experiments.cli.progress import Bars
from sparseprune.experiments.data import load
from sparseprune.experiments.frontier import results as frontier_results
from sparseprune.experiments.frontier import run as library
from sparseprune.experiments.frontier import table as frontier_table
from sparseprune.experiments.frontier.results import FILE, Record
from sparseprune.experiments.frontier.rules import RULES
from sparseprune.experiments.frontier.table import HEADS, TEXTS
from sparseprune.scores import METHODS
from sparseprune.select import budget as within

INTERRUPTED = 130  # exit code, as shells have it after Ctrl-C

T = TypeVar("T")


def _list(text: str, read: Callable[[str], T], what: str) -> list[T]:
    try:
        return [read(word.strip()) for word in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected {what} with commas between, got {text!r}") from None


def _known(text: str, known: Sequence[str], what: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in known]:
        raise typer.BadParameter(f"{what} {unknown[0]!r} is unknown; known are {', '.join(known)}")
    return words


def frontier(
    out: Annotated[
        Path, typer.Option("--out", help=f"Folder for {FILE} (a line a run), table.md and frontier.png.")
    ],
    budgets: Annotated[
        str, typer.Option("--budgets", help="Fractions of the dense training FLOPs, commas between.")
    ] = "0.5,0.3,0.2,0.1,0.05",
    methods: Annotated[
        str, typer.Option("--methods", help=f"Pruning methods, commas between: {', '.join(METHODS)}.")
    ] = "random,snip,grasp",
    rules: Annotated[
        str,
        typer.Option(
            "--rules",
            help="How a budget is divided among layers, commas between: uniform (one density), erk "
            "(Erdos-Renyi-kernel densities), global (one ranking of all scores), cost (a ranking of "
            "score / FLOPs^exponent), time (of score / measured seconds^exponent, as long as uniform takes).",
        ),
    ] = ",".join(RULES),
    blocks: Annotated[
        str, typer.Option("--blocks", help="Rows of the blocks that are kept or removed, commas between.")
    ] = "1,4",
    exponents: Annotated[
        str, typer.Option("--exponents", help="Of the rules cost and time, 0 to 1, commas between.")
    ] = f"{within.EXPONENT:g}",
    shuffled: Annotated[
        bool, typer.Option("--shuffled", help="Add, as a control, masks shuffled within their layers.")
    ] = False,
    seeds: Annotated[
        str, typer.Option("--seeds", help="One run of everything for each, commas between.")
    ] = "0,1,2",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data of each run.")] = 4,
    prune_batches: options.PruneBatches = comparison.PRUNE_BATCHES,
    rescale: Annotated[
        bool,
        typer.Option("--rescale", help="Scale the weights that stay to the norm of all, layer by layer."),
    ] = False,
    data: options.Data = "mnist5k",
    data_dir: options.DataDir = None,
    samples: options.Samples = None,
    model: options.Model = "wide_mlp",
    batch_size: options.BatchSize = 256,
    optimizer: options.OptimizerName = "adam",
    lr: options.LearningRate = None,
    threads: options.Threads = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing: table and plot of the runs in the folder.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """At equal training time, which network is the most accurate: dense, small dense, or which sparse one?

    Trains them all with several seeds, and draws accuracy against measured time (pruning included).
    Each finished run is saved at once; after Ctrl-C the same command goes on where it was.
    """
    points = library.frontier_points(
        budgets=_list(budgets, float, "numbers"),
        methods=_known(methods, list(METHODS), "method"),
        rules=_known(rules, RULES, "rule"),
        block_rows=[rows for rows, _ in options.parse_blocks(blocks)],
        exponents=_list(exponents, float, "numbers"),
        shuffled=shuffled,
        seeds=_list(seeds, int, "whole numbers"),
    )
    _require_matplotlib()
    file = out / FILE
    interrupted = False
    with Bars() as bars:
        if not report_only:
            out.mkdir(parents=True, exist_ok=True)
            bars.begin(f"load {data}")
            dataset = load(data, data_dir, samples)
            bars.say(f"data: {dataset.name} from {dataset.source}")
            try:
                library.frontier(
                    dataset,
                    model,
                    points,
                    file,
                    epochs=epochs,
                    batch_size=batch_size,
                    optimizer=optimizer,
                    lr=lr,
                    prune_batches=prune_batches,
                    rescale=rescale,
                    watcher=bars,
                    warn=bars.say,
                )
            except KeyboardInterrupt:
                interrupted = True
                bars.say("interrupted; the same command goes on where this one stopped")
        records = frontier_results.read(file, warn=bars.say)
    if not records and not interrupted:
        raise ValueError(f"frontier: expected finished runs in {file}, found none; run without --report-only")
    if records:
        _report(records, out, as_json)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def write(records: Sequence[Record], folder: Path) -> None:
    """Write table.md and frontier.png.

    Args:
        records: one at least.
        folder: an existing folder; files of these names are replaced.
    """
    from sparseprune.experiments.cli.frontier_plot import save_frontier

    (folder / "table.md").write_text(frontier_table.markdown(records), encoding="utf-8")
    headline = frontier_table.headline(records[0])
    save_frontier(frontier_table.rows(records), headline, folder / "frontier.png")


def _report(records: Sequence[Record], folder: Path, as_json: bool) -> None:
    write(records, folder)
    if as_json:
        rows: list[dict[str, Any]] = [dataclasses.asdict(row) for row in frontier_table.rows(records)]
        for row in rows:
            del row["point"]["seed"]
        content = {"settings": records[0].settings, "machine": records[0].machine, "runs": len(records)}
        typer.echo(json.dumps({**content, "rows": rows}))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a log file need not fold the table at 80 columns
    console.print(_table(records))
    console.print(frontier_table.facts(records[0]), highlight=False, soft_wrap=True)
    console.print(
        f"{FILE}, table.md and frontier.png are in {folder}; bold: no other is as accurate in as little time",
        highlight=False,
        soft_wrap=True,
    )


def _table(records: Sequence[Record]) -> Table:
    title = frontier_table.headline(records[0])
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for i, heading in enumerate(HEADS):
        table.add_column(heading, justify="left" if i < TEXTS else "right", no_wrap=i >= TEXTS)
    for row in frontier_table.rows(records):
        table.add_row(*frontier_table.cells(row), style="bold" if row.best else None)
    return table


def _require_matplotlib() -> None:
    """Raise ModuleNotFoundError now, rather than after hours of training, where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            "frontier: draws its results with matplotlib, which is not installed; pip install matplotlib"
        )
