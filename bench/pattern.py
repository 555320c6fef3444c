"""The picture of docs/rewiring.md: where the first layer of a perceptron looks, before training and after.

python -m bench.pattern docs/rewiring.png    # and docs/rewiring-dark.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from torch import Tensor

import sparseprune as sp
from sparseprune.experiments import models
from sparseprune.experiments.data import load
from sparseprune.experiments.models import Network
from sparseprune.experiments.mosaic.theme import MARGIN, THEMES, WIDTH, Theme, blank, save
from sparseprune.experiments.rewiring import EVERY, REWIRE
from sparseprune.experiments.show.layers import pixels_of
from sparseprune.experiments.train import train

MODEL, SPARSITY, BATCH = "wide_mlp", 0.95, 256
# Inches.
PANEL, GAP, TOP, TITLE, BOTTOM = 1.88, 0.2, 0.72, 0.24, 0.72
COLOURS, SAMPLE = "inferno", "gray"


class Panel(NamedTuple):
    """A square of the picture: its title, the line below, and a number for each pixel."""

    title: str
    caption: str
    pixels: Tensor


def networks(data_name: str, epochs: int, every: int, seed: int) -> tuple[list[Panel], int]:
    """The masks of one random start, after each way to train; and how often they moved."""
    data = load(data_name)
    images = data.train_x
    assert isinstance(images, Tensor)
    network = Network(MODEL, data.sample, data.classes)
    model = models.build(network, seed)
    masks = sp.prune(
        model,
        [(images[:BATCH], data.train_y[:BATCH])],
        method="random",
        sparsity=SPARSITY,
        scope="erk",
        seed=seed,
    )

    def pixels(masks: dict[str, Tensor]) -> Tensor:
        found = pixels_of(masks, data.sample)
        assert found is not None
        return found

    moves, after = 0, []
    for rewire in (None, *reversed(REWIRE)):
        # All layers sparse: whether they are faster than dense ones does not matter here.
        sparse = sp.sparsify(model, masks, layers="sparse")
        result = train(sparse, data, epochs=epochs, batch_size=BATCH, seed=seed, rewire=rewire, every=every)
        accuracy = f"{100 * result.accuracy:.1f} % right"
        if rewire is None:
            after.append(Panel("before: random", f"{accuracy}, if it stays", pixels(masks)))
        else:
            moves = result.moves
            after.append(Panel(f"after {REWIRE[rewire]}", accuracy, pixels(sp.masks_from_zeros(sparse))))
    sample = images.std(0).reshape(data.sample).sum(0)
    return [Panel("the data", "how much each pixel varies", sample), *after], moves


def draw(panels: Sequence[Panel], headline: str, note: str, path: Path, theme: Theme) -> None:
    height = TOP + TITLE + PANEL + BOTTOM
    figure = blank(height, theme, headline, note)
    scale = Normalize(0, max(int(panel.pixels.max()) for panel in panels[1:]))
    left = MARGIN + 0.02
    for i, panel in enumerate(panels):
        place = (left / WIDTH, BOTTOM / height, PANEL / WIDTH, PANEL / height)
        axes = figure.add_axes(place)
        colours = {"cmap": COLOURS, "norm": scale} if i else {"cmap": SAMPLE}
        axes.imshow(panel.pixels.numpy(), interpolation="nearest", **colours)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=theme.line, linewidth=0.5)
        axes.set_title(panel.title, color=theme.text, fontsize=9.6, weight="bold", loc="left", pad=4)
        axes.set_xlabel(panel.caption, color=theme.text, fontsize=8.4, loc="left", labelpad=4)
        left += PANEL + GAP
    place = (0.62, 0.22 / height, 0.36, 0.1 / height)
    bar = figure.colorbar(
        ScalarMappable(scale, COLOURS), cax=figure.add_axes(place), orientation="horizontal"
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=theme.text, length=2, pad=2)
    figure.text(
        0.61,
        0.27 / height,
        "first-layer weights kept per pixel",
        color=theme.text,
        fontsize=8.4,
        ha="right",
        va="center",
    )
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="PNG for light pages; -dark is added to the name of the other")
    parser.add_argument("--data", default="mnist5k")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--every", type=int, default=EVERY, help="steps from one move to the next")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    panels, moves = networks(given.data, given.epochs, given.every, given.seed)
    headline = "Where a first layer looks: as many weights as before, moved while it was trained"
    note = (
        f"784-1024-1024-10 on {given.data}, {100 * SPARSITY:g} % sparse, {given.epochs} epochs, one seed; "
        f"moved {moves} times, every {given.every} steps"
    )
    for theme in THEMES:
        draw(panels, headline, note, given.out.with_stem(f"{given.out.stem}{theme.suffix}"), theme)


if __name__ == "__main__":
    main()
