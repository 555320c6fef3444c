"""Train the networks of the demo, and see how much of each first layer looks at the informative tiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparseprune.cost import machine
from sparseprune.experiments.compare.results import Comparison
from sparseprune.experiments.compare.run import train_contenders
from sparseprune.experiments.data.inputs import Scaled
from sparseprune.experiments.data.mosaic import SIDE, TILE, informative_tiles, mosaic, tile_box
from sparseprune.experiments.mosaic.contenders import METHODS, MODEL, SCOPES, make_all
from sparseprune.experiments.optimizers import OPTIMIZERS
from sparseprune.experiments.watcher import Watcher
from sparseprune.scores import METHODS as KNOWN

OPTIMIZER = "adam"
EPOCHS = 4  # the whole demo takes two to four minutes then
CONTROLS = 5  # networks beside the pruned ones


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        comparison: the runs, and what they depend on.
        mosaic: arguments of the data, and "tiles", the informative ones.
        on_tiles: label -> share of the kept first-layer weights that look at the informative tiles; None of
            the convolutional network, which looks everywhere.
        kept: label -> kept first-layer weights per pixel, (200, 200), of networks that look at a choice.
        sample: gray values of the first training sample, uint8, (200, 200).
    """

    comparison: Comparison
    mosaic: dict[str, Any]
    on_tiles: dict[str, float | None]
    kept: dict[str, Tensor]
    sample: Tensor

    def to_dict(self) -> dict[str, Any]:
        """All but the pictures, as plain dictionaries and lists for JSON."""
        return {**self.comparison.to_dict(), "mosaic": self.mosaic, "on_tiles": self.on_tiles}


def demo(
    arguments: dict[str, Any],
    *,
    methods: Sequence[str] = METHODS,
    sparsity: float = 0.99,
    epochs: int = EPOCHS,
    rescale: bool = True,
    width: float = 1.0,
    batch_size: int = 256,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    watcher: Watcher | None = None,
) -> Demo:
    """Make a mosaic, prune the article's network on it, and train it beside its rivals, at equal epochs.

    Args:
        arguments: keyword arguments of `sparseprune.experiments.data.mosaic.mosaic`, but for its seed.
        methods, sparsity, rescale, width, batch_size: see `make_all`.
        epochs: passes over the data.
        seed: seed of mosaic, initial weights, random masks and order of the samples.
        clock: function that returns seconds; replaced in tests.
        watcher: listener that is told of the progress.
    Returns:
        the runs, dense first, and where the first layers look.
    Raises:
        ValueError: a setting is out of range, or pruning fails.
        FileNotFoundError, ModuleNotFoundError: there are no images to make mosaics of.
    """
    if not methods or (unknown := [method for method in methods if method not in KNOWN]):
        raise ValueError(
            f"mosaic: expected methods of {', '.join(KNOWN)}, got {unknown[0] if methods else 'none'!r}"
        )
    if len(set(methods)) < len(methods):
        raise ValueError(f"mosaic: expected each method once, got {', '.join(methods)}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"mosaic: expected a sparsity in [0, 1), got {sparsity}")
    if epochs < 1:
        raise ValueError(f"mosaic: expected epochs >= 1, got {epochs}")
    watcher = watcher or Watcher()
    watcher.begin("make the mosaic", 1, 1)
    data = mosaic(**arguments, seed=seed)
    assert isinstance(data.train_x, Scaled)
    watcher.say(f"data: {data.name} of {data.source}")
    tiles = tiles_of(**arguments)
    first_tasks = 1 + len(methods)
    made = make_all(
        data,
        len(tiles) * TILE * TILE,
        methods=methods,
        sparsity=sparsity,
        rescale=rescale,
        width=width,
        batch_size=batch_size,
        seed=seed,
        clock=clock,
        watcher=watcher,
        task_count=first_tasks + CONTROLS + len(methods),
    )
    runs = train_contenders(
        data,
        [one.contender for one in made],
        epochs=epochs,
        batch_size=batch_size,
        optimizer=OPTIMIZER,
        seed=seed,
        clock=clock,
        watcher=watcher,
        done=first_tasks,
    )
    looks = {one.contender.label: (one.contender.kind, one.kept) for one in made}
    return Demo(
        Comparison(
            data=data.facts(),
            model={"name": MODEL, "weights": made[0].contender.weights, "width": width},
            settings={
                "epochs": epochs,
                "batch_size": batch_size,
                "optimizer": f"{OPTIMIZERS[OPTIMIZER].text}, cosine decay to 0",
                "seed": seed,
                "sparsity": sparsity,
                "scopes": {method: SCOPES.get(method, "global") for method in methods},
                "rescale": rescale,
            },
            machine=machine.facts(),
            runs=runs,
        ),
        mosaic={**arguments, "tiles": tiles},
        on_tiles={
            label: None if kept is None else on_tiles(kept, tiles) for label, (_, kept) in looks.items()
        },
        kept={
            label: kept.view(SIDE, SIDE)
            for label, (kind, kept) in looks.items()
            if kept is not None and kind in ("screened", "sparse")
        },
        sample=data.train_x.values[0].view(SIDE, SIDE),
    )


def tiles_of(tile: int = 24, informative: int = 1, task: str = "tile", **_: Any) -> list[int]:
    """Indices of the tiles that say the label, by arguments of `mosaic`."""
    return informative_tiles(tile, informative, task)


def on_tiles(kept: Tensor, tiles: Sequence[int]) -> float:
    """Share of kept first-layer weights that look at some tiles.

    Args:
        kept: kept weights per pixel of a mosaic, (200 * 200,).
        tiles: indices of tiles.
    Returns:
        the share, 0 ... 1.
    """
    pixels = kept.view(SIDE, SIDE)
    boxes = [tile_box(tile) for tile in tiles]
    inside = sum(int(pixels[top : top + TILE, left : left + TILE].sum()) for top, left in boxes)
    return inside / max(int(pixels.sum()), 1)
