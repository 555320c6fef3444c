"""A comparison for people: tables for the terminal and for Markdown, and the files of ``compare --out``."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sparseprune.experiments.compare import Comparison, Run
from sparseprune.experiments.train import TrainResult

MEGA = 1e6

# Heading, and what a run shows under it; the line breaks let the table fit into 80 columns.
COLUMNS: dict[str, Callable[[Run], str]] = {
    "network": lambda run: run.label,
    "acc.\n%": lambda run: f"{100 * run.result.accuracy:.2f}",
    "epochs": lambda run: f"{run.result.epochs:.1f}",
    "ms/\nstep": lambda run: f"{1000 * run.result.step_seconds:.2f}",
    "prune\ns": lambda run: f"{run.prune_seconds:.2f}" if run.kind == "sparse" else "",
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


def tables(comparison: Comparison) -> list[Table]:
    """One rich table for each view."""
    made = []
    for title, runs in _views(comparison):
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column("network", min_width=14)
        for heading in list(COLUMNS)[1:]:
            table.add_column(heading, justify="right", no_wrap=True)
        for run in runs:
            style = {"dense": "bold", "small dense": "dim"}.get(run.kind)
            table.add_row(*(cell(run) for cell in COLUMNS.values()), style=style)
        made.append(table)
    return made


def markdown(comparison: Comparison) -> str:
    """The same tables in GitHub's Markdown, and what they depend on."""
    headings = [heading.replace("/\n", "/").replace("\n", " ") for heading in COLUMNS]
    lines = []
    for title, runs in _views(comparison):
        lines += [f"**{title}**", ""]
        lines += ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
        lines += ["| " + " | ".join(cell(run) for cell in COLUMNS.values()) + " |" for run in runs]
        lines.append("")
    return "\n".join([*lines, facts(comparison), "", LEGEND, ""])


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
        folder: an existing folder; files of these names are replaced.
    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from sparseprune.experiments.cli.plot import save_curves

    (folder / "results.json").write_text(json.dumps(comparison.to_dict(), indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(markdown(comparison), encoding="utf-8")
    save_curves(_views(comparison), headline(comparison), folder / "curves.png")


def require_matplotlib() -> None:
    """Raise ModuleNotFoundError now, rather than after minutes of training, where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            "compare: --out draws curves with matplotlib, which is not installed; pip install matplotlib"
        )


def _views(comparison: Comparison) -> list[tuple[str, list[Run]]]:
    """Title and runs of each view that was run."""
    epochs, seconds = comparison.settings["epochs"], comparison.settings["budget_seconds"]
    views = [(f"Equal epochs ({epochs})", [run for run in comparison.runs if run.view == "epochs"])]
    if seconds is not None:
        title = f"Equal wall-clock time ({seconds:.1f} s, pruning included)"
        views.append((title, [run for run in comparison.runs if run.view == "time"]))
    return views


def _training_bytes(result: TrainResult) -> int:
    return result.bytes["parameters"] + result.bytes["gradients"] + result.bytes["optimizer"]
