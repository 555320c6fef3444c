"""The demo as a whole, and the share on the tiles by hand."""

import itertools
import json

import pytest
import torch

pytest.importorskip("sklearn")

from sparseprune.experiments.data.mosaic import SIDE, mosaic
from sparseprune.experiments.mosaic.run import demo, on_tiles, tiles_of

TINY = {"samples": 60, "test_samples": 20}


def test_on_tiles_is_the_share_of_what_is_kept():
    kept = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    kept[86, 86] = 5  # first pixel of the middle tile
    kept[113, 113] = 4  # its last one
    kept[114, 113], kept[85, 90], kept[100, 114] = 1, 2, 3  # just outside of it
    assert on_tiles(kept.flatten(), [24]) == 9 / 15
    assert on_tiles(kept.flatten(), [24, 25]) == 12 / 15
    assert on_tiles(kept.flatten(), [0]) == 0
    assert on_tiles(torch.ones(SIDE * SIDE, dtype=torch.int64), [24]) == 784 / 40_000


def test_on_tiles_of_nothing_is_nothing():
    assert on_tiles(torch.zeros(SIDE * SIDE, dtype=torch.int64), [24]) == 0


def test_tiles_of_follows_the_task():
    assert tiles_of(samples=10) == [24]
    assert tiles_of(tile=3, informative=2)[0] == 3
    assert len(set(tiles_of(tile=3, informative=9))) == 9
    assert tiles_of(tile=24, task="same") == [24, 25]
    assert tiles_of(tile=48, task="same") == [48, 47]


def test_demo_trains_all_and_tells_where_they_look():
    ticks = itertools.count()
    found = demo(
        {**TINY, "tile": 10},
        methods=("random", "snip"),
        sparsity=0.98,
        epochs=2,
        width=0.02,
        batch_size=30,
        clock=lambda: float(next(ticks)),
    )
    labels = [run.label for run in found.comparison.runs]
    assert labels[0] == "dense"
    assert labels[-2:] == ["random 98 %", "snip 98 %"]
    assert list(found.on_tiles) == labels
    assert list(found.kept) == ["F-test 784 + small dense", "random 98 %", "snip 98 %"]
    assert found.on_tiles["dense"] == 784 / 40_000
    assert found.on_tiles["small convolutional"] is None
    for label, kept in found.kept.items():
        assert found.on_tiles[label] == on_tiles(kept, [10])
    assert {run.result.epochs for run in found.comparison.runs} == {2.0}
    assert torch.equal(found.sample, mosaic(**TINY, tile=10).train_x.values[0, 0])
    # The choice of the inputs and the pruning count.
    assert {run.kind for run in found.comparison.runs if run.prune_seconds > 0} == {"screened", "sparse"}
    content = json.loads(json.dumps(found.to_dict()))
    assert content["mosaic"] == {**TINY, "tile": 10, "tiles": [10]}
    assert content["settings"]["scopes"] == {"random": "layer", "snip": "global"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ("snip", "guess")}, "mosaic: expected methods of random, .*, got 'guess'"),
        ({"methods": ()}, "got 'none'"),
        ({"methods": ("snip", "snip")}, "mosaic: expected each method once, got snip, snip"),
        ({"sparsity": 1.0}, r"mosaic: expected a sparsity in \[0, 1\), got 1.0"),
        ({"epochs": 0}, "mosaic: expected epochs >= 1, got 0"),
        ({"width": 0.0}, "expected width > 0, got 0.0"),
    ],
)
def test_demo_refuses_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        demo(TINY, **arguments)
