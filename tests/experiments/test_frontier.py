import dataclasses
import json
import math
import re
import warnings

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytest.importorskip("pandas")

from typer.testing import CliRunner

import sparseprune as sp
from sparseprune import scores
from sparseprune.cost.flops import flops_costs, flops_per_step
from sparseprune.cost.timer import Timed
from sparseprune.experiments import models
from sparseprune.experiments.cli.app import app
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.frontier import report, results
from sparseprune.experiments.frontier.points import Point, frontier_points
from sparseprune.experiments.frontier.results import Layer, Measured, Record
from sparseprune.experiments.frontier.rules import RULES, masks_within, small_dense, training_flops
from sparseprune.experiments.frontier.run import frontier
from sparseprune.experiments.frontier.statistics import statistics, to_dicts
from sparseprune.experiments.models import Network
from sparseprune.experiments.page import what_to_install
from sparseprune.experiments.train import TrainResult
from sparseprune.experiments.watcher import Watcher
from sparseprune.scores import METHODS
from sparseprune.select.budget import LayerCost
from sparseprune.select.quotas import erk_density

SETTINGS = {
    "data": "clouds",
    "train": 60,
    "test": 30,
    "model": "lenet_300_100",
    "epochs": 2,
    "batch_size": 16,
    "optimizer": "Adam (fused)",
    "lr": 0.001,
    "prune_batches": 20,
    "rescale": False,
}
MACHINE = {"cpu": "c", "isa": "i", "threads": 2, "torch": "t", "sparseprune": "s", "date": "d"}
FEW = {"methods": ["random", "snip"], "rules": ["uniform", "cost"], "block_rows": [4]}


def measured(accuracy=0.9, seconds=10.0, **fields):
    defaults = {
        "accuracy": accuracy,
        "curve": ((1.0, 5.0, 0.5), (2.0, seconds, accuracy)),
        "epochs": 2.0,
        "steps": 8,
        "score_seconds": 0.5,
        "select_seconds": 0.25,
        "sparsify_seconds": 0.25,
        "train_seconds": seconds - 1.0,
        "total_seconds": seconds,
        "wall_seconds": seconds + 2.0,
        "step_seconds": 0.004,
        "flops": 1000,
        "flops_vs_dense": 0.1,
        "weights": 1234,
        "width": 1.0,
        "channels_last": False,
        "bytes": {"parameters": 4},
        "layers": (Layer("1.weight", 100, 10, "SparseLinear (1 < 2)"),),
    }
    return Measured(**{**defaults, **fields})


def record(point, accuracy=0.9, seconds=10.0, **fields):
    return Record(point, SETTINGS, MACHINE, measured(accuracy, seconds, **fields))


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = 3 * torch.eye(3).repeat(1, 4)[y] + 0.5 * torch.randn(90, 12, generator=generator)
    return Dataset("clouds", "this test", x[:60], y[:60], x[60:], y[60:])


class FakeTrainer:
    """Trains nothing; is interrupted when it should run once more than `runs` times."""

    def __init__(self, runs=10**9):
        self.runs, self.seeds = runs, []

    def __call__(self, model, data, *, seed, **settings):
        if len(self.seeds) == self.runs:
            raise KeyboardInterrupt
        self.seeds.append(seed)
        return TrainResult(0.5, 1.0, 4, 2.0, 0.1, 0.5, (), {"parameters": 1})


# Masks within a budget


def test_erk_density_is_the_sum_of_the_sizes_by_their_product():
    assert erk_density(torch.Size([64, 32, 3, 3])) == (64 + 32 + 3 + 3) / (64 * 32 * 3 * 3)
    assert erk_density(torch.Size([300, 784])) == (300 + 784) / (300 * 784)


def test_erk_masks_agree_with_a_hand_computed_example_and_cap_layers_at_1():
    shapes = {"big": (100, 100), "small": (10, 10), "wide": (50, 200)}
    sizes = {name: torch.Size(shape) for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(0)
    scored = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    # Raw densities are 0.02, 0.2 and 0.025: of 4000 operations, with positions 1, 5 and 1, a scale s gives
    # 10000 * 0.02 s + 5 * min(100, 20 s) + 10000 * 0.025 s. Capped, 450 s = 3500: s = 70 / 9 > 5.
    assert [erk_density(size) for size in sizes.values()] == pytest.approx([0.02, 0.2, 0.025])
    costs = {
        name: LayerCost(each, 0.0, each * sizes[name].numel())
        for name, each in {"big": 1.0, "small": 5.0, "wide": 1.0}.items()
    }
    masks = masks_within("erk", scored, costs, 4000 / 20_500)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    assert kept == {
        "big": round(0.02 * 70 / 9 * 10_000),
        "small": 100,
        "wide": round(0.025 * 70 / 9 * 10_000),
    }
    # Within a layer the best scores stay.
    for name, mask in masks.items():
        assert mask.all() or scored[name][mask].min() > scored[name][~mask].max()


def test_uniform_masks_have_one_density():
    network = Network("lenet_300_100", (1, 28, 28), 10)
    model = models.build(network, 0)
    masks = masks_within("uniform", scores.magnitude(model), flops_costs(model, network.sample), 0.2)
    for mask in masks.values():
        assert mask.float().mean() == pytest.approx(0.2, abs=0.5 / mask.numel() + 1e-6)


@pytest.mark.parametrize("budget", [0.3, 0.05])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["lenet5_caffe", "resnet20", "wide_mlp"])
def test_masks_meet_the_budget_of_operations(name, rule, rows, budget):
    network = Network(name, (1, 28, 28), 10, 0.5 if name == "wide_mlp" else 1.0)
    model = models.build(network, 0)
    costs = flops_costs(model, network.sample)
    dense = flops_per_step(model, network.sample, 3)
    assert dense == 3 * sum(cost.dense for cost in costs.values())
    # With seconds in proportion to the operations, their budget is that of "uniform".
    seconds = {name: LayerCost(*(1e-9 * number for number in cost)) for name, cost in costs.items()}
    masks = masks_within(rule, scores.magnitude(model), costs, budget, block=(rows, 1), seconds=seconds)
    assert all(mask.any() for mask in masks.values())
    if rows == 4:
        assert all(
            torch.equal(mask.flatten(1)[::4].repeat_interleave(4, 0), mask.flatten(1))
            for mask in masks.values()
            if len(mask) % 4 == 0
        )
    sparse = flops_per_step(sp.sparsify(model, masks, layers="dense"), network.sample, 3)
    assert 0.99 * budget < sparse / dense <= budget


def test_masks_of_measured_time_take_no_longer_than_uniform_ones():
    generator = torch.Generator().manual_seed(0)
    scored = {name: torch.rand(20, 50, generator=generator) for name in ("slow", "quick", "dense")}
    costs = dict.fromkeys(scored, LayerCost(1.0, 0.0, 1000.0))
    seconds = {
        "slow": LayerCost(4.0, 10.0, 2000.0),
        "quick": LayerCost(1.0, 10.0, 1000.0),
        "dense": LayerCost(0.0, 70.0, 70.0),  # has no sparse kernels: all its weights cost the same
    }
    masks = masks_within("time", scored, costs, 0.1, exponent=1.0, seconds=seconds)
    limit = (10 + 4 * 100) + (10 + 100) + 70
    spent = {name: seconds[name].total(int(mask.sum())) for name, mask in masks.items()}
    assert limit - 4 < sum(spent.values()) <= limit
    assert masks["dense"].all()
    assert masks["quick"].sum() > 100 > masks["slow"].sum()


@pytest.mark.parametrize("budget", [1.0, 0.5, 0.1, 0.05])
@pytest.mark.parametrize("name", ["wide_mlp", "vgg_like", "wrn_16_4"])
def test_small_dense_meets_the_budget_of_operations(name, budget):
    network = Network(name, (1, 28, 28), 10)
    small = small_dense(network, budget)
    assert small.width <= 1
    model = models.build(small, 0)
    flops = flops_per_step(model, network.sample, 1)
    assert flops == training_flops(small)
    assert flops / training_flops(network) == pytest.approx(budget, rel=0.01)


def test_masks_refuse_what_cannot_be():
    scored = {"w": torch.rand(10, 10)}
    costs = {"w": LayerCost(1.0, 0.0, 100.0)}
    with pytest.raises(ValueError, match=r"a rule of uniform, erk, global, cost, time, got 'magic'"):
        masks_within("magic", scored, costs, 0.5)
    with pytest.raises(ValueError, match=r"budgets in \(0, 1\], .*, got 1.5"):
        masks_within("erk", scored, costs, 1.5)
    with pytest.raises(ValueError, match=r"at least 0\.01, that of one block of 1x1 in each .* got 0\.005"):
        masks_within("erk", scored, costs, 0.005)
    with pytest.raises(ValueError, match="choose a smaller block"):
        masks_within("erk", scored, costs, 0.5, block=(4, 1))


# Points


def test_points_go_seed_by_seed_and_method_by_method():
    points = frontier_points(
        flops=[0.5, 0.1],
        methods=["snip", "random"],
        rules=["erk", "cost"],
        block_rows=[1, 4],
        exponents=[0.5, 1],
        seeds=[3, 1],
    )
    half = len(points) // 2
    assert [point.seed for point in points] == [3] * half + [1] * half
    assert [dataclasses.replace(point, seed=3) for point in points[half:]] == points[:half]
    first = points[:half]
    assert first[:3] == [Point("dense", 3), Point("small dense", 3, 0.5), Point("small dense", 3, 0.1)]
    assert [point.method for point in first[3:]] == ["snip"] * 12 + ["random"] * 12
    assert first[3] == Point("sparse", 3, 0.5, "snip", "erk", None, 1)
    assert [point.label for point in first[3:15:4]] == [
        "snip erk V=1 50 % FLOPs, seed 3",
        "snip cost^0.5 V=1 50 % FLOPs, seed 3",
        "snip cost^1 V=1 50 % FLOPs, seed 3",
    ]
    assert frontier_points(flops=[0.1, 0.1], seeds=[0, 0]) == frontier_points(flops=[0.1], seeds=[0])


def test_small_dense_points_may_have_budgets_of_their_own():
    points = frontier_points(flops=[0.5], small=[0.3, 0.1], methods=["snip"], rules=["erk"], seeds=[0])
    assert [(point.kind, point.flops) for point in points] == [
        *(("dense", 1.0), ("small dense", 0.3), ("small dense", 0.1), ("sparse", 0.5), ("sparse", 0.5))
    ]
    with pytest.raises(ValueError, match=r"budgets in \(0, 1\], .*, got 2"):
        frontier_points(small=[2])


def test_points_leave_out_what_is_uniform_under_another_name():
    points = frontier_points(flops=[0.1], methods=["random", "snip"], block_rows=[1], seeds=[0])
    assert [f"{p.method_text} {p.rule_text}" for p in points if p.kind == "sparse"] == [
        *("random uniform", "random erk", "random cost^0.5", "random time^0.5"),
        *("snip uniform", "snip erk", "snip global", "snip cost^0.5", "snip time^0.5"),
    ]


def test_shuffled_points_are_those_whose_densities_come_from_scores():
    options = {"flops": [0.1], "methods": ["random", "snip"], "block_rows": [1], "seeds": [0]}
    plain, points = frontier_points(**options), frontier_points(**options, shuffled=True)
    assert [point for point in points if not point.shuffled] == plain
    assert [point.family for point in points if point.shuffled] == [
        f"snip shuffled {rule} V=1" for rule in ("global", "cost^0.5", "time^0.5")
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rules": ["magic"]}, "rules of uniform, erk, global, cost, time, got 'magic'"),
        ({"methods": ["lottery"]}, "methods of random, .*, got 'lottery'"),
        ({"block_rows": [3]}, "blocks of 1, 2, 4, 8, 16, got 3"),
        ({"flops": [0.5, 0.0]}, r"budgets in \(0, 1\], .*, got 0.0"),
        ({"flops": [1.1]}, r"got 1.1"),
        ({"exponents": [2.0]}, "exponents from 0 to 1, got 2.0"),
    ],
)
def test_points_refuse_what_is_unknown_or_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        frontier_points(**wrong)


# Runs


def test_frontier_goes_on_where_it_was_interrupted(data, tmp_path):
    file = tmp_path / "runs.jsonl"
    points = frontier_points(flops=[0.5], seeds=[0, 1], **FEW)
    assert len(points) == 12
    with pytest.raises(KeyboardInterrupt):
        frontier(data, "lenet_300_100", points, file, trainer=FakeTrainer(7))
    assert [found.point for found in results.read(file)] == points[:7]
    # Killed within a line: that run is done again, and its rest does not stay.
    file.write_bytes(file.read_bytes()[:-50])
    trainer = FakeTrainer()
    with pytest.warns(UserWarning, match="the last line of .* was cut off; its run is not counted"):
        records = frontier(data, "lenet_300_100", points, file, trainer=trainer)
    assert trainer.seeds == [0 if point.seed == 0 else 1 for point in points[6:]]
    assert [found.point for found in records] == points
    assert results.read(file) == records
    assert frontier(data, "lenet_300_100", points, file, trainer=FakeTrainer(0)) == records
    more = frontier_points(flops=[0.5, 0.2], seeds=[0], **FEW)
    trainer = FakeTrainer()
    records = frontier(data, "lenet_300_100", more, file, trainer=trainer)
    assert len(trainer.seeds) == 5
    assert [found.point for found in records] == more


def test_frontier_refuses_a_file_of_other_settings_and_says_which(data, tmp_path):
    file = tmp_path / "runs.jsonl"
    points = frontier_points(flops=[0.5], seeds=[0], **FEW)[:1]
    frontier(data, "lenet_300_100", points, file, trainer=FakeTrainer(), epochs=2)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"got others: rescale False there, True now; give another --out"):
        frontier(data, "lenet_300_100", points, file, trainer=FakeTrainer(), epochs=2, rescale=True)
    with pytest.raises(ValueError, match=r"model 'lenet_300_100' there, 'wide_mlp' now; batch_size 256 .* 7"):
        frontier(data, "wide_mlp", points, file, trainer=FakeTrainer(), epochs=2, batch_size=7)
    assert file.read_bytes() == before


def test_frontier_scores_once_for_each_method_and_seed(data, tmp_path, monkeypatch):
    calls = []

    def snip(model, batches, loss, exclude):
        calls.append(len(batches))
        return scores.magnitude(model)

    monkeypatch.setitem(METHODS, "snip", snip)
    points = frontier_points(flops=[0.5, 0.2], methods=["snip"], seeds=[0, 1], block_rows=[1, 4])
    records = frontier(
        *(data, "lenet_300_100", points, tmp_path / "runs.jsonl"), trainer=FakeTrainer(), batch_size=16
    )
    assert calls == [4, 4]  # all batches of 16, of 60 samples
    sparse = [found.measured for found in records if found.point.kind == "sparse"]
    assert all(run.score_seconds > 0 for run in sparse)
    assert {run.score_seconds for run in sparse[:16]} == {sparse[0].score_seconds}


def test_frontier_measures_what_it_says(data, tmp_path):
    points = frontier_points(flops=[0.25], seeds=[0], methods=["snip"], rules=["erk"], block_rows=[4])
    dense, small, sparse = (
        found.measured
        for found in frontier(
            *(data, "lenet_300_100", points, tmp_path / "runs.jsonl"), epochs=2, batch_size=16, lr=0.01
        )
    )
    assert (dense.flops_vs_dense, dense.weights) == (1.0, 12 * 300 + 300 * 100 + 100 * 3)
    assert small.flops_vs_dense == pytest.approx(0.25, rel=0.02)
    assert small.width < 1
    assert sparse.flops_vs_dense == pytest.approx(0.25, rel=0.02)
    assert [layer.name for layer in sparse.layers] == ["1.weight", "3.weight", "5.weight"]
    assert sum(layer.kept for layer in sparse.layers) == sparse.weights < dense.weights
    assert all(re.match(r"(sparse|dense|masked)", layer.computes) for layer in sparse.layers)
    for run in (dense, small, sparse):
        assert (run.epochs, run.steps, len(run.curve)) == (2.0, 8, 2)
        assert run.curve[-1] == (2.0, run.train_seconds, run.accuracy)
        prune_seconds = run.score_seconds + run.select_seconds + run.sparsify_seconds
        assert run.total_seconds == pytest.approx(run.train_seconds + prune_seconds)
        assert (prune_seconds > 0) == (run is sparse)


def test_shuffled_masks_keep_as_many_weights_in_every_layer(data, tmp_path, monkeypatch):
    points = frontier_points(
        flops=[0.25], seeds=[0], methods=["snip"], rules=["cost"], block_rows=[4], shuffled=True
    )
    used, sparsify = [], sp.sparsify

    def spy(model, masks, **settings):
        used.append(masks)
        return sparsify(model, masks, **settings)

    monkeypatch.setattr(sp, "sparsify", spy)
    file = tmp_path / "runs.jsonl"
    *_, plain, shuffled = frontier(data, "lenet_300_100", points, file, batch_size=16, trainer=FakeTrainer())
    assert shuffled.point.shuffled
    assert [layer.kept for layer in shuffled.measured.layers] == [
        layer.kept for layer in plain.measured.layers
    ]
    assert not torch.equal(used[0]["1.weight"], used[1]["1.weight"])
    assert results.read(file)[-1] == shuffled


@pytest.mark.parametrize("rescale", [False, True])
def test_weights_that_stay_are_rescaled_where_asked_for(data, tmp_path, monkeypatch, rescale):
    points = frontier_points(flops=[0.25], seeds=[0], methods=["snip"], rules=["cost"], block_rows=[1])
    ratios, sparsify = [], sp.sparsify

    def spy(model, masks, **settings):
        network = Network("lenet_300_100", data.sample, data.classes)
        now, initial = (of.get_parameter("1.weight").detach() for of in (model, models.build(network, 0)))
        ratios.append(float((now * masks["1.weight"]).norm() / initial.norm()))
        return sparsify(model, masks, **settings)

    monkeypatch.setattr(sp, "sparsify", spy)
    file = tmp_path / "runs.jsonl"
    *_, sparse = frontier(data, "lenet_300_100", points, file, trainer=FakeTrainer(), rescale=rescale)
    assert (ratios[0] == pytest.approx(1)) == rescale
    assert sparse.settings["rescale"] == rescale
    assert ("scored, weights that stay rescaled; " in report.facts(sparse)) == rescale


@pytest.mark.parametrize("faster", [False, True])
def test_frontier_trains_dense_networks_in_the_faster_layout_of_images(data, tmp_path, monkeypatch, faster):
    def timed_steps(models, sample, batch_size):
        for model, channels_last in models:
            assert model[0].weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        return Timed([1.0 if channels_last == faster else 2.0 for _, channels_last in models])

    monkeypatch.setattr("sparseprune.cost.speedup.timed_steps", timed_steps)
    layouts = []

    def trainer(model, *arguments, **settings):
        layouts.append(model[0].weight.is_contiguous(memory_format=torch.channels_last))
        return FakeTrainer()(model, *arguments, **settings)

    images = torch.rand(9, 2, 16, 16)
    data = dataclasses.replace(
        data, train_x=images, train_y=data.train_y[:9], test_x=images, test_y=data.test_y[:9]
    )
    points = frontier_points(flops=[0.5], seeds=[0], methods=[])
    records = frontier(data, "lenet5_caffe", points, tmp_path / "runs.jsonl", trainer=trainer)
    assert layouts == [found.measured.channels_last for found in records] == [faster] * 2


def test_frontier_looks_for_mistakes_before_the_first_run(data, tmp_path):
    points = frontier_points(flops=[0.5, 1e-6], seeds=[0], **FEW)
    trainer = FakeTrainer()
    with pytest.raises(ValueError, match=r"a budget of at least .* got 1e-06"):
        frontier(data, "lenet_300_100", points, tmp_path / "runs.jsonl", trainer=trainer)
    with pytest.raises(ValueError, match="unknown model 'lenet'"):
        frontier(data, "lenet", points, tmp_path / "runs.jsonl", trainer=trainer)
    with pytest.raises(ValueError, match="epochs >= 1, got 0"):
        frontier(data, "lenet_300_100", points, tmp_path / "runs.jsonl", trainer=trainer, epochs=0)
    assert trainer.seeds == []
    assert list(tmp_path.iterdir()) == []


def test_frontier_tells_each_run_and_how_it_ended(data, tmp_path):
    told = []

    class Listener(Watcher):
        def begin(self, task, number, count):
            told.append((task, number, count))

        def end(self, task, outcome):
            told.append((task, outcome))

    points = frontier_points(flops=[0.5], seeds=[0], **FEW)[:2]
    watcher = Listener()
    frontier(data, "lenet_300_100", points, tmp_path / "runs", trainer=FakeTrainer(), watcher=watcher)
    assert told[:2] == [
        ("dense, seed 0", 1, 2),
        ("1/2 dense, seed 0", "50.00 % after 2.0 s, 100 % FLOPs, 33,900 weights"),
    ]
    assert told[2] == ("small dense 50 % FLOPs, seed 0", 2, 2)


# Results


def test_records_come_back_from_the_file(tmp_path):
    file = tmp_path / "runs.jsonl"
    records = [record(Point("dense", 0)), record(Point("sparse", 1, 0.1, "snip", "cost", 0.5, 4), 0.8)]
    for one in records:
        results.append(file, one)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert results.read(file) == records
        assert results.read(tmp_path / "none") == []
    file.write_text('{"point": 1}\n' + file.read_text())
    with pytest.raises(ValueError, match="a run in line 1 of"):
        results.read(file)


def test_rows_have_means_and_deviations():
    erk = Point("sparse", 0, 0.1, "snip", "erk", None, 4)
    records = [
        record(dataclasses.replace(point, seed=seed), accuracy + error, seconds + 1000 * error)
        for seed, error in enumerate((-0.002, 0.0, 0.002))
        for point, accuracy, seconds in [
            (erk, 0.91, 20.0),
            (dataclasses.replace(erk, flops=0.2), 0.905, 30.0),
            (Point("dense", 0), 0.93, 100.0),
            (Point("small dense", 0, 0.1), 0.90, 10.0),
        ]
    ]
    table = statistics(records)
    assert list(table.kind) == ["dense", "small dense", "sparse", "sparse"]
    assert list(table.flops) == [1.0, 0.1, 0.2, 0.1]
    assert list(table.best) == [True, True, False, True]
    little = table.iloc[3]
    assert little.seeds == (0, 1, 2)
    assert (little.accuracy, little.accuracy_std) == pytest.approx((0.91, 0.002))
    assert (little.seconds, little.seconds_std) == pytest.approx((20.0, 2.0))
    assert little.vs_dense == pytest.approx(0.2)
    assert little.prune_seconds == pytest.approx(1.0)
    lines = [" ".join(line.split()) for line in report.page(records).splitlines()]
    assert lines[0] == "**lenet_300_100 on clouds, 2 epochs, batch 16, 2 threads**"
    assert lines[6] == (
        "| snip | erk | 4 | 20 | 3 | 90.50 ± 0.20 | -2.50 [-2.50, -2.50] | -0.94 [-1.00, -0.87] | "
        "| 30.0 ± 2.0 | 0.30 | 1.00 | 10.00 | 1,234 |"
    )
    assert lines[4].startswith("| **dense** | | | **100** | **3** | **93.00 ± 0.20** |")
    (row,) = json.loads(json.dumps(to_dicts(statistics(records[:1])), allow_nan=False))
    assert row == {
        "point": {
            **{"kind": "sparse", "budget": 0.1, "method": "snip", "rule": "erk", "exponent": None},
            **{"block_rows": 4, "shuffled": False, "width": 1.0},
        },
        "epochs": 2,
        "seeds": [0],
        "accuracy": {"mean": 0.908, "std": None},
        "seconds": {"mean": 18.0, "std": None},
        **{"vs_dense": None, "above_dense": None, "vs_small": None, "vs_random": None},
        **{"prune_seconds": 1.0, "flops_vs_dense": 0.1, "weights": 1234.0, "best": True},
        **{"lr": 0.001, "at_edge": False},
    }


def test_rows_compare_with_small_dense_and_uniform_random_masks_of_the_same_time():
    sparse = Point("sparse", 0, 0.1, "snip", "cost", 0.5, 1)
    uniform = dataclasses.replace(sparse, method="random", rule="uniform", exponent=None)
    others = [
        (Point("dense", 0), 0.9, 100.0),
        (uniform, 0.6, 1.0),
        (dataclasses.replace(uniform, flops=0.3), 0.8, 10.0),
        (dataclasses.replace(uniform, flops=0.5), 0.7, 20.0),  # slower and worse: does not count
        (dataclasses.replace(uniform, block_rows=4), 0.1, 5.0),
        (Point("small dense", 0, 0.1), 0.7, 9.0),
    ]

    def compare(seconds, *, seeds=(0,), accuracy=0.75):
        records = [
            record(dataclasses.replace(point, seed=seed), number + seed / 10, time)
            for seed in seeds
            for point, number, time in [*others, (sparse, accuracy, seconds)]
        ]
        table = statistics(records).set_index("network")
        table.index = table.index.map(lambda point: point.label)
        return table

    def of(table):
        return table.loc["snip cost^0.5 V=1 10 % FLOPs, seed 0"]

    # 10^(1/2) s lies midway in log time between random masks of 60 % and 80 %; small dense is slower.
    row = of(compare(10**0.5))
    assert row.vs_random == pytest.approx(0.05)
    assert math.isnan(row.vs_random_low)
    assert math.isnan(row.vs_small)
    # Nor does one that is slower and worse weaken those between 10 s and dense.
    assert of(compare(10 * 10**0.5)).vs_random == pytest.approx(-0.1)
    # A little faster than the fastest counts as as fast, slower than the slowest as dense.
    assert of(compare(0.95)).vs_random == pytest.approx(0.15)
    assert math.isnan(of(compare(0.9)).vs_random)
    assert of(compare(8.5)).vs_small == pytest.approx(0.05)
    assert of(compare(300.0)).vs_random == pytest.approx(-0.15)
    # Seed by seed: what all networks of a seed have in common cancels.
    both = compare(10.0, seeds=(0, 1))
    assert of(both).vs_random == pytest.approx(-0.05)
    assert (of(both).vs_random_low, of(both).vs_random_high) == pytest.approx((-0.05, -0.05))
    # References are not compared with themselves, dense with nothing.
    assert math.isnan(both.vs_random["random uniform V=1 30 % FLOPs, seed 0"])
    assert not math.isnan(both.vs_random["random uniform V=4 10 % FLOPs, seed 0"])
    assert both.vs_small[["dense, seed 0", "small dense 10 % FLOPs, seed 0"]].isna().all()


def test_statistics_leave_out_what_a_seed_has_no_reference_for():
    sparse = Point("sparse", 0, 0.1, "snip", "cost", 0.5, 1)
    records = [
        *(record(Point("dense", 0), 0.9, 10.0), record(sparse, 0.8, 10.0)),
        record(dataclasses.replace(sparse, seed=1), 0.8, 10.0),
    ]
    assert statistics(records[:2]).vs_small[1] == pytest.approx(-0.1)
    assert math.isnan(statistics(records).vs_small[1])


# One line for each of few networks, panels for many; one seed has no error bars.
@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"methods": ["snip"], "rules": ["erk"], "seeds": [0]},
        {"methods": ["snip"], "flops": [0.1]},
        {"methods": []},
    ],
)
def test_plot_and_table_are_written(choice, tmp_path):
    pytest.importorskip("matplotlib")
    points = frontier_points(**choice)
    report.write([record(p, 0.8 + 0.1 * p.flops + p.seed / 1e3, 3 + 10 * p.flops) for p in points], tmp_path)
    picture = (tmp_path / "frontier.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    networks = {dataclasses.replace(point, seed=0) for point in points}
    assert (tmp_path / "table.md").read_text(encoding="utf-8").count("\n| ") == 1 + len(networks)


def test_plot_shows_those_that_did_not_learn_at_its_edge():
    pytest.importorskip("matplotlib")
    from sparseprune.experiments.frontier.plot import limits

    erk = Point("sparse", 0, 0.1, "snip", "erk", None, 1)
    points = [
        (Point("dense", 0), 0.9),
        (Point("small dense", 0, 0.1), 0.8),
        *((dataclasses.replace(erk, flops=budget), 0.8 + budget / 10) for budget in (0.2, 0.3, 0.5)),
    ]
    low, high = limits(statistics([record(*point) for point in points]))
    assert low < 80 < 90 < high < 92
    assert low > 78
    failed = record(dataclasses.replace(erk, rule="global"), 0.1)
    assert limits(statistics([*(record(*point) for point in points), failed])) == (low, high)


# Command line


@pytest.fixture
def run():
    threads = torch.get_num_threads()
    yield lambda *arguments: CliRunner().invoke(app, ["frontier", *map(str, arguments)])
    torch.set_num_threads(threads)


TINY = [
    *("--data", "digits", "--samples", 300, "--model", "lenet_300_100", "--epochs", 1, "--batch-size", 100),
    *("--methods", "random,snip", "--rules", "erk,cost", "--blocks", 4, "--budgets", "0.2"),
]


def test_command_runs_resumes_and_reports(run, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "folder"
    result = run(*TINY, "--seeds", "0,1", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["runs"] == 12
    assert [row["point"]["rule"] for row in content["rows"]] == [None, None, "erk", "cost", "erk", "cost"]
    assert all(row["seeds"] == [0, 1] for row in content["rows"])
    assert "12/12 snip cost^0.5 V=4 20 % FLOPs, seed 1:" in result.stderr
    lines = (out / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 12
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "frontier.html").is_file() == (not what_to_install())
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "300 training and 360 test samples" in table

    (out / "table.md").unlink()
    result = run("--out", out, "--report-only")
    assert result.exit_code == 0, result.output
    assert "lenet_300_100 on digits, 1 epoch" in result.stdout
    assert (out / "table.md").read_text(encoding="utf-8") == table

    assert run(*TINY, "--seeds", "1", "--out", out).exit_code == 0
    assert (out / "runs.jsonl").read_text().splitlines() == lines
    result = run(*TINY, "--seeds", "1", "--out", out, "--lr", 0.5)
    assert result.exit_code == 1
    assert "lr 0.001 there, 0.5 now" in result.stderr


def test_command_reports_what_there_is_after_an_interrupt(run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")

    def interrupted(data, model, points, file, **settings):
        results.append(file, record(points[0]))
        raise KeyboardInterrupt

    monkeypatch.setattr("sparseprune.experiments.cli.frontier.run.frontier", interrupted)
    result = run("--data", "digits", "--out", tmp_path)
    assert result.exit_code == 130
    assert "interrupted; the same command goes on" in result.stderr
    assert (tmp_path / "table.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--rules", "magic"], 2, "rule 'magic' is unknown; known are uniform, erk, global, cost"),
        (["--methods", "lottery"], 2, "method 'lottery' is unknown"),
        (["--model", "lenet"], 1, "unknown model 'lenet'; known are lenet_300_100"),
        (["--budgets", "0.5,much"], 2, "expected numbers with commas between, got '0.5,much'"),
        (["--seeds", "0.5"], 2, "expected whole numbers of 64 bits with commas between"),
        (["--seeds", "99999999999999999999"], 2, "expected whole numbers of 64 bits with commas between"),
        (["--blocks", "3"], 2, "expected blocks of 1, 2, 4, 8, 16 rows"),
        (["--budgets", "0"], 1, "budgets in (0, 1]"),
        (["--budgets", "2"], 1, "budgets in (0, 1]"),
        (["--exponents", "2"], 1, "exponents from 0 to 1"),
        (["--report-only"], 1, "found none; run without --report-only"),
    ],
)
def test_command_says_what_is_wrong(run, tmp_path, arguments, code, message):
    pytest.importorskip("matplotlib")
    result = run("--out", tmp_path / "out", *arguments)
    assert result.exit_code == code, result.output
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).split())
    assert message in text
    assert not (tmp_path / "out").exists()


def test_command_without_matplotlib_says_so_before_it_works(run, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run("--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "pip install matplotlib" in result.stderr
    assert not (tmp_path / "out").exists()
