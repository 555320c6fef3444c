"""Patterns that move in experiments: train, compare and frontier with rewire, and their commands."""

import copy
import json
import re

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("pandas")

from test_frontier import SETTINGS, measured, record
from typer.testing import CliRunner

import sparseprune as sp
from sparseprune.experiments import models
from sparseprune.experiments.cli import mask_file
from sparseprune.experiments.cli.app import app
from sparseprune.experiments.compare import report as compare_report
from sparseprune.experiments.compare import run as comparing
from sparseprune.experiments.compare.run import compare
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.frontier import report, results
from sparseprune.experiments.frontier.points import Point, frontier_points
from sparseprune.experiments.frontier.rates import SEED, Tuning
from sparseprune.experiments.frontier.results import Record
from sparseprune.experiments.frontier.run import frontier
from sparseprune.experiments.frontier.statistics import statistics
from sparseprune.experiments.train import TrainResult, train
from sparseprune.experiments.watcher import Watcher


@pytest.fixture
def data():
    """Three clouds: 60 samples to train (4 steps of 16), 30 to test."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = 3 * torch.eye(3).repeat(1, 4)[y] + 0.5 * torch.randn(90, 12, generator=generator)
    return Dataset("clouds", "this test", x[:60], y[:60], x[60:], y[60:])


class Ticks:
    """A clock on which a second passes whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


class Log(Watcher):
    """Keeps the number of each task, and of all."""

    def __init__(self):
        self.begun = []

    def begin(self, task, number, count):
        self.begun.append((number, count))


def dense_net():
    with models.seeded(0):
        return models.mlp((12, 32, 3))


def sparse_net():
    model = dense_net()
    masks = sp.prune(model, method="random", sparsity=0.75, scope="layer")
    # A sparse layer and a masked one.
    first, last = masks
    return sp.sparsify(model, masks, layers={first: "sparse", last: "dense"})


def counts(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


# train


@pytest.mark.parametrize("rewire", ["rigl", "set"])
def test_train_moves_the_pattern_and_keeps_the_number_of_weights(data, rewire):
    first, again = sparse_net(), sparse_net()
    before = sp.masks_from_zeros(first)
    options = {"epochs": 10, "batch_size": 16, "rewire": rewire, "every": 5, "seed": -3}
    result = train(first, data, **options)
    after = sp.masks_from_zeros(first)
    assert counts(after) == counts(before)
    assert all((after[name] != before[name]).any() for name in before)
    # Of 40 steps the first 30 may: 5, 10, ..., 25.
    assert result.moves == 5
    train(again, data, **options)
    assert same(after, sp.masks_from_zeros(again))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))


def test_train_leaves_patterns_alone_that_need_not_move(data):
    model = sparse_net()
    before = sp.masks_from_zeros(model)
    assert train(model, data, epochs=2, batch_size=16).moves == 0
    assert same(before, sp.masks_from_zeros(model))


@pytest.mark.parametrize("rewire", ["rigl", "set"])
def test_a_run_of_seconds_moves_as_one_of_epochs_of_as_many_steps(data, rewire):
    timed, counted = sparse_net(), sparse_net()
    options = {"batch_size": 16, "rewire": rewire, "every": 5}
    result = train(timed, data, seconds=40, clock=Ticks(), **options)
    expected = train(counted, data, epochs=10, **options)
    assert (result.steps, result.moves) == (expected.steps, expected.moves) == (40, 5)
    assert all(torch.equal(p, q) for p, q in zip(timed.parameters(), counted.parameters(), strict=True))
    assert same(sp.masks_from_zeros(timed), sp.masks_from_zeros(counted))


def test_the_time_of_a_move_counts(data, monkeypatch):
    clock, step = Ticks(), sp.Rewire.step

    def slow(self):
        clock.now += 100.0
        step(self)

    monkeypatch.setattr(sp.Rewire, "step", slow)
    result = train(sparse_net(), data, epochs=2, batch_size=16, rewire="set", every=5, clock=clock)
    assert result.seconds == 8 * 101


def test_a_run_from_a_later_step_moves_where_the_whole_one_does(data):
    model = sparse_net()
    before = sp.masks_from_zeros(model)
    options = {"epochs": 10, "batch_size": 16, "rewire": "rigl", "every": 5}
    assert train(model, data, start=11, stop=14, **options).moves == 0
    assert same(before, sp.masks_from_zeros(model))
    assert train(model, data, start=14, stop=16, **options).moves == 1
    assert not same(before, sp.masks_from_zeros(model))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (dense_net, {}, "expected a model with sparse or masked layers"),
        (sparse_net, {"rewire": "deepr"}, "rewire: expected a method of rigl, set, got 'deepr'"),
        (sparse_net, {"every": 0}, r"rewire: expected every >= 1 \(steps\), got 0"),
        (
            sparse_net,
            {"every": 30},
            "got 40 steps, of which the first 30 may, and a move every 30; train for lo",
        ),
    ],
)
def test_train_refuses_what_cannot_move(data, make, arguments, message):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        train(model, data, **{"epochs": 10, "batch_size": 16, "rewire": "rigl", "every": 5, **arguments})
    assert same(before, model.state_dict())


# compare


def test_compare_starts_what_moves_with_the_masks_of_random(data, monkeypatch):
    started = []

    def spy(model, *rest, **options):
        started.append((options["rewire"], sp.masks_from_zeros(model)))
        return train(model, *rest, **options)

    monkeypatch.setattr(comparing, "train", spy)
    log = Log()
    result = compare(
        data,
        "lenet_300_100",
        methods=["random"],
        sparsities=[0.75],
        blocks=[(4, 1)],
        scope="erk",
        rewire=["set", "rigl"],
        every=5,
        epochs=10,
        seconds=40,
        batch_size=16,
        clock=Ticks(),
        watcher=log,
    )
    labels = ["random 75 % 4x1", "SET 75 % 4x1", "RigL 75 % 4x1"]
    for view in ("epochs", "time"):
        runs = [run for run in result.runs if run.view == view][2:]
        assert [run.label for run in runs] == labels
        assert [run.method for run in runs] == ["random", "SET", "RigL"]
        assert [run.result.moves for run in runs] == [0, 5, 5]
        assert len({run.weights for run in runs}) == 1
    assert [how for how, _ in started] == 2 * [None, None, None, "set", "rigl"]
    assert all(same(started[2][1], masks) for i in (3, 4, 7, 8, 9) for masks in [started[i][1]])
    assert result.settings["rewire_every"] == 5
    page = compare_report.page(result)
    assert "RigL and SET: random masks that move every 5 steps, 30 % of the weights at first" in page
    json.dumps(result.to_dict(), allow_nan=False)
    # Pruned once, and trained five times in each view.
    assert log.begun == [(number, 11) for number in range(1, 12)]


def test_compare_needs_no_random_masks_that_stay(data):
    log = Log()
    result = compare(
        data,
        "lenet_300_100",
        methods=["magnitude"],
        sparsities=[0.75],
        rewire=["rigl"],
        every=2,
        epochs=1,
        batch_size=16,
        watcher=log,
    )
    assert [run.label for run in result.runs[2:]] == ["magnitude 75 %", "RigL 75 %"]
    assert [run.result.moves for run in result.runs] == [0, 0, 0, 1]
    assert log.begun == [(number, 6) for number in range(1, 7)]


def test_compare_refuses_runs_without_a_move_before_it_prunes(data, monkeypatch):
    monkeypatch.setattr(sp, "prune", lambda *_, **__: pytest.fail("pruned"))
    with pytest.raises(ValueError, match=r"once at least, got 8 steps, of which the first 6 may, and a move"):
        compare(data, "lenet_300_100", epochs=2, batch_size=16, rewire=["rigl"])


# frontier


def test_points_that_move_are_those_of_random_masks_again():
    options = {"flops": [0.1], "block_rows": [1], "seeds": [0], "rules": ["uniform", "global", "cost"]}
    without = frontier_points(**options, methods=["random", "snip"], widths=[1, 2])
    points = frontier_points(**options, methods=["random", "snip"], widths=[1, 2], rewire=["rigl", "set"])
    random = [point for point in without if point.method == "random"]
    assert len(random) == 3
    moving = [Point(**{**vars(point), "rewire": how}) for how in ("rigl", "set") for point in random]
    assert points == [*without, *moving]
    assert [point.label for point in moving[:3]] == [
        "RigL uniform V=1 10 % FLOPs, seed 0",
        "RigL cost^0.5 V=1 10 % FLOPs, seed 0",
        "RigL uniform V=1 2x wide 10 % FLOPs, seed 0",
    ]
    assert moving[3].method_text == "SET"
    assert len({point.family for point in points}) == len(points)
    assert [Point.from_dict(point.to_dict()) for point in points] == points
    with pytest.raises(ValueError, match="expected methods to rewire of rigl, set, got 'snip'"):
        frontier_points(rewire=["snip"])
    with pytest.raises(
        ValueError, match="a rule of uniform, erk, cost, time for random masks that move, got g"
    ):
        frontier_points(rules=["global"], rewire=["rigl"])


def test_lines_of_older_files_are_of_patterns_that_stay():
    line = record(Point("sparse", 0, 0.1, "random", "uniform", None, 1)).to_line()
    assert "rewire" not in line
    assert Record.from_line(line).point.rewire is None


class Recorder:
    """Trains nothing, and keeps how it should have."""

    def __init__(self):
        self.calls = []

    def __call__(self, model, data, *, epochs, seed, rewire, every, **settings):
        self.calls.append((seed, epochs, rewire, every))
        return TrainResult(0.5, 1.0, 4, 2.0, 0.1, 0.5, (), {"parameters": 1})


def test_frontier_rewires_trials_and_runs(data, tmp_path):
    pytest.importorskip("optuna")
    recorder, file = Recorder(), tmp_path / "runs.jsonl"
    points = frontier_points(
        flops=[0.5], small=[], methods=["random"], rules=["erk"], block_rows=[1], seeds=[0], rewire=["rigl"]
    )
    options = {"epochs": 9, "batch_size": 16, "every": 5, "tuning": Tuning(2, 2.0, epochs=3)}
    found = frontier(data, "lenet_300_100", points, file, trainer=recorder, **options)
    assert recorder.calls == [
        call for how in (None, None, "rigl") for call in (*2 * [(SEED, 3, how, 5)], (0, 9, how, 5))
    ]
    assert found[0].settings["rewire_every"] == 5
    assert [one.point for one in results.read(file)] == points
    # The trials have 9 steps of 48 samples, of which 7 may.
    with pytest.raises(ValueError, match="got 9 steps, of which the first 7 may, and a move every 8"):
        frontier(data, "lenet_300_100", points, tmp_path / "new", trainer=recorder, **{**options, "every": 8})
    assert not (tmp_path / "new").exists()


def test_tables_and_plots_tell_what_moves_from_what_stays(tmp_path):
    pytest.importorskip("matplotlib")
    random = Point("sparse", 0, 0.1, "random", "uniform", None, 1)
    moving = [Point(**{**vars(random), "rewire": how}) for how in ("set", "rigl")]
    records = [
        record(Point("dense", 0), 0.9, 20.0),
        *(record(point, 0.8 + 0.01 * i, 10.0) for i, point in enumerate((*moving, random))),
    ]
    table = statistics(records)
    assert list(table.family) == ["dense", "random uniform V=1", "RigL uniform V=1", "SET uniform V=1"]
    # In the same time as random masks that stay, which they are no part of.
    assert list(table.vs_random.round(6))[2:] == [-0.01, -0.02]
    report.write(records, tmp_path)
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| RigL " in page
    assert "RigL and SET: random masks that move every 100 steps" in page
    slower = Record(moving[1], {**SETTINGS, "rewire_every": 40}, records[0].machine, measured())
    assert report.rewired([slower])[0].startswith("RigL: random masks that move every 40 steps")
    assert report.rewired(records[:1]) == []


# The command line

QUICK = ["--data", "digits", "--model", "lenet_300_100"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_train_saves_the_masks_at_the_end(tmp_path):
    pytest.importorskip("sklearn")
    file, before = tmp_path / "trained.pt", tmp_path / "masks.safetensors"
    assert run("prune", *QUICK, "--method", "random", "--sparsity", 0.9, "--out", before).exit_code == 0
    moving = ["--rewire", "rigl", "--rewire-every", 2]
    result = run("train", *QUICK, "--masks", before, "--epochs", 1, *moving, "--out", file)
    assert result.exit_code == 0, result.output
    assert "random 90 % + RigL: test accuracy" in result.stdout
    content = torch.load(file)
    assert (content["rewire"], content["rewire_every"]) == ("rigl", 2)
    masks, start = content["masks"], mask_file.read(before)["masks"]
    assert counts(masks) == counts(start)
    assert any((masks[name] != start[name]).any() for name in start)
    assert all((content["state_dict"][name][~mask] == 0).all() for name, mask in masks.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--rewire", "rigl,deepr"], "expected --rewire of rigl, set, got 'deepr'"),
        (["frontier", "--out", "none", "--rewire", "snip"], "expected --rewire of rigl, set, got 'snip'"),
        (["train", "--rewire", "rigl"], "--rewire moves masks: give --method or --masks as well"),
        (["train", "--method", "random", "--rewire", "all"], "'all' is unknown; known are rigl, set"),
    ],
)
def test_commands_say_what_is_wrong(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).split())
