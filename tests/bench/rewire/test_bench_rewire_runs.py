import dataclasses
import itertools
import re

import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("optuna")

import sparseprune as sp
from bench import ledger
from bench.rewire import cost, networks, run, timing
from bench.rewire.points import EPOCHS, STUDIES, TIME, VIEWS, Point, Run, Size, runs
from bench.rewire.training import Trainer, passes, train
from sparseprune.experiments.data import Dataset

SMALL = dataclasses.replace(STUDIES["resnet8"], model="lenet_300_100", small=(0.5,), batch_size=32)
SIZE = Size(trials=2, tune_epochs=1, held_out=16, every=1)
RIGL = SMALL.rigl.label


@pytest.fixture
def data(monkeypatch):
    random = torch.Generator().manual_seed(0)
    y = torch.arange(160) % 2
    x = torch.randn(160, 1, 4, 4, generator=random) + y.view(-1, 1, 1, 1)
    made = Dataset("noise", "a test", x[:128], y[:128], x[128:], y[128:])
    monkeypatch.setattr(networks, "load", lambda name, samples: made)
    return made


@pytest.fixture
def timed(data, tmp_path):
    run.time_steps(SMALL, tmp_path, size=SIZE, rounds=1, tell=lambda line: None)
    return tmp_path


def test_runs_are_shortest_first_and_rigl_has_its_own_time_once():
    study = STUDIES["resnet8"]
    found = runs(study, [10, 3], VIEWS, [1, 0])
    assert [(one.epochs, one.seed) for one in found] == sorted(
        [(one.epochs, one.seed) for one in found], key=lambda of: (of[0], -of[1])
    )
    assert len({one.label for one in found}) == len(found) == 4 * (2 * len(study.points) - 1)
    assert {one.view for one in found if one.point == study.rigl} == {EPOCHS}


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_contender_tries_as_many_rates(study):
    assert {len(study.rates(point, 5)) for point in study.points} == {5}
    assert len({point.label for point in study.points}) == len(study.points)


def test_steps_within_fill_the_seconds():
    own = {"step": {"median": 0.01}, "rewiring": {"median": 0.4}, "prune_seconds": 1.0}
    # 0.75 of the steps have a rewiring in a hundred: 3 ms a step.
    assert run.seconds_of(own, 1000, 100) == pytest.approx(14.0)
    assert run.steps_within(own, 14.001, 100) == 1000
    still = {**own, "rewiring": None}
    assert run.steps_within(still, 14.001, 100) == 1300
    assert run.steps_within(still, 0.5, 100) == 1


class Stub:
    """A network whose steps take these seconds in turn, the last of a block with a rewiring."""

    def __init__(self, clock, seconds, rewires):
        self.clock, self.turns, self.rewire = clock, itertools.cycle(seconds), rewires or None

    def step(self):
        self.clock.now += next(self.turns)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_rewiring_is_what_its_step_takes_longer_and_first_steps_do_not_count():
    clock = Clock()
    trainers = {
        "still": Stub(clock, (9, 1, 1, 1, 1, 2), False),
        "moves": Stub(clock, (9, 3, 3, 5, 3, 10), True),
    }
    found, _ = timing.take_turns(trainers, 4, clock=clock)
    assert found["still"].rewiring is None
    assert found["still"].step.median == 1
    assert found["moves"].step.median == 3
    assert found["moves"].rewiring == (7, 7, 7)


def pattern(model):
    return [weight != 0 for name, weight in sp.densify(model).named_parameters() if name.endswith("weight")]


def same(one, other):
    return all(map(torch.equal, one, other))


def test_training_moves_the_pattern_and_keeps_its_size(data):
    def trained(**more):
        model = networks.make(SMALL.rigl, SMALL, data, 0).model
        before = pattern(model)
        accuracy = train(model, data, steps=12, batch_size=32, optimizer="sgd", lr=0.05, seed=0, **more)
        return before, accuracy, pattern(model)

    before, accuracy, after = trained(method="rigl", every=2)
    assert [int(mask.sum()) for mask in after] == [int(mask.sum()) for mask in before]
    assert not same(before, after)
    assert trained(method="rigl", every=2)[1] == accuracy
    before, _, after = trained()
    assert same(before, after)


def test_all_sparse_contenders_keep_as_many_weights_and_leave_the_ends_whole(data):
    counts = {
        point.label: networks.kept_weights(networks.make(point, SMALL, data, 0).model)
        for point in SMALL.points
        if point.kind == "sparse"
    }
    # 16 x 300 and 100 x 2 stay, of 300 x 100 a tenth.
    assert set(counts.values()) == {4800 + 3000 + 200}


def test_perform_tunes_trains_and_goes_on(timed):
    told = []
    asked = [one for one in runs(SMALL, [1], VIEWS, [0]) if re.search("RigL 90|small|dense$", one.label)]
    assert run.perform(SMALL, asked[:2], timed, size=SIZE, tell=told.append)
    assert run.perform(SMALL, asked, timed, size=SIZE, tell=told.append)
    rows = ledger.read(timed / run.RUNS)
    assert [row["key"]["network"] for row in rows] == [one.point.label for one in asked]
    assert {len(row["result"]["trials"]) for row in rows} == {2}
    results = {(row["key"]["view"], row["key"]["network"]): row["result"] for row in rows}
    times = run.read_times(timed, SMALL.name)["networks"]
    budget = run.seconds_of(times[RIGL], 4, SIZE.every)
    small = results[TIME, "small dense, width 0.5"]
    assert small["budget"] == pytest.approx(budget)
    assert small["steps"] == run.steps_within(times["small dense, width 0.5"], budget, SIZE.every)
    assert results[EPOCHS, RIGL]["steps"] == 4
    assert results[EPOCHS, RIGL]["budget"] is None
    done = len(told)
    assert run.perform(SMALL, asked, timed, size=SIZE, tell=told.append)
    assert len(told) == done


def test_perform_in_equal_time_needs_times(data, tmp_path):
    with pytest.raises(ValueError, match=r"python -m bench\.rewire time --model resnet8"):
        run.perform(SMALL, [Run(TIME, 1, 0, Point("dense"))], tmp_path, size=SIZE)


def test_perform_stops_before_it_is_out_of_time(data, tmp_path):
    told = []
    ticks = itertools.count(0, 10)
    asked = runs(SMALL, [1], [EPOCHS], [0])
    assert not run.perform(
        SMALL, asked, tmp_path, size=SIZE, seconds=45, clock=lambda: float(next(ticks)), tell=told.append
    )
    assert "the same command goes on" in told[-1]


def test_time_keeps_its_line(timed):
    told = []
    run.time_steps(SMALL, timed, size=SIZE, rounds=1, tell=told.append)
    assert len(told) == 1
    assert "has the times of resnet8" in told[0]
    networks_timed = run.read_times(timed, SMALL.name)["networks"]
    moving = {name for name, of in networks_timed.items() if of["rewiring"] is not None}
    assert moving == {"SET 90 %, uniform", RIGL}


@pytest.fixture
def case(monkeypatch):
    tiny = cost.Case("tiny", (64, 48, 10), (64,), 16, "adam", 0.9)
    monkeypatch.setattr(cost, "CASES", {"tiny": tiny})
    return tiny


def test_cost_has_a_line_for_each_network(case, tmp_path, monkeypatch):
    memory = {"bytes": 5, "step": 10, "rewiring": 15}
    monkeypatch.setattr(cost, "added_memory", lambda *of: memory)
    told = []
    file = tmp_path / cost.FILE
    cost.perform(file, rounds=1, say=told.append)
    cost.perform(file, rounds=1, say=told.append)
    assert "has tiny already" in told[-1]
    (row,) = ledger.read(file)
    assert row["key"] == {"case": "tiny", "batch_size": 16, "sparsity": 0.9}
    assert row["result"]["dense"]["rewiring"] is None
    for method in ("rigl", "set"):
        assert row["result"][method]["step"]["median"] > 0
        assert row["result"]["memory"][method] == memory
    timed = {"step": {"median": 0.002}, "rewiring": {"median": 0.008}}
    assert cost.part(timed) == pytest.approx(0.04)


def test_memory_is_that_of_the_last_step_over_those_before(case, monkeypatch):
    peaks = iter([90, 80, 50, 60, 50, 85])
    monkeypatch.setattr(cost, "_forget_peak", lambda: None)
    monkeypatch.setattr(cost, "_peak", lambda: next(peaks))
    assert cost.measured_memory(case, "rigl") == {"bytes": 25, "step": 60, "rewiring": 85}


def test_peak_of_memory_is_forgotten():
    try:
        cost._forget_peak()
    except OSError as error:
        pytest.skip(f"the system does not let peaks be forgotten: {error}")
    torch.ones(16 << 20)
    high = cost._peak()
    cost._forget_peak()
    assert cost._peak() <= high - (50 << 20)


def test_memory_that_cannot_be_measured_says_why(monkeypatch):
    class Done:
        returncode, stdout, stderr = 1, "", "Traceback\nPermissionError: clear_refs"

    monkeypatch.setattr(cost.subprocess, "run", lambda *of, **more: Done())
    found = cost.added_memory("resnet18", "rigl")
    assert found == {"bytes": None, "step": None, "rewiring": None, "why": "PermissionError: clear_refs"}


def test_trainer_rewires_at_the_end_of_every_block(case):
    one = case.trainer("set")
    assert isinstance(one, Trainer)
    assert isinstance(one.rewire, sp.Rewire)

    before = pattern(one.model)
    moved = []
    for _ in range(2 * timing.BLOCK):
        one.step()
        moved.append(not same(before, pattern(one.model)))
        before = pattern(one.model)
    assert moved[timing.BLOCK - 1]
    assert not any(moved[: timing.BLOCK - 1])


def test_passes_never_end(data):
    batches = passes(data, 100, 0)
    assert [len(next(batches)[1]) for _ in range(5)] == [100, 28, 100, 28, 100]
