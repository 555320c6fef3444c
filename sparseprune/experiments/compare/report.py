"""A comparison for people: its tables, what they depend on, and the files of ``compare --out``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from sparseprune.experiments.compare.results import Comparison, Run
from sparseprune.experiments.compare.savings import TITLE, savings
from sparseprune.experiments.compare.verdict import verdict
from sparseprune.experiments.rewiring import EVERY, rewired_text
from sparseprune.experiments.tables import markdown
from sparseprune.experiments.train import TrainResult
from sparseprune.format import files

MEGA = 1e6
PRUNED = ("sparse", "screened")  # kinds of networks that something is chosen for before training
FILES = ("results.json", "table.md", "curves.png")
PAGE = "curves.html"  # see `sparseprune.experiments.compare.page`

# Headings and what a run shows under them; the line breaks let the table fit into 80 columns.
COLUMNS: dict[str, Callable[[Run], str]] = {
    "network": lambda run: run.label,
    "acc.\n%": lambda run: f"{100 * run.result.accuracy:.2f}",
    "epochs": lambda run: f"{run.result.epochs:.1f}",
    "ms/\nstep": lambda run: f"{1000 * run.result.step_seconds:.2f}",
    "prune\ns": lambda run: f"{run.prune_seconds:.2f}" if run.kind in PRUNED else "",
    "total\ns": lambda run: f"{run.total_seconds:.1f}",
    "÷\ndense": lambda run: f"{run.time_vs_dense:.2f}",
    "weights": lambda run: f"{run.weights:,}",
    "MB": lambda run: f"{_training_bytes(run.result) / MEGA:.2f}",
    "index\nMB": lambda run: f"{run.result.bytes['buffers'] / MEGA:.2f}",
    "MFLOP/\nstep": lambda run: f"{run.flops_per_step / MEGA:,.0f}",
}
LEGEND = (
    "acc.: test accuracy. ms/step: median, data included. total s: pruning and training, evaluation "
    "excluded; ÷ dense: over that of dense. MB (10^6 bytes): parameters, gradients and optimizer state; "
    "index MB: pattern and plans of the sparse layers, or masks, and what batch-norm keeps. MFLOP/step: "
    "products of one step, kept weights only."
)


def texts(runs: Sequence[Run]) -> pd.DataFrame:
    """The table of one view for people, of strings."""
    return pd.DataFrame({heading: list(map(cell, runs)) for heading, cell in COLUMNS.items()})


def page(comparison: Comparison) -> str:
    """All of it in GitHub's Markdown: tables, what was saved, what figures depend on, and the verdict."""
    parts = []
    for title, runs in views(comparison):
        table = texts(runs).rename(columns=lambda text: text.replace("/\n", "/").replace("\n", " "))
        parts += [f"**{title}**", markdown(table, ["network"])]
    if saved := savings(comparison.runs):
        parts += [f"**{TITLE}**", "\n".join(f"- {line}" for line in saved)]
    advice = [" ".join(sentences)] if (sentences := verdict(comparison.runs)) else []
    return "\n\n".join([*parts, facts(comparison), LEGEND, *rewired(comparison), *advice]) + "\n"


def views(comparison: Comparison) -> list[tuple[str, list[Run]]]:
    """Title and runs of each view that was run."""
    epochs, seconds = comparison.settings["epochs"], comparison.settings["budget_seconds"]
    found = [(f"Equal epochs ({epochs})", [run for run in comparison.runs if run.view == "epochs"])]
    if seconds is not None:
        title = f"Equal wall-clock time ({seconds:.1f} s, pruning included)"
        found.append((title, [run for run in comparison.runs if run.view == "time"]))
    return found


def facts(comparison: Comparison) -> str:
    """One line of what the figures depend on."""
    data, settings, machine = comparison.data, comparison.settings, comparison.machine
    return (
        f"{headline(comparison)}; {data['train']:,} training and {data['test']:,} test samples "
        f"from {data['source']}; "
        f"{settings['optimizer']}, lr {settings['lr']:g}, seed {settings['seed']}, "
        f"{settings['prune_batches']} batches scored, scope {settings['scope']}; "
        f"{machine['cpu']}, {machine['isa']}, torch {machine['torch']}, "
        f"sparseprune {machine['sparseprune']}, {machine['date']}."
    )


def rewired(comparison: Comparison) -> list[str]:
    """A line about the networks whose patterns moved, if there are any."""
    every = comparison.settings.get("rewire_every", EVERY)
    return rewired_text((run.method for run in comparison.runs), every)


def headline(comparison: Comparison) -> str:
    """Data, model, batch size and threads, in a few words."""
    threads = comparison.machine["threads"]
    return (
        f"{comparison.model['name']} on {comparison.data['name']}, "
        f"batch {comparison.settings['batch_size']}, {threads} thread{'s' if threads > 1 else ''}"
    )


def write(comparison: Comparison, folder: Path) -> None:
    """Write results.json, table.md and curves.png.

    Args:
        comparison: what to report.
        folder: it is made if need be; files of these names are replaced.
    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    from sparseprune.experiments.compare.plot import save_curves

    results, table, curves = (folder / name for name in FILES)
    files.write(results, json.dumps(comparison.to_dict(), indent=1) + "\n")
    files.write(table, page(comparison))
    save_curves(views(comparison), headline(comparison), curves)


def _training_bytes(result: TrainResult) -> int:
    return result.bytes["parameters"] + result.bytes["gradients"] + result.bytes["optimizer"]
