"""A frontier for people: its table, what it depends on, and the files of ``frontier --out``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sparseprune.experiments.frontier.results import Record
from sparseprune.experiments.frontier.statistics import statistics
from sparseprune.experiments.tables import markdown, number, plus_minus
from sparseprune.format import files

FILES = ("table.md", "frontier.png")
# Headings and what a line of the statistics shows under them.
COLUMNS: dict[str, Callable[[Any], str]] = {
    "network": lambda line: line.network.method_text,
    "rule": lambda line: line.rule,
    "V": lambda line: str(line.network.block_rows or ""),
    "budget %": lambda line: f"{100 * line.flops:.4g}",
    "seeds": lambda line: str(len(line.seeds)),
    "accuracy %": lambda line: plus_minus(100 * line.accuracy, 100 * line.accuracy_std, ".2f"),
    "vs small": lambda line: plus_minus(100 * line.vs_small, 100 * line.vs_small_std, "+.2f"),
    "vs random": lambda line: plus_minus(100 * line.vs_random, 100 * line.vs_random_std, "+.2f"),
    "total s": lambda line: plus_minus(line.seconds, line.seconds_std, ".1f"),
    "÷ dense": lambda line: number(line.vs_dense, ".2f"),
    "prune s": lambda line: f"{line.prune_seconds:.2f}" if line.kind == "sparse" else "",
    "FLOPs %": lambda line: f"{100 * line.flops_vs_dense:.2f}",
    "weights": lambda line: f"{line.weights:,.0f}",
}
NARROW = ("network", "rule", "V", "budget %", "accuracy %", "vs small", "total s")  # what 80 characters hold
WORDS = ("network", "rule")  # columns of words; the others hold numbers
LEGEND = (
    "After ± stands one standard deviation over the seeds. **Bold**: no other network is as accurate in as "
    "little time (by the means). budget: of the dense training FLOPs. vs small, vs random: percentage points "
    "above small dense networks, and above uniform random masks of single weights, of the same seed in the "
    "same total time (interpolated between their budgets, dense being the largest; empty where they are all "
    "slower). total s: pruning and training, evaluation excluded; ÷ dense: over that of dense; prune s: the "
    "part of pruning. FLOPs %: products of a training step, kept weights only, of dense."
)


def texts(table: pd.DataFrame) -> pd.DataFrame:
    """The table for people, of strings.

    Args:
        table: see `sparseprune.experiments.frontier.statistics.statistics`.
    """
    lines = list(table.itertuples())
    return pd.DataFrame({heading: [cell(line) for line in lines] for heading, cell in COLUMNS.items()})


def page(records: Sequence[Record]) -> str:
    """The table in GitHub's Markdown, and what it depends on."""
    table = statistics(records)
    cells = texts(table)
    cells[table.best] = cells[table.best].map(lambda text: text and f"**{text}**")
    parts = (f"**{headline(records[0])}**", markdown(cells, WORDS), facts(records[0]), LEGEND)
    return "\n\n".join(parts) + "\n"


def headline(record: Record) -> str:
    """Model, data and settings in a few words."""
    settings, threads = record.settings, record.machine["threads"]
    epochs = settings["epochs"]
    return (
        f"{settings['model']} on {settings['data']}, {epochs} epoch{'s' if epochs > 1 else ''}, "
        f"batch {settings['batch_size']}, {threads} thread{'s' if threads > 1 else ''}"
    )


def facts(record: Record) -> str:
    """One line of what the figures depend on."""
    settings, machine = record.settings, record.machine
    return (
        f"{settings['train']:,} training and {settings['test']:,} test samples, {settings['optimizer']}, "
        f"lr {settings['lr']:g} with cosine decay to 0, {settings['prune_batches']} batches scored"
        f"{', weights that stay rescaled' if settings['rescale'] else ''}; "
        f"{machine['cpu']}, {machine['isa']}, torch {machine['torch']}, "
        f"sparseprune {machine['sparseprune']}, {machine['date']}."
    )


def write(records: Sequence[Record], folder: Path) -> None:
    """Write table.md and frontier.png.

    Args:
        records: one at least.
        folder: it is made if need be; files of these names are replaced.
    Raises:
        OSError: a file cannot be written.
    """
    from sparseprune.experiments.frontier.plot import save_frontier

    table, picture = (folder / name for name in FILES)
    files.write(table, page(records))
    save_frontier(statistics(records), headline(records[0]), picture)
