"""A frontier for people: its table, what it depends on, and the files of ``frontier --out``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sparseprune.experiments.frontier.results import Record, passes
from sparseprune.experiments.frontier.statistics import statistics
from sparseprune.experiments.rewiring import EVERY, rewired_text
from sparseprune.experiments.tables import markdown, number, plus_minus
from sparseprune.experiments.tuning import grid
from sparseprune.format import files

FILES = ("table.md", "frontier.png")
PAGE = "frontier.html"  # see `sparseprune.experiments.frontier.page`


def difference(line: Any, name: str) -> str:
    """A mean difference in percentage points and its interval, "+0.42 [0.31, 0.55]"; nothing for NaN."""
    # Without the sign of a zero.
    mean, low, high = (round(100 * getattr(line, f"{name}{end}"), 2) + 0.0 for end in ("", "_low", "_high"))
    ends = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    return f"{number(mean, '+.2f')}{ends}"


# Headings and what a line of the statistics shows under them.
COLUMNS: dict[str, Callable[[Any], str]] = {
    "epochs": lambda line: str(line.epochs),
    "network": lambda line: line.network.method_text,
    "rule": lambda line: line.rule,
    "V": lambda line: str(line.network.block_rows or ""),
    "budget %": lambda line: f"{100 * line.flops:.4g}",
    "seeds": lambda line: str(len(line.seeds)),
    "accuracy %": lambda line: plus_minus(100 * line.accuracy, 100 * line.accuracy_std, ".2f"),
    "vs dense": lambda line: difference(line, "above_dense"),
    "vs small": lambda line: difference(line, "vs_small"),
    "vs random": lambda line: difference(line, "vs_random"),
    "total s": lambda line: plus_minus(line.seconds, line.seconds_std, ".1f"),
    "÷ dense": lambda line: number(line.vs_dense, ".2f"),
    "prune s": lambda line: f"{line.prune_seconds:.2f}" if line.kind == "sparse" else "",
    "FLOPs %": lambda line: f"{100 * line.flops_vs_dense:.2f}",
    "weights": lambda line: f"{line.weights:,.0f}",
    "lr": lambda line: f"{line.lr:.3g}{' (edge)' if line.at_edge else ''}",
}
# What 80 characters hold.
NARROW = ("epochs", "network", "rule", "V", "budget %", "accuracy %", "vs small", "total s")
WORDS = ("network", "rule")  # columns of words; the others hold numbers
LEGEND = (
    "After ± stands one standard deviation over the seeds. **Bold**: no other network is as accurate in as "
    "little time (by the means). budget: of the dense training FLOPs. vs dense: percentage points above "
    "dense of the same seed and epochs. vs small, vs random: percentage points above small dense networks, "
    "and above uniform random masks of single weights, of the same seed in the same total time, whatever "
    "their epochs (interpolated between the best in less time, dense being the largest; empty where they "
    "are all slower). In brackets: 95 % intervals of the mean difference, by the bootstrap over seeds "
    "(percentiles); of three seeds that is their range, which holds the true median three times in four. "
    "total s: pruning and training, evaluation and tuning excluded; ÷ dense: over that of dense; prune s: "
    "the part of pruning. FLOPs %: products of a training step, kept weights only, of dense."
)


def texts(table: pd.DataFrame) -> pd.DataFrame:
    """The table for people, of strings: without epochs and rates where these are all the same.

    Args:
        table: see `sparseprune.experiments.frontier.statistics.statistics`.
    """
    lines = list(table.itertuples())
    alike = {name for name in ("epochs", "lr") if table[name].nunique() == 1 and not table.at_edge.any()}
    shown = {heading: cell for heading, cell in COLUMNS.items() if heading not in alike}
    return pd.DataFrame({heading: [cell(line) for line in lines] for heading, cell in shown.items()})


def page(records: Sequence[Record]) -> str:
    """The table in GitHub's Markdown, and what it depends on."""
    table = statistics(records)
    cells = texts(table)
    cells[table.best] = cells[table.best].map(lambda text: text and f"**{text}**")
    parts = [f"**{headline(records)}**", markdown(cells, WORDS), facts(records[0]), *edges(table), LEGEND]
    return "\n\n".join([*parts, *rewired(records)]) + "\n"


def headline(records: Sequence[Record]) -> str:
    """Model, data and settings in a few words."""
    settings, threads = records[0].settings, records[0].machine["threads"]
    *shorter, longest = sorted({record.epochs for record in records})
    others = f"{', '.join(map(str, shorter))} and " if shorter else ""
    wide = f" {settings['width']:g}x wide" if "width" in settings else ""
    return (
        f"{settings['model']}{wide} on {settings['data']}, {others}{passes(longest)}, "
        f"batch {settings['batch_size']}, {threads} thread{'s' if threads > 1 else ''}"
    )


def facts(record: Record) -> str:
    """One line of what the figures depend on."""
    settings, machine = record.settings, record.machine
    return (
        f"{settings['train']:,} training and {settings['test']:,} test samples, {settings['optimizer']}, "
        f"lr {rates(settings)} with cosine decay to 0, {settings['prune_batches']} batches scored"
        f"{', weights that stay rescaled' if settings['rescale'] else ''}; "
        f"{machine['cpu']}, {machine['isa']}, torch {machine['torch']}, "
        f"sparseprune {machine['sparseprune']}, {machine['date']}."
    )


def rates(settings: Mapping[str, Any]) -> str:
    """The learning rate, or how it was tuned."""
    tuning = settings.get("tuning")
    if tuning is None:
        return f"{settings['lr']:g}"
    tried = grid(settings["lr"], tuning["factor"], tuning["trials"])
    at_most = f", {passes(tuning['epochs'])} at most" if tuning["epochs"] else ""
    return (
        f"tuned, {tuning['trials']} trials for each network ({', '.join(f'{rate:.2g}' for rate in tried)}; "
        f"{tuning['held_out']:,} training samples held out, one seed{at_most})"
    )


def edges(table: pd.DataFrame) -> list[str]:
    """A line that names the networks whose best rate is at the edge of those tried, if there are any."""
    count = table.at_edge.sum()
    if not count:
        return []
    names = [
        f"{point.name}{f' ({passes(epochs)})' if table.epochs.nunique() > 1 else ''}"
        for point, epochs in table[table.at_edge][["network", "epochs"]].itertuples(index=False)
    ]
    return [
        f"At the edge of the rates that were tried, so that one beyond may be better, is that of {count} of "
        f"{len(table)}: {'; '.join(names)}."
    ]


def rewired(records: Sequence[Record]) -> list[str]:
    """A line about the networks whose patterns moved, if there are any."""
    every = records[0].settings.get("rewire_every", EVERY)
    return rewired_text((record.point.rewire for record in records), every)


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
    save_frontier(statistics(records), headline(records), picture)
