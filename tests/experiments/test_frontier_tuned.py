"""The rate of each contender of a frontier: equal trials, held-out samples, kept, resumed and told."""

import dataclasses
import json
import math

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("pandas")
pytest.importorskip("optuna")

from test_frontier import FEW, record

from sparseprune.experiments.data import Dataset
from sparseprune.experiments.frontier import rates, report, results
from sparseprune.experiments.frontier.points import Point, frontier_points
from sparseprune.experiments.frontier.rates import Tuning, held_out
from sparseprune.experiments.frontier.run import frontier
from sparseprune.experiments.frontier.statistics import statistics
from sparseprune.experiments.train import TrainResult

POINTS = frontier_points(flops=[0.5], seeds=[0, 1], **{**FEW, "methods": []})  # dense and small dense
TUNING = Tuning(trials=3, factor=2.0)


@pytest.fixture
def data():
    y = torch.arange(90) % 3
    x = torch.randn(90, 12, generator=torch.Generator().manual_seed(0))
    return Dataset("clouds", "this test", x[:60], y[:60], x[60:], y[60:])


class Judge:
    """Trains nothing: dense networks like a rate of 0.001, all others 0.002; interrupted after `runs`."""

    def __init__(self, runs=10**9):
        self.runs, self.calls = runs, []

    def __call__(self, model, data, *, lr, seed, epochs, **settings):
        if len(self.calls) == self.runs:
            raise KeyboardInterrupt
        best = 0.001 if model[1].out_features == 300 else 0.002
        self.calls.append((seed, round(lr, 7), epochs, len(data.train_x), len(data.test_x)))
        accuracy = 1 - abs(math.log(lr / best)) / 10
        return TrainResult(accuracy, 1.0, 4, 2.0, 0.1, 0.5, (), {"parameters": 1})


def run(data, file, trainer, points=POINTS, **settings):
    defaults = {"epochs": 2, "batch_size": 16, "tuning": TUNING}
    return frontier(data, "lenet_300_100", points, file, trainer=trainer, **{**defaults, **settings})


def test_frontier_tunes_each_contender_once_on_samples_that_it_holds_out(data, tmp_path):
    judge = Judge()
    found = run(data, tmp_path / "runs.jsonl", judge)
    trials = [(rates.SEED, lr, 2, 48, 12) for lr in (0.0005, 0.001, 0.002)]
    assert judge.calls == [
        *(*trials, (0, 0.001, 2, 60, 30)),
        *(*trials, (0, 0.002, 2, 60, 30)),
        *((1, 0.001, 2, 60, 30), (1, 0.002, 2, 60, 30)),
    ]
    assert [one.measured.lr for one in found] == [0.001, 0.002, 0.001, 0.002]
    assert [one.measured.lr_at_edge for one in found] == [False, True, False, True]
    assert [lr for lr, _ in found[0].measured.trials] == [0.0005, 0.001, 0.002]
    assert found[0].measured.trials[1] == (0.001, 1.0)
    assert found[0].settings["lr"] == 0.001
    assert found[0].settings["tuning"] == {
        **{"trials": 3, "factor": 2.0, "epochs": None, "held_out": 12, "seed": rates.SEED}
    }
    assert results.read(tmp_path / "runs.jsonl") == found


def test_frontier_goes_on_with_the_trials_that_were_interrupted(data, tmp_path):
    file, judge = tmp_path / "runs.jsonl", Judge()
    with pytest.raises(KeyboardInterrupt):
        run(data, file, Judge(2))
    run(data, file, judge, points=POINTS[:1])
    assert [call[:2] for call in judge.calls] == [(rates.SEED, 0.002), (0, 0.001)]


def test_trials_of_other_settings_do_not_count(data, tmp_path):
    file, first, second = tmp_path / "runs.jsonl", Judge(2), Judge()
    with pytest.raises(KeyboardInterrupt):
        run(data, file, first)
    run(data, file, second, points=POINTS[:1], batch_size=8)
    assert [call[1] for call in second.calls] == [0.0005, 0.001, 0.002, 0.001]


def test_lengths_share_trials_of_at_most_so_many_epochs(data, tmp_path):
    file, judge = tmp_path / "runs.jsonl", Judge()
    for epochs in (1, 3, 4):
        run(data, file, judge, points=POINTS[:1], epochs=epochs, tuning=Tuning(2, 2.0, epochs=3))
    assert [(seed, epochs) for seed, _, epochs, *_ in judge.calls] == [
        *((rates.SEED, 1), (rates.SEED, 1), (0, 1)),
        *((rates.SEED, 3), (rates.SEED, 3), (0, 3)),
        (0, 4),
    ]


def test_frontier_does_not_mix_tuned_rates_with_others(data, tmp_path):
    file = tmp_path / "runs.jsonl"
    run(data, file, Judge(), points=POINTS[:1])
    with pytest.raises(ValueError, match=r"got others: tuning \{'trials': 3, .*\} there, None now; give"):
        run(data, file, Judge(0), tuning=None)


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (Tuning(0), "a trial at least, got 0.001, 3.0 and 0"),
        (Tuning(3, 1.0), "a factor above 1"),
        (Tuning(3, epochs=0), "frontier: expected tuning over epochs >= 1, got 0"),
        (Tuning(20), "try rates from 1e-07 to 100, got 1.69351e-08 to 19.683; ask for fewer trials or a"),
    ],
)
def test_frontier_tells_impossible_trials_before_the_first(data, tmp_path, tuning, message):
    judge = Judge()
    with pytest.raises(ValueError, match=message):
        run(data, tmp_path / "runs.jsonl", judge, tuning=tuning)
    assert judge.calls == []
    assert list(tmp_path.iterdir()) == []


def test_a_fifth_of_few_samples_is_held_out(data):
    assert held_out(data) == 12
    many = dataclasses.replace(data, train_x=torch.zeros(60_000, 1))
    assert held_out(many) == 5000


def test_report_says_how_rates_were_tuned_and_which_are_at_the_edge():
    settings = {"trials": 3, "factor": 2.0, "epochs": 2, "held_out": 12, "seed": 100}
    tried = ((0.0005, 0.5), (0.001, 0.6), (0.002, 0.7))
    tuned = [
        dataclasses.replace(one, settings={**one.settings, "tuning": settings})
        for one in (
            record(Point("dense", 0), lr=0.001, trials=tried),
            record(Point("small dense", 0, 0.5), lr=0.002, trials=tried),
        )
    ]
    page = report.page(tuned)
    assert (
        "lr tuned, 3 trials for each network (0.0005, 0.001, 0.002; 12 training samples held out, one seed, "
        "2 epochs at most) with cosine decay to 0"
    ) in page
    assert (
        "At the edge of the rates that were tried, so that one beyond may be better, is that of 1 of 2: "
        "small dense 50 % FLOPs."
    ) in page
    assert list(report.texts(statistics(tuned))["lr"]) == ["0.001", "0.002 (edge)"]
    # One rate for all needs no column.
    plain = [record(Point("dense", 0)), record(Point("small dense", 0, 0.5))]
    assert "lr 0.001 with cosine decay" in report.page(plain)
    assert "edge" not in report.page(plain)
    assert "lr" not in report.texts(statistics(plain))


def test_lines_of_older_files_are_read_and_resumed(data, tmp_path):
    file = tmp_path / "runs.jsonl"
    points = frontier_points(flops=[0.5], seeds=[0], **FEW)
    found = run(data, file, Judge(), points=points, tuning=None)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        del line["point"]["width"], line["measured"]["lr"], line["measured"]["trials"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    older = run(data, file, Judge(0), points=points, tuning=None)
    assert [one.point for one in older] == points
    assert [one.measured.lr for one in older] == [None] * len(points)
    # Nothing of a report depends on what they lack.
    assert report.page(older) == report.page(found)
