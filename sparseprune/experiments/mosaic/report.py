"""The demo for people: its table, verdict, curves and pictures, from what results.json holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sparseprune.experiments.data.mosaic import TILE, TILES, tile_box
from sparseprune.experiments.mosaic.run import Demo
from sparseprune.experiments.tables import markdown
from sparseprune.format import files

MEGA = 1e6
PICTURES = ("curves.png", "curves-dark.png", "mosaic.png", "mosaic-dark.png")
FILES = ("results.json", "table.md", *PICTURES)
HELD = ("parameters", "gradients", "optimizer", "buffers")

# Of a run's line in the terminal, by its kind.
STYLES = {"dense": "bold", "small dense": "dim", "conv": "dim", "screened": "dim"}
# A run as results.json has it.
Run = Mapping[str, Any]
# Headings and what a run shows under them; the line breaks let the table fit into 80 columns.
COLUMNS: dict[str, Callable[[Run], str]] = {
    "network": lambda run: str(run["label"]),
    "acc.\n%": lambda run: percent(run["result"]["accuracy"]),
    "on the\ntile %": lambda run: "" if run["on_tiles"] is None else f"{100 * run['on_tiles']:.0f}",
    "select\ns": lambda run: f"{run['prune_seconds']:.1f}" if run["prune_seconds"] else "",
    "ms/\nstep": lambda run: f"{1000 * run['result']['step_seconds']:.1f}",
    "total\ns": lambda run: f"{run['total_seconds']:.1f}",
    "÷\ndense": lambda run: f"{run['time_vs_dense']:.2f}",
    "weights": lambda run: f"{run['weights']:,}",
    "MB": lambda run: f"{sum(run['result']['bytes'][part] for part in HELD) / MEGA:.1f}",
}
LEGEND = (
    "on the tile: share of the first layer's kept weights that look at informative tiles. select s: pruning, "
    "or choosing inputs. ms/step: median, data included. total s: selection and training, evaluation "
    "excluded; ÷ dense: over that of dense. MB (10^6 bytes): what training holds, indices included."
)


def percent(part: float) -> str:
    """0.8496 as "85.0"."""
    return f"{100 * part:.1f}"


def runs_of(content: Mapping[str, Any]) -> list[Run]:
    """The runs of results.json, each with its share on the tiles."""
    return [{**run, "on_tiles": content["on_tiles"][run["label"]]} for run in content["runs"]]


def texts(content: Mapping[str, Any]) -> pd.DataFrame:
    """The table for people, of strings."""
    return pd.DataFrame({heading: list(map(cell, runs_of(content))) for heading, cell in COLUMNS.items()})


def table(content: Mapping[str, Any]) -> str:
    """The table in GitHub's Markdown, and what it depends on."""
    found = texts(content).rename(columns=lambda text: text.replace("/\n", "/").replace("\n", " "))
    return "\n\n".join([markdown(found, ["network"]), facts(content)])


def page(content: Mapping[str, Any]) -> str:
    """All that table.md holds."""
    return "\n\n".join([f"**{title(content)}**", table(content), LEGEND, verdict(content)]) + "\n"


def title(content: Mapping[str, Any]) -> str:
    """What was trained, in a line."""
    tiles, epochs = len(content["mosaic"]["tiles"]), content["settings"]["epochs"]
    return (
        f"{content['model']['name']} on mosaics in which {tiles} of {TILES} tiles "
        f"{'say' if tiles > 1 else 'says'} the label, {_count(epochs, 'epoch')}"
    )


def facts(content: Mapping[str, Any]) -> str:
    """One line of what the figures depend on."""
    data, settings, machine = content["data"], content["settings"], content["machine"]
    labels: dict[float, list[str]] = {}
    for run in content["runs"]:
        labels.setdefault(run["lr"], []).append(run["label"])
    rates = "; ".join(
        f"lr {rate:g}" + (f" for {', '.join(of)}" if len(labels) > 1 else "") for rate, of in labels.items()
    )
    layerwise = [method for method, scope in settings["scopes"].items() if scope == "layer"]
    return (
        f"{data['train']:,} training and {data['test']:,} test mosaics of {data['source']}; "
        f"batch {settings['batch_size']}, {settings['optimizer']}; {rates}; "
        "the last layer keeps all weights; "
        f"{'weights that stay are rescaled; ' if settings['rescale'] else ''}"
        f"{' and '.join(layerwise) + ' within each layer; ' if layerwise else ''}"
        f"{machine['cpu']}, {_count(machine['threads'], 'thread')}, {machine['isa']}, "
        f"torch {machine['torch']}, sparseprune {machine['sparseprune']}, {machine['date']}."
    )


def verdict(content: Mapping[str, Any]) -> str:
    """What the figures say: the best pruned network against its rivals, where it looks, and the control."""
    runs = runs_of(content)
    dense, small, screened, conv, sparse = (
        max((run for run in runs if run["kind"] == kind), key=_accuracy)
        for kind in ("dense", "small dense", "screened", "conv", "sparse")
    )
    return (
        f"{sparse['label']}, the most accurate of the pruned networks, reaches "
        f"{percent(_accuracy(sparse))} %: {_against(sparse, dense)} dense, in {_time(sparse)} with pruning "
        f"included, {_against(sparse, small)} {small['label']}, and {_against(sparse, conv)} the small "
        f"convolutional network. Before the first training step {100 * sparse['on_tiles']:.0f} % of its "
        f"first layer's weights looked at what matters, of dense's {100 * dense['on_tiles']:.0f} %. "
        "An F-test that is told how many inputs matter, and a small dense network on these, reach "
        f"{percent(_accuracy(screened))} % in {_time(screened)}."
    )


def write(found: Demo, folder: Path) -> None:
    """Write results.json, table.md, and the pictures for light and for dark pages.

    Args:
        found: what to report.
        folder: it is made if need be; files of these names are replaced.
    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    from sparseprune.experiments.mosaic import curves, picture
    from sparseprune.experiments.mosaic.theme import FIGURE_SPACE, THEMES

    content = found.to_dict()
    files.write(folder / "results.json", json.dumps(content, indent=1) + "\n")
    files.write(folder / "table.md", page(content))
    runs = {run["label"]: run for run in runs_of(content)}
    panels = [
        picture.Panel(
            label,
            f"{percent(_accuracy(runs[label]))} % accuracy\n"
            f"{100 * runs[label]['on_tiles']:.0f} % of {int(kept.sum()):,} weights",
            kept,
        )
        for label, kept in found.kept.items()
    ]
    boxes = [tile_box(tile) for tile in content["mosaic"]["tiles"]]
    epochs = content["settings"]["epochs"]
    note = (
        f"The label depends on the {TILE * TILE * len(boxes):,} framed pixels of 40,000, and no network is "
        f"told which. Below each panel: test accuracy after\n{_count(epochs, 'epoch')}, and the part of the "
        f"first layer's kept weights that look into the frame{'s' if len(boxes) > 1 else ''}."
    )
    aside = "beside them, on all pixels:\n" + "\n".join(
        f"{percent(_accuracy(run)).rjust(5, FIGURE_SPACE)} %  {label}"
        for label, run in runs.items()
        if label not in found.kept
    )
    for theme in THEMES:
        curves.save_curves(
            runs_of(content),
            "Accuracy against wall-clock time",
            title(content),
            folder / f"curves{theme.suffix}.png",
            theme,
        )
        picture.save_picture(
            found.sample,
            panels,
            boxes,
            "Where the first layer looks, before a single training step",
            note,
            aside,
            folder / f"mosaic{theme.suffix}.png",
            theme,
        )


def _accuracy(run: Run) -> float:
    return float(run["result"]["accuracy"])


def _against(run: Run, other: Run) -> str:
    points = 100 * (_accuracy(run) - _accuracy(other))
    return f"{abs(points):.1f} points {'above' if points >= 0 else 'below'}"


def _time(run: Run) -> str:
    return f"{run['time_vs_dense']:.2f} of dense's time"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
