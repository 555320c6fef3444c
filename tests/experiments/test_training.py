import copy
import json
import math

import pytest
import torch
from bounds import assert_half_the_digits
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import sparseprune as sp
from sparseprune.experiments import models
from sparseprune.experiments.compare import run as comparing
from sparseprune.experiments.compare.run import compare
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.train import evaluate, state_bytes, train, warm_up
from sparseprune.experiments.watcher import Watcher


class Ticks:
    """A clock on which a second passes whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def data():
    """Three well separated clouds: 60 samples to train (4 steps of 16), 30 to test."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = 3 * torch.eye(3).repeat(1, 4)[y] + 0.5 * torch.randn(90, 12, generator=generator)
    return Dataset("clouds", "this test", x[:60], y[:60], x[60:], y[60:])


@pytest.fixture
def learning_rates():
    seen = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"])
    )
    yield seen
    hook.remove()


def clouds_net(hidden):
    with models.seeded(0):
        return models.mlp((12, hidden, 3))


def test_train_learns_and_repeats_itself(data):
    first, again = (clouds_net(16) for _ in range(2))
    result = train(first, data, epochs=15, batch_size=16, lr=0.01)
    assert evaluate(clouds_net(16), data.test_x, data.test_y) < 0.7
    assert result.accuracy > 0.95
    assert result.accuracy == evaluate(first, data.test_x, data.test_y)
    train(again, data, epochs=15, batch_size=16, lr=0.01)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))


def test_train_for_epochs_counts_steps_and_completes_the_schedule(data, learning_rates):
    parts = []
    result = train(
        models.mlp((12, 3)), data, epochs=3, batch_size=16, lr=0.5, clock=Ticks(), on_progress=parts.append
    )
    assert (result.epochs, result.steps) == (3, 12)
    assert [point.epoch for point in result.curve] == [1, 2, 3]
    # One tick per step and one per evaluation.
    assert [point.seconds for point in result.curve] == [4, 8, 12]
    assert (result.seconds, result.evaluation_seconds, result.step_seconds) == (12, 3, 1)
    assert result.curve[-1].accuracy == result.accuracy
    assert learning_rates == pytest.approx([0.25 * (1 + math.cos(math.pi * i / 12)) for i in range(12)])
    assert parts == pytest.approx([i / 12 for i in range(1, 13)])


def test_train_for_a_budget_stops_on_time_and_completes_the_schedule(data, learning_rates):
    result = train(models.mlp((12, 3)), data, seconds=6.5, batch_size=16, lr=0.5, clock=Ticks())
    assert result.steps == 7
    assert result.seconds == 7
    assert [point.epoch for point in result.curve] == [1, 1.75]
    assert [point.seconds for point in result.curve] == [4, 7]
    assert learning_rates == pytest.approx([0.25 * (1 + math.cos(math.pi * i / 6.5)) for i in range(7)])


def test_train_does_not_count_evaluation(data):
    class Slow(nn.Linear):
        clock = 0.0

        def forward(self, x):
            self.clock += 1.0 if self.training else 100.0
            return super().forward(x)

    model = Slow(12, 3)
    result = train(model, data, seconds=10, batch_size=16, clock=lambda: model.clock)
    assert (result.steps, result.seconds, result.evaluation_seconds) == (10, 10, 300)
    assert result.step_seconds == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either epochs or seconds, got epochs=None and seconds=None"),
        ({"epochs": 1, "seconds": 1.0}, "either epochs or seconds, got epochs=1 and seconds=1.0"),
        ({"epochs": 0}, "epochs >= 1, got 0"),
        ({"seconds": 0.0}, "more than 0 seconds, got 0.0"),
        ({"seconds": math.nan}, "more than 0 seconds, got nan"),
        ({"epochs": 1, "lr": 0.0}, "lr > 0, got 0.0"),
        ({"epochs": 1, "batch_size": 0}, "batch_size >= 1, got 0"),
        ({"epochs": 1, "optimizer": "lbfgs"}, "an optimizer of adam, sgd, got 'lbfgs'"),
    ],
)
def test_train_refuses_bad_arguments(data, arguments, message):
    model = models.mlp((12, 3))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        train(model, data, **arguments)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_counts_what_is_right_and_restores_the_mode(training):
    model = nn.Sequential(nn.Dropout(0.5)).train(training)
    x = torch.eye(4).repeat(600, 1)  # more than one batch of evaluation; dropout would break it
    y = torch.tensor([0, 1, 2, 0]).repeat(600)
    assert evaluate(model, x, y) == 0.75
    assert model.training is training
    with pytest.raises(ValueError, match="at least one sample"):
        evaluate(model, x[:0], y[:0])


def test_warm_up_leaves_the_model_as_it_was(data):
    model = clouds_net(8).eval()
    before = copy.deepcopy(model.state_dict())
    warm_up(model, data, batch_size=16)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_state_bytes_counts_real_tensors():
    model = nn.Linear(4, 3)
    model.register_buffer("pattern", torch.zeros(5, dtype=torch.int32))
    optimizer = torch.optim.Adam(model.parameters())
    assert state_bytes(model, optimizer) == {"parameters": 60, "gradients": 0, "optimizer": 0, "buffers": 20}
    model(torch.zeros(2, 4)).sum().backward()
    optimizer.step()
    # Two moments of every parameter, and a step counter (a float32 scalar) for each of the two.
    assert state_bytes(model, optimizer) == {
        "parameters": 60,
        "gradients": 60,
        "optimizer": 2 * 60 + 2 * 4,
        "buffers": 20,
    }


def test_train_with_sgd_has_its_momentum_weight_decay_and_rate(data, learning_rates):
    model, expected = clouds_net(8), clouds_net(8)
    train(model, data, epochs=1, batch_size=60, optimizer="sgd")
    assert learning_rates == [0.1]
    # One step from rest: the gradient with weight decay, times the rate.
    nn.functional.cross_entropy(expected(data.train_x), data.train_y).backward()
    for ours, before in zip(model.parameters(), expected.parameters(), strict=True):
        assert_half_the_digits(ours, before - 0.1 * (before.grad + 5e-4 * before))
    result = train(clouds_net(8), data, epochs=1, batch_size=16, optimizer="sgd", lr=0.02)
    assert learning_rates[1] == 0.02
    assert result.bytes["optimizer"] == result.bytes["parameters"]  # momentum


@pytest.fixture
def small_model(monkeypatch):
    def small(sample, classes, width):
        hidden = (max(1, round(width * features)) for features in (16, 8))
        return models.mlp((math.prod(sample), *hidden, classes))

    monkeypatch.setitem(models.MODELS, "small", small)
    return "small"


class Log(Watcher):
    def __init__(self):
        self.begun, self.ended, self.parts = [], [], []

    def begin(self, task, number, count):
        self.begun.append((task, number, count))

    def advance(self, part):
        self.parts.append(part)

    def end(self, task, outcome):
        self.ended.append(task)


def test_compare_trains_every_contender_in_both_views(data, small_model):
    log = Log()
    result = compare(
        data,
        small_model,
        methods=["random"],
        sparsities=[0.5, 0.75],
        blocks=[(1, 1), (4, 1)],
        epochs=2,
        seconds="dense",
        batch_size=16,
        clock=Ticks(),
        watcher=log,
    )
    total = 12 * 16 + 16 * 8 + 8 * 3
    names = [
        "dense",
        "small dense, width 0.594",
        "small dense, width 0.344",
        "random 50 %",
        "random 50 % 4x1",
        "random 75 %",
        "random 75 % 4x1",
    ]
    for view in ("epochs", "time"):
        runs = [run for run in result.runs if run.view == view]
        assert [run.label for run in runs] == names
        assert [run.weights for run in runs] == [
            total,
            12 * 9 + 9 * 5 + 5 * 3,
            12 * 5 + 5 * 3 + 3 * 3,
            total // 2,
            total // 2,
            total // 4,
            total // 4,
        ]
        assert [run.kind for run in runs] == ["dense"] + ["small dense"] * 2 + ["sparse"] * 4
        # On this clock a step takes a second and so does pruning: 8 seconds for dense's two passes.
        assert [run.prune_seconds for run in runs] == [0, 0, 0, 1, 1, 1, 1]
        assert [run.result.seconds for run in runs] == [8, 8, 8] + [8 if view == "epochs" else 7] * 4
        assert [run.time_vs_dense for run in runs] == [1, 1, 1] + [9 / 8 if view == "epochs" else 1] * 4
    assert result.settings["budget_seconds"] == 8
    tasks = [name for name, _, _ in log.begun]
    assert log.ended == tasks
    assert [number for _, number, _ in log.begun] == list(range(1, 18))
    assert {of for _, _, of in log.begun} == {17}  # 4 prunings, 7 and 6 trainings: dense is not trained twice
    assert max(log.parts) == 1
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["model"] == {"name": "small", "weights": total}


def test_compare_starts_all_contenders_from_the_same_weights(data, small_model, monkeypatch):
    starts = []

    def spy(model, *_, **options):
        starts.append(copy.deepcopy(sp.densify(model)))
        return train(model, *_, **options)

    monkeypatch.setattr(comparing, "train", spy)
    compare(
        data,
        small_model,
        methods=["magnitude"],
        sparsities=[0.5],
        epochs=1,
        seconds=3,
        batch_size=16,
        clock=Ticks(),
    )
    dense, small, sparse, *second_view = starts
    assert len(second_view) == 3
    for first, again in zip((dense, small, sparse), second_view, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    for kept, weight in ((sparse[i].weight, dense[i].weight) for i in (1, 3, 5)):
        assert torch.equal(kept, weight * (kept != 0))


def test_compare_with_shuffled_masks_as_controls(data, small_model):
    log = Log()
    result = compare(
        data,
        small_model,
        methods=["snip", "random"],
        sparsities=[0.75],
        epochs=1,
        seconds=5,
        batch_size=16,
        optimizer="sgd",
        lr=0.05,
        shuffled=True,
        clock=Ticks(),
        watcher=log,
    )
    assert [run.label for run in result.runs[2:5]] == ["snip 75 %", "snip shuffled 75 %", "random 75 %"]
    assert [run.method for run in result.runs[2:5]] == ["snip", "snip shuffled", "random"]
    assert {(run.weights, run.prune_seconds) for run in result.runs[2:5]} == {(86, 1)}
    assert result.runs[2].result.accuracy != result.runs[3].result.accuracy
    assert [(number, of) for _, number, of in log.begun] == [(n, 12) for n in range(1, 13)]
    assert result.settings["optimizer"].startswith("SGD (fused, momentum 0.9, weight decay 0.0005)")
    assert result.settings["lr"] == 0.05


def test_compare_without_time_left_after_pruning_trains_for_one_step(data, small_model):
    result = compare(
        data,
        small_model,
        methods=["magnitude"],
        sparsities=[0.5],
        epochs=1,
        seconds=0.5,
        batch_size=16,
        clock=Ticks(),
    )
    assert result.runs[-1].view == "time"
    assert result.runs[-1].result.steps == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": 0}, 'more than 0 seconds, or "dense", got 0'),
        ({"seconds": "long"}, "more than 0 seconds, or \"dense\", got 'long'"),
        ({"prune_batches": 0}, "prune_batches >= 1, got 0"),
        ({"model": "vgg"}, "unknown model 'vgg'"),
        ({"methods": ["lottery"]}, "lottery"),
        ({"sparsities": [0.5, 1.5]}, r"sparsities in \[0, 1\), got 1.5"),
    ],
)
def test_compare_refuses_bad_arguments_before_it_trains(data, monkeypatch, arguments, message):
    monkeypatch.setattr(comparing, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        compare(data, **{"model": "lenet_300_100", **arguments})
