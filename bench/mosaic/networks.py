"""The networks of the points, and which of a mosaic's pixels their first layers look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from bench.mosaic.points import CONV, HIDDEN, PRUNED, SCREENED, TOLD, Point, Setting, Size
from sparseprune.experiments import networks
from sparseprune.experiments.data import Dataset, FirstBatches
from sparseprune.experiments.data.inputs import Stored
from sparseprune.experiments.data.mosaic import SIDE, TILE, informative_tiles, tile_box
from sparseprune.experiments.data.screening import screened
from sparseprune.experiments.models import Network
from sparseprune.experiments.mosaic.contenders import CONV as CONV_MODEL
from sparseprune.experiments.mosaic.contenders import MODEL, Made, pruned
from sparseprune.experiments.networks import PRUNE_BATCHES

MIDDLE = 24  # the tile that says the label


class OnTiles(NamedTuple):
    """Share of the kept first-layer weights on informative tiles, and how well their number tells pixels."""

    share: float
    auc: float


def make(
    point: Point, data: Dataset, setting: Setting, size: Size, seed: int, clock: Callable[[], float]
) -> Made:
    """A network for a mosaic.

    Args:
        point: what to make.
        data: the mosaic.
        setting: what the mosaic was made from, for the network that is told the tiles.
        size: how wide, and how large batches are.
        seed: seed of initial weights, random masks and of the choice of the samples that are scored.
        clock: function that returns seconds.
    """
    if point.kind == PRUNED:
        return _pruned(point, data, size, seed, clock)
    start = clock()
    chosen, view = torch.arange(data.features), None
    if point.kind == SCREENED:
        assert point.inputs is not None
        view, chosen = screened(data, point.inputs)
    elif point.kind == TOLD:
        chosen = informative_pixels(setting)
        train_x, test_x = data.train_x, data.test_x
        assert isinstance(train_x, Stored)
        assert isinstance(test_x, Stored)
        view = dataclasses.replace(data, train_x=train_x.columns(chosen), test_x=test_x.columns(chosen))
    # Whoever is told the tile has nothing to search for.
    seconds = clock() - start if point.kind == SCREENED else 0.0
    name, hidden = (CONV_MODEL, HIDDEN) if point.kind == CONV else (MODEL, point.hidden)
    network = Network(name, (view or data).sample, data.classes, width=size.width * hidden / HIDDEN)
    contender = dataclasses.replace(
        networks.dense(network, seed), label=point.label, kind=point.kind, prune_seconds=seconds, data=view
    )
    if point.kind == CONV:
        return Made(contender, None)
    kept = torch.zeros(data.features, dtype=torch.int64)
    # As many for every input; their number is of no interest.
    kept[chosen] = 1
    return Made(contender, kept)


def _pruned(point: Point, data: Dataset, size: Size, seed: int, clock: Callable[[], float]) -> Made:
    assert point.method is not None
    assert point.sparsity is not None
    made = pruned(
        Network(MODEL, data.sample, data.classes, width=size.width),
        _scored(data, PRUNE_BATCHES * size.batch_size, size.batch_size, seed),
        point.method,
        point.sparsity,
        rescale=point.rescaled,
        batch_size=size.batch_size,
        seed=seed,
        clock=clock,
    )
    return made._replace(contender=dataclasses.replace(made.contender, label=point.label, kind=point.kind))


def _scored(data: Dataset, count: int, batch_size: int, seed: int) -> FirstBatches:
    """The batches that score weights: of so many training samples, or of all where there are fewer."""
    order = torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(seed))[:count]
    some = dataclasses.replace(data, train_x=data.train_x[order], train_y=data.train_y[order])
    return FirstBatches(some, batch_size, seed)


def informative_pixels(setting: Setting) -> Tensor:
    """Indices of the pixels, in a flattened mosaic, of the tiles that say the label; rising."""
    tiles = informative_tiles(MIDDLE, setting.informative, setting.task)
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    for top, left in map(tile_box, tiles):
        inside[top : top + TILE, left : left + TILE] = True
    return inside.flatten().nonzero().squeeze(1)


def on_tiles(kept: Tensor, pixels: Tensor) -> OnTiles:
    """How far kept weights look at informative pixels.

    Args:
        kept: first-layer weights that each pixel keeps, (pixels of the mosaic,).
        pixels: indices of the informative ones; not all of them.
    Returns:
        share, 0 ... 1, and the area under the ROC curve of the numbers as scores; 0.5 where all are alike.
    """
    inside = torch.zeros(len(kept), dtype=torch.bool)
    inside[pixels] = True
    return OnTiles(float(kept[inside].sum() / kept.sum()), float(roc_auc_score(inside, kept)))
