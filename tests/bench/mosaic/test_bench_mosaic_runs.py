import itertools
import re

import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytest.importorskip("optuna")

from bench import ledger
from bench.mosaic import run as one_run
from bench.mosaic import timing
from bench.mosaic.experiment import key_of, perform
from bench.mosaic.networks import informative_pixels, on_tiles
from bench.mosaic.points import BASE, FTEST, SAME, SMALL, SNIP, TOLD_POINT, TUNED, Point, Run, Setting, Size
from bench.mosaic.run import TUNING_SEED, Work
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.data.inputs import Scaled

TINY = Size(steps=2, passes=1, batch_size=32, test=32, validation=32, width=0.004, samples=64, trials=2)
FIELDS = {
    "accuracy",
    "lr",
    "trials",
    "at_edge",
    "epochs",
    "steps",
    "prune_seconds",
    "train_seconds",
    "step_seconds",
    "wall_seconds",
    "weights",
    "on_tile",
    "auc",
    "source",
}


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """Mosaics that take no time: noise, but for a middle tile that is as bright as the label says.

    Returns the arguments of each that was made.
    """
    calls = []

    def mosaic(samples, test_samples, *, seed, **fields):
        calls.append({"samples": samples, "test_samples": test_samples, "seed": seed, **fields})
        order = torch.Generator().manual_seed(seed)
        parts = []
        for count in (samples, test_samples):
            y = torch.arange(count) % 2
            x = torch.randint(0, 100, (count, 1, 200, 200), dtype=torch.uint8, generator=order)
            x[:, :, 86:114, 86:114] += (100 * y).to(torch.uint8).view(-1, 1, 1, 1)
            parts += [Scaled(x, 0.3, 0.3), y]
        return Dataset("mosaic", "a test", *parts)

    monkeypatch.setattr(one_run, "mosaic", mosaic)
    return calls


@pytest.fixture
def work(tmp_path):
    return Work(TINY, tmp_path / "rates.log")


def test_informative_pixels_are_those_of_the_tiles():
    pixels = informative_pixels(BASE)
    assert len(pixels) == 784
    assert (int(pixels[0]), int(pixels[-1])) == (86 * 200 + 86, 113 * 200 + 113)
    assert len(informative_pixels(SAME)) == 2 * 784
    assert len(informative_pixels(Setting(informative=49))) == 49 * 784
    assert set(pixels.tolist()) < set(informative_pixels(Setting(informative=2)).tolist())


def test_on_tiles_is_the_share_of_weights_and_the_auc_of_pixels():
    kept = torch.tensor([3, 1, 0, 0])
    assert on_tiles(kept, torch.tensor([0])) == (0.75, 1.0)
    # Of the pairs of an informative pixel and another, one is in the right order, one wrong, two are ties.
    assert on_tiles(torch.tensor([2, 0, 0, 0]), torch.tensor([0, 1])) == (1.0, 0.75)
    assert on_tiles(torch.ones(4), torch.tensor([1])) == (0.25, 0.5)


@pytest.mark.parametrize("point", TUNED, ids=lambda point: point.label)
def test_make_makes_every_network(work, point):
    contender, kept = work.make(TINY.cut(BASE), 0, point)
    data = work.data(TINY.cut(BASE), 0)
    view = contender.data or data
    assert contender.label == point.label
    assert contender.make()(view.train_x[:3].dense()).shape == (3, 2)
    assert (contender.prune_seconds > 0) == (point.kind in ("pruned", "screened"))
    if point.kind == "conv":
        assert kept is None
        return
    assert kept.shape == (40_000,)
    if point in (SNIP, FTEST, TOLD_POINT):
        # The tile's brightness is all that there is to see; of all pixels it has 2 %.
        assert on_tiles(kept, informative_pixels(BASE)).share > 0.5
    if point.kind == "pruned":
        whole = work.make(TINY.cut(BASE), 0, Point("dense")).contender.weights
        assert contender.weights == pytest.approx((1 - point.sparsity) * whole, rel=0.01)


def test_told_sees_the_pixels_of_its_tiles_alone(work):
    view = work.make(TINY.cut(BASE), 0, TOLD_POINT).contender.data
    data = work.data(TINY.cut(BASE), 0)
    assert view.sample == (784,)
    assert torch.equal(view.test_x.dense().view(-1, 28, 28), data.test_x.dense()[:, 0, 86:114, 86:114])


def test_rates_are_tuned_once_on_training_images_of_another_seed(work, made, monkeypatch):
    tuned = work.rate(Setting(jitter=3), SMALL[0])
    assert list(tuned.trials) == TINY.rates(SMALL[0])
    # The base's, whatever the setting; 64 to train on, 32 held out, and what is no part of either.
    assert [(call["jitter"], call["samples"], call["seed"]) for call in made] == [(0, 96, TUNING_SEED)]
    monkeypatch.setattr(one_run, "train", None)
    assert work.rate(BASE, SMALL[0]) == tuned
    assert len(made) == 1


def test_perform_does_what_has_no_line_and_then_nothing(tmp_path, monkeypatch):
    file, rates = tmp_path / "tuned.jsonl", tmp_path / "rates.log"
    runs = [Run(BASE, 0, SMALL[0]), Run(BASE, 0, SNIP), Run(BASE, 1, Point("conv"))]
    said = []
    assert perform(runs, file, rates, size=TINY, say=said.append)
    rows = ledger.read(file)
    assert [row["key"] for row in rows] == [key_of(run, TINY) for run in runs]
    assert {frozenset(row["result"]) for row in rows} == {frozenset(FIELDS)}
    results = [row["result"] for row in rows]
    assert [result["steps"] for result in results] == [2, 2, 2]
    assert [result["on_tile"] is None for result in results] == [False, False, True]
    assert results[0]["on_tile"] == pytest.approx(784 / 40_000)
    assert said[-1].startswith("3/3 base, seed 1: small convolutional: ")
    monkeypatch.setattr(one_run, "train", None)
    said.clear()
    assert perform(runs, file, rates, size=TINY, say=said.append)
    assert (ledger.read(file), said) == (rows, [])


def test_perform_stops_where_the_time_is_over(tmp_path):
    file, rates = tmp_path / "tuned.jsonl", tmp_path / "rates.log"
    runs = [Run(BASE, seed, SMALL[0]) for seed in (0, 1)]
    ticks = itertools.count(step=10.0)
    said = []
    options = {"size": TINY, "say": said.append, "clock": lambda: next(ticks)}
    # Within the tuning: one trial is kept.
    assert not perform(runs, file, rates, seconds=100, **options)
    assert said[-1] == "stopped before base, seed 0: small dense, h = 20; the same command goes on"
    assert not file.exists()
    assert perform(runs[:1], file, rates, seconds=10_000, **options)
    # Before a run that took longer with another seed than what is left.
    assert not perform(runs, file, rates, seconds=30, **options)
    assert re.match(r"stopped before base, seed 1", said[-1])
    assert len(ledger.read(file)) == 1


def test_timing_is_one_line_of_all_networks(tmp_path, monkeypatch):
    file = tmp_path / "time.jsonl"
    monkeypatch.setattr("bench.steps.ROUNDS", 2)
    points = (Point("dense"), FTEST, SNIP)
    said = []
    timing.perform(file, size=TINY, points=points, say=said.append)
    ((row),) = ledger.read(file)
    networks = row["result"]["networks"]
    assert list(networks) == [point.label for point in points]
    for point, found in zip(points, networks.values(), strict=True):
        assert len(found["steps"]) == 2
        assert min(found["steps"]) <= found["step_seconds"] <= max(found["steps"])
        assert len(found["prunings"]) == timing.PRUNINGS
        assert (found["prune_seconds"] > 0) == (point.kind != "dense")
    timing.perform(file, size=TINY, points=points, say=said.append)
    assert said[-1].endswith("has the times already; delete their line to measure them again")
    assert len(ledger.read(file)) == 1
