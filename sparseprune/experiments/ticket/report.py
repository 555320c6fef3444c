"""A lottery ticket for people: its table, what it depends on, and the files of ``ticket --out``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sparseprune.experiments.tables import markdown
from sparseprune.experiments.ticket.results import FILE, Kind, Search
from sparseprune.format import files

FILES = (FILE, "table.md", "ticket.png")
LEGEND = (
    "round: number of prunings before the training; 0 is the dense network. s: time of the training, "
    "evaluation excluded. ms/step: median, data included; speed-up: over that of round 0, dense in torch's "
    "default memory format. other weights: test accuracy of the same masks on new initial weights; shuffled: "
    "of the ticket's weights with as many places kept in each layer, anywhere in it; both trained alike."
)


def texts(found: Search) -> pd.DataFrame:
    """The table for people, of strings: a line for each round."""
    rounds = found.of_kind("ticket")
    table = pd.DataFrame(
        {
            "round": [str(run.round) for run in rounds],
            "sparsity %": [f"{100 * run.sparsity:.1f}" for run in rounds],
            "weights": [f"{run.weights:,}" for run in rounds],
            "accuracy %": [f"{100 * run.result.accuracy:.2f}" for run in rounds],
            "s": [f"{run.result.seconds:.1f}" for run in rounds],
            "ms/step": [f"{1000 * run.result.step_seconds:.2f}" for run in rounds],
            "speed-up": [f"{rounds[0].result.step_seconds / run.result.step_seconds:.2f}×" for run in rounds],
        }
    )
    kinds: dict[Kind, str] = {"re-initialised": "other weights %", "shuffled": "shuffled %"}
    for kind, heading in kinds.items():
        accuracy = {run.round: f"{100 * run.result.accuracy:.2f}" for run in found.of_kind(kind)}
        if accuracy:
            table[heading] = [accuracy.get(run.round, "") for run in rounds]
    return table


def page(found: Search) -> str:
    """The table in GitHub's Markdown, and what it depends on."""
    return "\n\n".join([f"**{headline(found)}**", markdown(texts(found), []), facts(found), LEGEND]) + "\n"


def headline(found: Search) -> str:
    """Model, data and settings in a few words."""
    settings, threads = found.settings, found.machine["threads"]
    rewind = settings["rewind"]
    return (
        f"Lottery ticket of {found.model['name']} on {found.data['name']}"
        f"{f' from step {rewind}' if rewind else ''}, {settings['epochs']} "
        f"epoch{'s' if settings['epochs'] > 1 else ''}, batch {settings['batch_size']}, "
        f"{threads} thread{'s' if threads > 1 else ''}"
    )


def facts(found: Search) -> str:
    """One line of what the figures depend on."""
    data, settings, machine = found.data, found.settings, found.machine
    return (
        f"Each round removes {100 * settings['fraction']:.4g} % of the weights that are left, the smallest "
        f"after training; {data['train']:,} training and {data['test']:,} test samples from "
        f"{data['source']}; {settings['optimizer']}, lr {settings['lr']:g}, seed {settings['seed']}; "
        f"{machine['cpu']}, {machine['isa']}, torch {machine['torch']}, "
        f"sparseprune {machine['sparseprune']}, {machine['date']}."
    )


def write(found: Search, folder: Path) -> None:
    """Write table.md and ticket.png beside the results.

    Args:
        found: runs of one round at least.
        folder: files of these names are replaced.
    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    from sparseprune.experiments.ticket.plot import save_ticket

    _, table, picture = (folder / name for name in FILES)
    files.write(table, page(found))
    save_ticket(found, headline(found), picture)
