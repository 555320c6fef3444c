"""Tables of the fair frontiers, from runs that are made up."""

import dataclasses

import pytest

pytest.importorskip("sklearn")

from bench.report.tables import fair
from sparseprune.experiments.frontier import results
from sparseprune.experiments.frontier.points import Point
from sparseprune.experiments.frontier.results import Measured, Record

SETTINGS = {"data": "clouds", "model": "wide_mlp", "lr": 0.1}
MACHINE = {"cpu": "c", "isa": "i", "threads": 2, "torch": "t", "sparseprune": "s"}
POINTS = [
    (Point("dense", 0), 0.9, 20.0),
    (Point("small dense", 0, 0.1), 0.8, 5.0),
    (Point("sparse", 0, 0.1, "random", "uniform", None, 1), 0.84, 10.0),
    (Point("sparse", 0, 0.1, "random", "uniform", None, 1, width=2.0), 0.88, 10.0),
]


@pytest.fixture
def folder(tmp_path):
    names = (field.name for field in dataclasses.fields(Measured))
    nothing = {**dict.fromkeys(names, 0), "curve": (), "bytes": {}, "layers": (), "lr": 0.1, "trials": ()}
    for epochs in (1, 3):
        for seed, gain in enumerate((0.0, 0.01)):
            for point, accuracy, seconds in POINTS:
                if (point.width, epochs) == (2.0, 3):
                    continue  # left out for its time
                measured = Measured(
                    **{
                        **nothing,
                        **{
                            "accuracy": accuracy + gain * (point.kind == "sparse"),
                            "total_seconds": epochs * seconds,
                        },
                    }
                )
                record = Record(
                    dataclasses.replace(point, seed=seed), {**SETTINGS, "epochs": epochs}, MACHINE, measured
                )
                results.append(tmp_path / results.FILE, record)
    return tmp_path


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_accuracies_have_columns_for_each_length(folder):
    heads, _, *lines = cells(fair.accuracies(folder))
    assert heads == ["", "1 epoch, %", "time", "3 epochs, %", "time"]
    assert lines == [
        ["dense", "90.00 ± 0.00", "20.0 s", "90.00 ± 0.00", "60.0 s"],
        ["small dense, 10 %", "80.00 ± 0.00", "5.0 s", "80.00 ± 0.00", "15.0 s"],
        ["random masks, uniform, 10 %", "84.50 ± 0.71", "10.0 s", "84.50 ± 0.71", "30.0 s"],
        ["twice as wide, uniform, 10 %", "88.50 ± 0.71", "10.0 s", "", ""],
    ]


def test_differences_are_paired_and_have_intervals(folder):
    heads, _, *lines = cells(fair.differences({"MLP": folder}, "above_dense"))
    shown = {line[0]: dict(zip(heads, line, strict=True)) for line in lines}
    assert shown["MLP, 1 epoch"]["random masks, uniform, 10 %"] == "-5.50 [-6.00, -5.00]"
    assert shown["MLP, 1 epoch"]["twice as wide, uniform, 10 %"] == "-1.50 [-2.00, -1.00]"
    assert shown["MLP, 3 epochs"]["twice as wide, uniform, 10 %"] == ""
    # 10 s lie midway in log time between small dense and dense of one epoch; those of three are no better.
    heads, _, first, _ = cells(fair.differences({"MLP": folder}, "vs_small"))
    assert dict(zip(heads, first, strict=True))["random masks, uniform, 10 %"] == "-0.50 [-1.00, 0.00]"
