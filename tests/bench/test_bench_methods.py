import dataclasses
import itertools
import json
import re

import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("typer")

import typer
from typer.testing import CliRunner

from bench.methods import __main__ as command
from bench.methods import experiment, results
from bench.methods.experiment import perform
from bench.methods.points import (
    AFTER_TRAINING,
    CONTROLS,
    DENSE,
    SMALL_DENSE,
    TICKET,
    Point,
    Training,
    cut,
    pruned,
)
from bench.methods.results import Record
from sparseprune.cost import machine
from sparseprune.experiments import models
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.train import train
from sparseprune.scores import METHODS

TRAINING = Training("lenet_300_100", "clouds", epochs=1, batch_size=16)
RESNET = dataclasses.replace(TRAINING, model="resnet8")
FEW = {TRAINING: [Point(DENSE), pruned("snip", 0.9, 16)]}
ALL = [
    Point(DENSE),
    Point(SMALL_DENSE, sparsity=0.9),
    pruned("random", 0.9, 16, scope="erk"),
    pruned("synflow", 0.98, 16),
    pruned("snip", 0.9, 16, block_rows=4),
    Point(AFTER_TRAINING, sparsity=0.9),
]


@pytest.fixture(autouse=True)
def clouds(monkeypatch):
    """A data set that takes no time, in place of all others."""
    order = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 4
    x = torch.randn(64, 1, 8, 8, generator=order) + y.view(-1, 1, 1, 1)
    data = Dataset("clouds", "a test", x[:48], y[:48], x[48:], y[48:])
    monkeypatch.setattr(experiment, "load", lambda name, samples: data)
    return data


@pytest.fixture
def run(tmp_path):
    """Do an experiment; returns its records and what was said."""

    def run_experiment(points=FEW, seeds=(0,), **options):
        said = []
        options = {"say": said.append, **options}
        complete = perform(points, seeds, tmp_path / "runs.jsonl", **options)
        return results.read(tmp_path / "runs.jsonl"), said, complete

    return run_experiment


def test_perform_does_what_has_no_line_and_then_nothing(run, tmp_path):
    records, said, complete = run(seeds=[0, 1])
    assert complete
    assert [(record.seed, record.point.label) for record in records] == [
        (0, "dense"),
        (0, "snip 90 % (16 samples scored)"),
        (1, "dense"),
        (1, "snip 90 % (16 samples scored)"),
    ]
    assert said[1].startswith("2/4 lenet_300_100 on clouds, seed 0: snip 90 % (16 samples scored): ")
    written = (tmp_path / "runs.jsonl").read_bytes()
    again, said, complete = run(seeds=[0, 1], trainer=None)
    assert (again, said, complete) == (records, [], True)
    assert (tmp_path / "runs.jsonl").read_bytes() == written
    assert [json.loads(line)["seed"] for line in written.splitlines()] == [0, 0, 1, 1]


def test_perform_measures_every_kind_of_network(run):
    records, _, _ = run({RESNET: ALL})
    by_label = {record.point.label: record.measured for record in records}
    assert [record.failed for record in records] == [None] * len(ALL)
    dense, small, random, synflow, blocks, after = by_label.values()
    weights = models.weight_count(models.Network("resnet8", (1, 8, 8), 4))
    assert (dense.weights, dense.sparsity, dense.flops_vs_dense, dense.width) == (weights, 0, 1, 1)
    assert dense.total_seconds == dense.train_seconds
    assert small.width < 1
    assert small.weights == pytest.approx(0.1 * weights, rel=0.05)
    for measured, kept in ((random, 0.1), (synflow, 0.02), (after, 0.1)):
        assert measured.weights == round(kept * weights)
        assert measured.weights == sum(kept for _, kept, _ in measured.layers.values())
        assert measured.sparsity == pytest.approx(1 - kept, abs=1 / weights)
        assert 0 < measured.flops_vs_dense < 1
        assert min(kept for _, kept, _ in measured.layers.values()) >= 1
    assert (random.scored, dense.scored, after.scored) == (16, 0, 0)
    assert all(kept % 4 == 0 for total, kept, _ in blocks.layers.values())
    assert after.spent_seconds == dense.train_seconds
    for measured in by_label.values():
        parts = measured.spent_seconds + measured.prune_seconds + measured.train_seconds
        assert measured.total_seconds == parts
        assert measured.sparsify_seconds <= measured.prune_seconds <= measured.wall_seconds
        assert (measured.epochs, measured.steps) == (1, 3)
        assert measured.curve[-1][2] == measured.accuracy


def test_perform_trains_dense_once_a_seed(run):
    trained = []

    def trainer(model, data, **settings):
        trained.append(settings["seed"])
        return train(model, data, **settings)

    points = [Point(DENSE), *(Point(AFTER_TRAINING, sparsity=sparsity) for sparsity in (0.8, 0.9))]
    run({TRAINING: points}, seeds=[0, 1], trainer=trainer)
    assert trained == [0, 0, 0, 1, 1, 1]
    # Without a line, but with a new process: dense, which has a line, is trained for it.
    trained.clear()
    run({TRAINING: [*points, Point(AFTER_TRAINING, sparsity=0.5)]}, trainer=trainer)
    assert trained == [0, 0]


def test_perform_records_the_failure_of_a_method(run, monkeypatch):
    points = [pruned("snip", 0.99, 16, block_rows=16), Point(DENSE)]
    monkeypatch.setitem(METHODS, "snip", lambda model, batches, loss, **options: {})
    records, said, complete = run({TRAINING: points})
    assert complete
    assert records[0].measured is None
    assert records[0].failed.startswith("prune: ")
    assert said[0].endswith(f": {records[0].failed}")
    assert records[1].failed is None
    assert run({TRAINING: points}, trainer=None)[0] == records


def test_perform_does_not_swallow_mistakes_of_training(run):
    def broken(*arguments, **options):
        raise ValueError("broken")

    with pytest.raises(ValueError, match=r"^broken$"):
        run(trainer=broken)


def test_perform_stops_before_the_time_is_over(run):
    now = iter(range(0, 10_000, 10))
    # Every look at the clock takes ten seconds: dense is 20 seconds long.
    records, said, complete = run(seeds=[0, 1, 2], seconds=200, clock=lambda: float(next(now)))
    assert not complete
    assert 0 < len(records) < 6
    assert re.fullmatch(r"stopped before .* \(about \d+ s\); the same command goes on", said[-1])
    assert run(seeds=[0, 1, 2])[2]


def test_a_line_that_was_cut_off_is_done_again(run, tmp_path):
    records, _, _ = run()
    file = tmp_path / "runs.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.warns(
        UserWarning, match=r"the last line of .*runs.jsonl was cut off; its run is not counted"
    ):
        again = run()[0]
    assert [record.key for record in again] == [record.key for record in records]
    assert file.read_bytes().count(b"\n") == 2


def test_read_refuses_lines_that_are_no_runs_and_runs_that_are_there_twice(run, tmp_path):
    run()
    file = tmp_path / "runs.jsonl"
    lines = file.read_text()
    file.write_text(lines + "{}\n")
    with pytest.raises(ValueError, match=r"expected a run in line 3 of .*runs.jsonl, .* delete the line"):
        results.read(file)
    file.write_text(lines + lines)
    with pytest.raises(ValueError, match=r"each run once in .*, got dense in lines 1 and 3; delete line 3"):
        results.read(file)
    assert results.read(tmp_path / "nothing.jsonl") == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"epochs": 2}, "epochs 1 there, 2 now"),
        ({"lr": 0.5}, "lr 0.1 there, 0.5 now"),
        ({"optimizer": "adam"}, "optimizer 'SGD .*' there, 'Adam .*' now; lr 0.1 there, 0.001 now"),
    ],
)
def test_perform_refuses_other_settings(run, other, words):
    run()
    message = f"got others for lenet_300_100 on clouds: {words}; give another --out, or the same settings"
    with pytest.raises(ValueError, match=message):
        run(cut({dataclasses.replace(TRAINING, **other): FEW[TRAINING]}, None, None), seeds=[1])


def test_perform_refuses_another_machine(run, monkeypatch):
    run()
    facts = machine.facts()
    monkeypatch.setattr(machine, "facts", lambda: {**facts, "threads": 99})
    with pytest.raises(ValueError, match=r"threads \d+ there, 99 now"):
        run(seeds=[1])


def test_records_survive_their_line(run):
    for record in run()[0]:
        assert Record.from_line(record.to_line()) == record


@pytest.fixture
def invoke():
    app = typer.Typer()
    app.command()(command.main)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def test_command_lists_and_does_what_is_asked_for(invoke, tmp_path):
    asked = ["samples", "--seeds", "0", "--filter", "dense|1,000", "--epochs", 1]
    listed = invoke(*asked, "--list").stdout.splitlines()
    assert listed[1] == "lenet_300_100 on mnist5k, seed 0: snip 90 % (1,000 samples scored)"
    assert len(listed) == 4
    file = tmp_path / "new" / "samples.jsonl"
    assert invoke(*asked, "--out", file).exit_code == 0
    records = results.read(file)
    assert len(records) == 4
    assert {record.measured.scored for record in records} == {0, 48}


def test_command_names_the_experiments(invoke):
    done = invoke("sample")
    assert done.exit_code == 2
    assert "expected snip-table, resnet8, samples, grouping, scopes or plot, got 'sample'" in " ".join(
        done.stderr.replace("│", " ").split()
    )


def test_lottery_ticket_has_a_run_for_each_round(run):
    tickets = [Point(TICKET, sparsity=round(1 - 0.1 ** (r / 4), 6), round=r) for r in (1, 2, 3)]
    records, _, complete = run({TRAINING: [Point(DENSE), *tickets]})
    assert complete
    dense, *rounds = (record.measured for record in records)
    for point, measured in zip(tickets, rounds, strict=True):
        assert measured.sparsity == pytest.approx(point.sparsity, abs=1e-3)
    assert rounds[0].spent_seconds == dense.train_seconds
    for before, after in itertools.pairwise(rounds):
        assert after.spent_seconds == pytest.approx(before.total_seconds)
    # The rounds that have a line are trained again for those that have none.
    last = Point(TICKET, sparsity=0.9, round=4)
    again, said, _ = run({TRAINING: [Point(DENSE), *tickets, last]})
    assert again[:4] == records
    assert len(said) == 1
    assert again[4].point == last


def test_controls_have_as_many_weights(run):
    points = [pruned("snip", 0.9, 16, control=control) for control in (None, *CONTROLS)]
    records, _, _ = run({TRAINING: points})
    plain, *others = (record.measured for record in records)
    for other in others:
        assert {name: kept for name, (_, kept, _) in other.layers.items()} == {
            name: kept for name, (_, kept, _) in plain.layers.items()
        }


def test_grouped_rows_are_pruned_in_blocks(run):
    points = [pruned("snip", 0.9, 16, block_rows=4, grouped=grouped) for grouped in (False, True)]
    records, _, _ = run({TRAINING: points})
    assert [record.failed for record in records] == [None, None]
    single, grouped = (record.measured for record in records)
    assert grouped.weights == pytest.approx(single.weights, rel=0.05)
