"""Contenders of one's own: their own data and rates, screening as a control, and what each run cost."""

import dataclasses
import json

import pytest
import torch

from sparseprune.experiments import models, networks
from sparseprune.experiments import train as training
from sparseprune.experiments.compare import run as comparing
from sparseprune.experiments.compare.run import compare, train_contenders
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.meter import Cost
from sparseprune.experiments.models import Network
from sparseprune.experiments.ticket.results import result_of
from sparseprune.experiments.train import train
from sparseprune.experiments.watcher import Watcher


class Ticks:
    """A clock on which a second passes whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


class Log(Watcher):
    def __init__(self):
        self.begun = []

    def begin(self, task, number, count):
        self.begun.append((task, number, count))


@pytest.fixture
def data():
    """Two classes, told apart by inputs 3 and 7 of 12; 32 samples to train (2 steps of 16), 8 to test."""
    y = torch.arange(40) % 2
    x = torch.randn(40, 3, 4, generator=torch.Generator().manual_seed(0))
    x.flatten(1)[:, [3, 7]] += 9.0 * y[:, None]
    return Dataset("clouds", "this test", x[:32], y[:32], x[32:], y[32:])


@pytest.fixture
def trained(monkeypatch):
    """Arguments of each training."""
    seen = []

    def spy(model, data, **options):
        seen.append((data, options))
        return train(model, data, **options)

    monkeypatch.setattr(comparing, "train", spy)
    return seen


def of_network(sample, **more):
    return dataclasses.replace(networks.dense(Network("lenet_300_100", sample, 2, 0.1), 0), **more)


def test_train_contenders_gives_each_its_own_data_and_rate(data, trained):
    half = dataclasses.replace(data, train_x=data.train_x[:, 0], test_x=data.test_x[:, 0])
    contenders = [
        of_network((3, 4)),
        of_network((4,), label="half", kind="screened", data=half, lr=0.25, prune_seconds=3.0),
    ]
    log = Log()
    options = {"epochs": 2, "seconds": "dense", "batch_size": 16, "lr": 0.5, "clock": Ticks()}
    runs = train_contenders(data, contenders, **options, watcher=log, done=4)
    views = [("epochs", "dense"), ("epochs", "half"), ("time", "dense"), ("time", "half")]
    assert [(run.view, run.label) for run in runs] == views
    # Dense is trained once.
    assert [given is half for given, _ in trained] == [False, True, True]
    assert [given["lr"] for _, given in trained] == [0.5, 0.25, 0.25]
    assert [run.lr for run in runs] == [0.5, 0.25, 0.5, 0.25]
    # Dense takes 4 steps of a second each, of which 3 are gone for the other one when it begins.
    assert [run.result.steps for run in runs] == [4, 4, 4, 1]
    assert [run.time_vs_dense for run in runs] == [1, 7 / 4, 1, 1]
    # 2 operations, 16 samples, 2 products in the first layer, as it has no input gradient.
    first = {run.label: 2 * 16 * 2 * 30 * inputs for run, inputs in zip(runs, (12, 4), strict=False)}
    rest = 2 * 16 * 3 * (30 * 10 + 10 * 2)
    assert {run.label: run.flops_per_step - rest for run in runs} == first
    assert [number for _, number, _ in log.begun] == [5, 6, 7]
    assert {count for _, _, count in log.begun} == {7}


@pytest.mark.parametrize(
    ("contenders", "options", "message"),
    [
        ([], {}, "train_contenders: expected the dense contender first, got no contender"),
        ([of_network((3, 4), kind="conv")], {}, "expected the dense contender first, got conv"),
        ([of_network((3, 4)), of_network((3, 4), lr=-1.0)], {}, "expected lr > 0, got -1.0"),
        ([of_network((3, 4))], {"seconds": 0.0}, 'expected more than 0 seconds, or "dense", got 0.0'),
        ([of_network((3, 4))], {"optimizer": "lbfgs"}, "an optimizer of adam, sgd, got 'lbfgs'"),
    ],
)
def test_train_contenders_refuses_bad_arguments_before_it_trains(data, trained, contenders, options, message):
    with pytest.raises(ValueError, match=message):
        train_contenders(data, contenders, **{"epochs": 1, **options})
    assert trained == []


def test_screened_is_the_same_network_on_the_inputs_that_tell_classes_apart(data):
    pytest.importorskip("sklearn")
    made = networks.screened(Network("wide_mlp", (3, 4), 2, 0.01), data, 2, 0, Ticks())
    assert (made.label, made.kind, made.prune_seconds) == ("F-test 2 + small dense", "screened", 1.0)
    assert made.weights == 2 * 10 + 10 * 10 + 10 * 2
    assert torch.equal(made.data.train_x, data.train_x.flatten(1)[:, [3, 7]])
    assert torch.equal(made.data.test_x, data.test_x.flatten(1)[:, [3, 7]])
    assert made.make()(made.data.test_x).shape == (8, 2)
    assert made.prune_cpu_seconds >= 0


@pytest.mark.parametrize(
    ("network", "count", "message"),
    [
        (
            Network("lenet5_caffe", (1, 28, 28), 10),
            5,
            "screen: expected a network that takes any number of inputs in any order, one of article_mlp, "
            "wide_mlp, lenet_300_100, got lenet5_caffe",
        ),
        (Network("wide_mlp", (3, 4), 2), 0, "screen: expected to pick 1 to 12 inputs, got 0"),
        (Network("wide_mlp", (3, 4), 2), 13, "screen: expected to pick 1 to 12 inputs, got 13"),
    ],
)
def test_screened_refuses_what_it_cannot_screen(data, network, count, message):
    with pytest.raises(ValueError, match=message):
        networks.screened(network, data, count, 0, Ticks())


def test_compare_with_a_screened_control(data):
    pytest.importorskip("sklearn")
    log = Log()
    result = compare(
        data,
        "lenet_300_100",
        methods=["random"],
        sparsities=[0.5],
        epochs=1,
        seconds=9,
        batch_size=16,
        screen=2,
        clock=Ticks(),
        watcher=log,
    )
    labels = ["dense", "small dense, width 0.688", "F-test 2 + small dense", "random 50 %"]
    assert [run.label for run in result.runs if run.view == "epochs"] == labels
    control = result.runs[2]
    # A step is a second, and so is screening.
    assert (control.kind, control.prune_seconds, control.total_seconds) == ("screened", 1, 3)
    assert control.weights == 2 * 300 + 300 * 100 + 100 * 2
    assert result.settings["screen"] == 2
    assert [task for task, _, _ in log.begun[:2]] == ["screen: 2 of 12 inputs", "prune: random 50 %"]
    assert [(number, count) for _, number, count in log.begun] == [(n, 10) for n in range(1, 11)]
    json.dumps(result.to_dict(), allow_nan=False)
    pytest.importorskip("pandas")
    pytest.importorskip("tabulate")
    from sparseprune.experiments.compare import report

    page = report.page(result)
    (line,) = [line for line in page.split("equal wall")[0].splitlines() if "| F-test" in line][:1]
    assert [cell.strip() for cell in line.split("|")[5:7]] == ["1.00", "3.0"]
    assert "What it saved over dense at equal epochs" in page
    assert page.rstrip().endswith("This is one seed: another one may decide otherwise.")


def test_compare_refuses_to_screen_for_other_networks_before_it_works(data, monkeypatch):
    monkeypatch.setattr(comparing, "FirstBatches", lambda *_: pytest.fail("worked"))
    with pytest.raises(ValueError, match=r"in any order, one of .*, got resnet8"):
        compare(dataclasses.replace(data, train_x=torch.zeros(32, 1, 16, 16)), "resnet8", screen=5)
    with pytest.raises(ValueError, match="expected to pick 1 to 12 inputs, got 13"):
        compare(data, screen=13)


class FakeMeter:
    """Notes what happens to it; each piece costs 2 CPU-seconds and 3 joules."""

    def __init__(self, device):
        self.device, self.pieces = device, 0

    def start(self):
        EVENTS.append("start")

    def update(self):
        EVENTS.append("step")

    def stop(self):
        EVENTS.append("stop")
        self.pieces += 1

    @property
    def cost(self):
        return Cost(9.0, 2.0 * self.pieces, 3.0 * self.pieces, "a counter")


EVENTS: list[str] = []


def test_train_counts_what_it_costs_without_evaluation(data, monkeypatch):
    EVENTS.clear()
    monkeypatch.setattr(training, "Meter", FakeMeter)
    monkeypatch.setattr(training, "evaluate", lambda *_: EVENTS.append("evaluate") or 0.5)
    result = train(models.mlp((12, 2)), data, epochs=2, batch_size=16)
    assert EVENTS == ["start", "step", "step", "stop", "evaluate"] * 2
    assert (result.cpu_seconds, result.joules, result.energy) == (4.0, 6.0, "a counter")


def test_pruning_counts_what_it_costs(data, monkeypatch):
    @dataclasses.dataclass
    class Fake:
        device: object
        cost = Cost(9.0, 2.5, 30.0, "a counter")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(networks, "Meter", Fake)
    network = Network("lenet_300_100", (3, 4), 2, 0.1)
    batch = (data.train_x[:16], data.train_y[:16])
    options = {"scope": "global", "batch_size": 16, "seed": 0, "clock": Ticks()}
    made = networks.pruned(network, [batch], "snip", 0.5, (1, 1), shuffled=True, **options)
    assert [(one.prune_cpu_seconds, one.prune_joules) for one in made] == [(2.5, 30.0)] * 2


def test_results_from_before_costs_were_measured_can_be_read(data):
    now = dataclasses.asdict(train(models.mlp((12, 2)), data, epochs=1, batch_size=16))
    old = {name: value for name, value in now.items() if name not in ("cpu_seconds", "joules", "energy")}
    result = result_of(old)
    assert (result.cpu_seconds, result.joules, result.energy) == (None, None, "not measured")
    assert dataclasses.asdict(result_of(now)) == now


def test_save_curves_tells_all_kinds_of_networks_apart(data, tmp_path):
    pytest.importorskip("matplotlib")
    from sparseprune.experiments.compare.plot import _style, save_curves

    kinds = [
        ("dense", "dense", None, None),
        ("small dense, width 0.1", "small dense", None, 0.9),
        ("small dense, by hand", "small dense", None, None),
        ("F-test 2 + small dense", "screened", None, None),
        ("F-test 5 + small dense", "screened", None, None),
        ("convolutional", "conv", None, None),
        ("snip 90 %", "sparse", "snip", 0.9),
        ("a mask of one's own", "sparse", "own", None),
    ]
    contenders = [
        of_network((3, 4), label=label, kind=kind, method=method, sparsity=sparsity)
        for label, kind, method, sparsity in kinds
    ]
    runs = train_contenders(data, contenders, epochs=2, batch_size=16)
    styles = [_style(run, runs) for run in runs]
    assert len({str(sorted(style.items(), key=str)) for style in styles[:2] + styles[3:]}) == 7
    assert [style["linestyle"] for style in styles[3:5]] == ["-.", "-."]
    for style in styles[1:6]:
        red, green, blue = style["color"]
        assert red == green == blue
    save_curves([("Equal epochs", runs)], "a headline", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
