"""Networks wider than the original, pruned to its FLOPs."""

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("pandas")

from test_frontier import FakeTrainer, record

from sparseprune import scores
from sparseprune.cost.flops import flops_costs
from sparseprune.experiments import models
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.frontier.points import Point, frontier_points
from sparseprune.experiments.frontier.rules import masks_within
from sparseprune.experiments.frontier.run import frontier
from sparseprune.experiments.frontier.statistics import statistics
from sparseprune.experiments.models import Network
from sparseprune.select.budget import LayerCost

WIDE = {"methods": ["random", "snip"], "rules": ["erk", "cost"], "block_rows": [1], "seeds": [0]}


@pytest.fixture
def data():
    y = torch.arange(40) % 3
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    return Dataset("clouds", "this test", x[:30], y[:30], x[30:], y[30:])


def test_wide_points_have_rules_that_set_densities_by_layer():
    points = frontier_points(flops=[0.1], widths=[1, 2], **WIDE)
    assert [point.label for point in points if point.kind == "sparse"] == [
        "random erk V=1 10 % FLOPs, seed 0",
        "random cost^0.5 V=1 10 % FLOPs, seed 0",
        "random erk V=1 2x wide 10 % FLOPs, seed 0",
        "snip erk V=1 10 % FLOPs, seed 0",
        "snip cost^0.5 V=1 10 % FLOPs, seed 0",
        "snip erk V=1 2x wide 10 % FLOPs, seed 0",
    ]
    assert points[4].method_text == "random 2x wide"
    assert Point.from_dict(points[4].to_dict()) == points[4]
    assert [point.width for point in frontier_points(flops=[0.1], widths=[4], **WIDE)[2:]] == [4.0, 4.0]


@pytest.mark.parametrize("width", [0.5, 17, float("nan")])
def test_points_refuse_other_widths(width):
    with pytest.raises(ValueError, match=rf"expected widths from 1 to 16, times .*, got {width}"):
        frontier_points(widths=[width])


def test_points_refuse_wide_networks_without_a_rule_for_them():
    with pytest.raises(ValueError, match="a rule of uniform, erk for networks 2 times as wide, got cost"):
        frontier_points(rules=["cost"], widths=[1, 2])


def test_masks_take_a_fraction_of_the_cost_of_another_network():
    scored = {"w": torch.arange(100.0).reshape(10, 10)}
    masks = masks_within("uniform", scored, {"w": LayerCost(1.0, 0.0, 100.0)}, 0.5, whole=40.0)
    assert int(masks["w"].sum()) == 20
    with pytest.raises(ValueError, match=r"at least 0.2, that of one block .* got 0.1"):
        masks_within("uniform", scored, {"w": LayerCost(1.0, 0.0, 100.0)}, 0.1, whole=5.0)


def test_wide_networks_take_the_operations_of_the_original_budget(data, tmp_path):
    points = frontier_points(flops=[0.25], widths=[1, 2], **WIDE)
    found = frontier(data, "lenet_300_100", points, tmp_path / "runs.jsonl", trainer=FakeTrainer())
    for one in found[1:]:
        assert one.measured.flops_vs_dense == pytest.approx(0.25, rel=0.02)
        assert one.measured.width == (
            one.point.width if one.point.kind == "sparse" else pytest.approx(0.38, abs=0.1)
        )
    wide = next(one.measured for one in found if one.point.width == 2)
    assert [layer.weights for layer in wide.layers] == [12 * 600, 600 * 200, 200 * 3]
    network = Network("lenet_300_100", data.sample, data.classes, 2.0)
    model = models.build(network, 0)
    whole = sum(
        cost.dense
        for cost in flops_costs(models.build(Network("lenet_300_100", (12,), 3), 0), (12,)).values()
    )
    masks = masks_within("erk", scores.random(model, seed=0), flops_costs(model, (12,)), 0.25, whole=whole)
    assert [layer.kept for layer in wide.layers] == [int(mask.sum()) for mask in masks.values()]


def test_the_network_itself_may_be_wider(data, tmp_path):
    points = frontier_points(
        flops=[0.25], methods=["random"], rules=["erk"], block_rows=[1], widths=[1, 2], seeds=[0]
    )
    file = tmp_path / "runs.jsonl"
    dense, small, sparse, wide = frontier(
        data, "lenet_300_100", points, file, width=2.0, trainer=FakeTrainer()
    )
    assert dense.settings["width"] == 2.0
    assert dense.measured.weights == 12 * 600 + 600 * 200 + 200 * 3
    assert [one.measured.width for one in (dense, sparse, wide)] == [2.0, 2.0, 4.0]
    assert small.measured.width < 2
    for one in (small, sparse, wide):
        assert one.measured.flops_vs_dense == pytest.approx(0.25, rel=0.02)
    with pytest.raises(ValueError, match=r"got others: width 2.0 there, None now; give another --out"):
        frontier(data, "lenet_300_100", points, file, trainer=FakeTrainer(0))


def test_networks_without_a_width_are_told(data, tmp_path, monkeypatch):
    (tmp_path / "narrow_mine.py").write_text(
        "from torch import nn\n\ndef fixed():\n    return nn.Linear(12, 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    points = frontier_points(
        flops=[0.25], methods=["random"], rules=["erk"], block_rows=[1], widths=[2], seeds=[0]
    )
    points = [point for point in points if point.kind != "small dense"]
    message = (
        "a network that takes a width, to make it 2 times as wide; give narrow_mine:fixed a keyword width=1.0"
    )
    with pytest.raises(ValueError, match=message):
        frontier(data, "narrow_mine:fixed", points, tmp_path / "runs.jsonl", trainer=FakeTrainer(0))
    with pytest.raises(ValueError, match=message):
        frontier(
            data, "narrow_mine:fixed", points[:1], tmp_path / "runs.jsonl", width=2.0, trainer=FakeTrainer(0)
        )


def test_wide_networks_are_no_reference_and_come_last():
    uniform = Point("sparse", 0, 0.1, "random", "uniform", None, 1)
    wide = Point("sparse", 0, 0.1, "random", "uniform", None, 1, width=2.0)
    snip = Point("sparse", 0, 0.1, "snip", "erk", None, 1)
    table = statistics([record(wide, 0.95, 5.0), record(snip, 0.9, 10.0), record(uniform, 0.8, 10.0)])
    assert list(table.family) == ["random uniform V=1", "snip erk V=1", "random uniform V=1 2x wide"]
    assert table.vs_random[1] == pytest.approx(0.1)
