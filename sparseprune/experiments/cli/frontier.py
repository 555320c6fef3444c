"""``sparseprune frontier``: accuracy against measured time of dense, small dense and sparse networks."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from sparseprune.experiments import networks
from sparseprune.experiments.cli import inputs, options, tables
from sparseprune.experiments.cli.progress import Bars
from sparseprune.experiments.frontier import results, run
from sparseprune.experiments.frontier.points import ONE_SHOT, WIDEST, frontier_points
from sparseprune.experiments.frontier.rates import Tuning
from sparseprune.experiments.frontier.results import FILE, Record, passes
from sparseprune.experiments.frontier.rules import RULES
from sparseprune.experiments.networks import PRUNE_BATCHES
from sparseprune.experiments.page import what_to_install
from sparseprune.experiments.rewiring import EVERY
from sparseprune.format import files
from sparseprune.select.budget import EXPONENT

INTERRUPTED = 130  # exit code, as shells have it after Ctrl-C
WIDE = 200  # columns of a terminal that holds the whole table

T = TypeVar("T")


class TimeUp(KeyboardInterrupt):
    """The minutes that the user gave are over."""


class Limited(Bars):
    """Bars that raise TimeUp in a run or a trial, when their time is up."""

    def __init__(self, minutes: float | None) -> None:
        super().__init__()
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes

    def advance(self, part: float) -> None:
        """Set the bar of the current task to this part, 0 ... 1."""
        if time.monotonic() > self._end:
            raise TimeUp
        super().advance(part)


def _list(text: str, read: Callable[[str], T], what: str) -> list[T]:
    try:
        return [read(word.strip()) for word in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected {what} with commas between, got {text!r}") from None


def _seed(word: str) -> int:
    lowest, highest = options.SEEDS
    if not lowest <= int(word) <= highest:
        raise ValueError
    return int(word)


def _epochs(word: str) -> int:
    if not 1 <= int(word) <= options.MOST:
        raise ValueError
    return int(word)


def _tuning(trials: int | None, factor: float, epochs: int | None) -> Tuning | None:
    if trials is None and epochs is not None:
        raise typer.BadParameter("--tune-epochs: expected --tune, the number of trials, as well")
    return None if trials is None else Tuning(trials, factor, epochs)


def _known(text: str, known: Sequence[str], what: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in known]:
        raise typer.BadParameter(f"{what} {unknown[0]!r} is unknown; known are {', '.join(known)}")
    return words


def frontier(
    out: Annotated[
        Path,
        typer.Option(
            "--out", help=f"Folder for {FILE} (a line a run), table.md, frontier.png and frontier.html."
        ),
    ],
    flops: Annotated[
        str, typer.Option("--budgets", help="Fractions of the dense training FLOPs, commas between.")
    ] = "0.5,0.3,0.2,0.1,0.05",
    small: Annotated[
        str | None,
        typer.Option("--small-budgets", help="Those of the small dense networks, if they are others."),
    ] = None,
    methods: Annotated[
        str, typer.Option("--methods", help=f"Pruning methods, commas between: {', '.join(ONE_SHOT)}.")
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
        str, typer.Option("--exponents", help="Exponents of the rules cost and time, 0 to 1, commas between.")
    ] = f"{EXPONENT:g}",
    shuffled: Annotated[
        bool, typer.Option("--shuffled", help="Add, as a control, masks shuffled within their layers.")
    ] = False,
    widths: Annotated[
        str,
        typer.Option(
            "--widths",
            help="Prune networks so many times as wide, to the budgets of the original (rules uniform and "
            "erk alone), commas between: 1,2,4.",
        ),
    ] = "1",
    rewire: options.Rewire = None,
    every: options.RewireEvery = EVERY,
    seeds: Annotated[
        str, typer.Option("--seeds", help="Seeds, with one run of everything for each, commas between.")
    ] = "0,1,2",
    epochs: Annotated[
        str,
        typer.Option(
            "--epochs",
            help="Passes over the data of each run; with commas between, all of these lengths, the shortest "
            "first.",
        ),
    ] = "4",
    prune_batches: options.PruneBatches = PRUNE_BATCHES,
    rescale: Annotated[
        bool,
        typer.Option(
            "--rescale",
            help="Scale the weights that stay to the norm of all, layer by layer: the initial variance of "
            "random masks is then in proportion to 1 / density.",
        ),
    ] = False,
    data: options.Data = "mnist5k",
    data_args: options.DataArgs = "{}",
    data_dir: options.DataDir = None,
    samples: options.Samples = None,
    model: options.Model = "wide_mlp",
    model_args: options.ModelArgs = "{}",
    width: Annotated[
        float,
        typer.Option(
            "--width",
            min=0.01,
            max=WIDEST,
            rich_help_panel=options.INPUTS,
            help="Factor of the width of the network itself, dense too.",
        ),
    ] = 1.0,
    batch_size: options.BatchSize = 256,
    optimizer: options.OptimizerName = "adam",
    lr: options.LearningRate = None,
    tune: Annotated[
        int | None,
        typer.Option(
            "--tune",
            min=2,
            max=99,
            metavar="N",
            help="Tune the rate of each network by N trials on training samples that are held out: a grid, "
            "--lr is its middle.",
        ),
    ] = None,
    tune_factor: Annotated[
        float, typer.Option("--tune-factor", min=1.1, max=100, help="Ratio of neighbouring rates.")
    ] = 3.0,
    tune_epochs: Annotated[
        int | None,
        typer.Option(
            "--tune-epochs",
            min=1,
            max=options.MOST,
            help="Passes over the data of a trial, at most; by default as many as the run itself has.",
        ),
    ] = None,
    limit_minutes: Annotated[
        float | None, typer.Option("--limit-minutes", min=0.0, help="Stop after so long, as after Ctrl-C.")
    ] = None,
    threads: options.Threads = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing: table and plot of the runs in the folder.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """At equal training time, which network is the most accurate: dense, small dense, or which sparse one?

    Trains them all with several seeds, and draws accuracy against measured time,
    pruning included. Each finished run is saved at once; after Ctrl-C the same
    command goes on where it was. Another number of epochs, or other networks,
    are added to those in the folder.

    A network of your own is compared with small dense ones where its function
    takes a keyword width=1.0, a factor of its channels and hidden features.
    """
    points = frontier_points(
        flops=_list(flops, float, "numbers"),
        small=None if small is None else _list(small, float, "numbers"),
        methods=_known(methods, ONE_SHOT, "method"),
        rules=_known(rules, RULES, "rule"),
        block_rows=[rows for rows, _ in options.parse_blocks(blocks)],
        exponents=_list(exponents, float, "numbers"),
        shuffled=shuffled,
        widths=_list(widths, float, "numbers"),
        rewire=options.parse_rewire(rewire),
        seeds=_list(seeds, _seed, "whole numbers of 64 bits"),
    )
    lengths = sorted(set(_list(epochs, _epochs, "whole numbers above 0")))
    tuning = _tuning(tune, tune_factor, tune_epochs)
    inputs.require("frontier", "matplotlib", "pandas", "tabulate", *(["optuna"] if tuning else []))
    file = out / FILE
    interrupted = False
    # Pandas takes half a second, which other commands need not spend.
    from sparseprune.experiments.frontier import report

    with Limited(limit_minutes) as bars:
        if not report_only:
            dataset, network = inputs.load(bars, data, data_dir, samples, model, model_args, data_args)
            if not network.has_width:
                bars.say(networks.no_small_dense(network))
                points = [point for point in points if point.kind != "small dense"]
            for name in (FILE, *report.FILES, report.PAGE):
                files.check(out / name)
            try:
                for length in lengths:
                    if len(lengths) > 1:
                        bars.say(f"{passes(length)}:")
                    run.frontier(
                        dataset,
                        model,
                        points,
                        file,
                        model_args=network.args,
                        width=width,
                        epochs=length,
                        batch_size=batch_size,
                        optimizer=optimizer,
                        lr=lr,
                        tuning=tuning,
                        prune_batches=prune_batches,
                        rescale=rescale,
                        every=every,
                        watcher=bars,
                        warn=bars.say,
                    )
            except KeyboardInterrupt as stop:
                interrupted = True
                why = "time is up" if isinstance(stop, TimeUp) else "interrupted"
                bars.say(f"{why}; the same command goes on where this one stopped")
        records = results.read(file, warn=bars.say)
    if not records and not interrupted:
        raise ValueError(f"frontier: expected finished runs in {file}, found none; run without --report-only")
    if records:
        _report(records, out, as_json)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _report(records: Sequence[Record], folder: Path, as_json: bool) -> None:
    from sparseprune.experiments.frontier import report

    try:
        report.write(records, folder)
        if not what_to_install():
            from sparseprune.experiments.frontier import page

            files.write(folder / report.PAGE, page.html(records))
    finally:
        # Also where nothing could be written.
        _print(records, as_json)
    if not as_json:
        best = "bold: no other is as accurate in as little time"
        tables.print_files(tables.console(width=WIDE), [FILE, *report.FILES], report.PAGE, folder, best)


def _print(records: Sequence[Record], as_json: bool) -> None:
    from sparseprune.experiments.frontier import report, statistics

    table = statistics.statistics(records)
    if as_json:
        content = {"settings": records[0].settings, "machine": records[0].machine, "runs": len(records)}
        typer.echo(json.dumps({**content, "rows": statistics.to_dicts(table)}))
        return
    console = tables.console(width=WIDE)
    styles = ["bold" if best else None for best in table.best]
    headline = report.headline(records)
    texts = report.texts(table)
    if console.width < WIDE:
        texts = texts[[heading for heading in report.NARROW if heading in texts]]
    console.print(tables.rich_table(texts, headline, report.WORDS, styles, padding=1))
    for line in (report.facts(records[0]), *report.edges(table), *report.rewired(records)):
        tables.print_line(console, line)
