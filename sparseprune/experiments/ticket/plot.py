"""Accuracy and time of a training step against the sparsity of a lottery ticket, as a PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from sparseprune.experiments.ticket.results import Kind, Run, Search
from sparseprune.format import files

# Okabe and Ito's colours: people with colour blindness can tell them apart.
LOOKS: dict[Kind, dict[str, Any]] = {
    "ticket": {"label": "ticket", "color": "#0072B2", "marker": "o", "linewidth": 2, "zorder": 3},
    "re-initialised": {"label": "same masks, other weights", "color": "#D55E00", "marker": "s"},
    "shuffled": {"label": "shuffled masks, same weights", "color": "#009E73", "marker": "^"},
}
MOST_LABELS = 11  # that a panel's axis has room for


def save_ticket(found: Search, headline: str, path: Path) -> None:
    """Draw accuracy against sparsity, controls beside the ticket, and the time of a step against sparsity.

    Rounds stand at equal distances: each removes the same part of what is left.

    Args:
        found: runs of one round at least.
        headline: title of the figure.
        path: PNG to write.
    """
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, seconds = figure.subplots(1, 2)
    rounds = found.of_kind("ticket")
    dense = rounds[0].result
    for kind, look in LOOKS.items():
        if runs := found.of_kind(kind):
            values = [100 * run.result.accuracy for run in runs]
            accuracy.plot([run.round for run in runs], values, markersize=4, **look)
    accuracy.axhline(100 * dense.accuracy, color="black", linestyle="--", linewidth=1, label="dense")
    accuracy.set_ylabel("test accuracy (%)")
    accuracy.set_title("each ticket and controls of the same sparsity", fontsize=9)
    accuracy.legend(frameon=False, fontsize=9, loc="best")

    milliseconds = [1000 * run.result.step_seconds for run in rounds]
    seconds.plot([run.round for run in rounds], milliseconds, markersize=4, **LOOKS["ticket"])
    seconds.axhline(milliseconds[0], color="black", linestyle="--", linewidth=1)
    for i in _labelled(rounds)[1:]:
        seconds.annotate(
            f"{milliseconds[0] / milliseconds[i]:.2g}×",
            (rounds[i].round, milliseconds[i]),
            textcoords="offset points",
            xytext=(0, 7),
            ha="center",
            fontsize=8,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
    seconds.set_ylabel("milliseconds per training step")
    seconds.set_title("numbers: speed-up over dense", fontsize=9)
    seconds.set_ylim(0, 1.15 * max(milliseconds))
    for panel in (accuracy, seconds):
        _sparsity_axis(panel, rounds)
    figure.suptitle(headline, fontsize=11)
    figure.savefig(picture := io.BytesIO(), format="png")
    files.write(path, picture.getvalue())


def _labelled(rounds: Sequence[Run]) -> list[int]:
    """Which rounds have room for a text, the first among them."""
    return list(range(0, len(rounds), math.ceil(len(rounds) / MOST_LABELS)))


def _sparsity_axis(panel: Axes, rounds: Sequence[Run]) -> None:
    shown = [rounds[i] for i in _labelled(rounds)]
    panel.set_xticks([run.round for run in shown], [_percent(run.sparsity) for run in shown])
    panel.set_xlabel("sparsity (% of the weights removed)")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def _percent(sparsity: float) -> str:
    """With digits enough to tell the last rounds apart: "36", "89.3", "98.85"."""
    return f"{100 * sparsity:.{0 if sparsity < 0.8 else 1 if sparsity < 0.985 else 2}f}"
