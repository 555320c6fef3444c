"""A frontier of several lengths of training: one file, rows by length, references of any length."""

import dataclasses
import json
import math

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from test_frontier import FEW, TINY, FakeTrainer, record
from typer.testing import CliRunner

from sparseprune.experiments.cli.app import app
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.frontier import report, results
from sparseprune.experiments.frontier.points import Point, frontier_points
from sparseprune.experiments.frontier.run import frontier
from sparseprune.experiments.frontier.statistics import interval, statistics, to_dicts

ERK = Point("sparse", 0, 0.1, "random", "erk", None, 1)


def of_length(point, epochs, accuracy, seconds):
    one = record(point, accuracy, seconds)
    return dataclasses.replace(one, settings={**one.settings, "epochs": epochs})


@pytest.fixture
def run():
    threads = torch.get_num_threads()
    yield lambda *arguments: CliRunner().invoke(app, ["frontier", *map(str, arguments)])
    torch.set_num_threads(threads)


def test_one_file_holds_runs_of_several_lengths(tmp_path):
    y = torch.arange(40) % 3
    data = Dataset("clouds", "this test", torch.randn(30, 12), y[:30], torch.randn(10, 12), y[30:])
    file, points = tmp_path / "runs.jsonl", frontier_points(flops=[0.5], seeds=[0], **{**FEW, "methods": []})
    short = frontier(data, "lenet_300_100", points, file, epochs=1, trainer=FakeTrainer())
    trainer = FakeTrainer()
    long = frontier(data, "lenet_300_100", points, file, epochs=3, trainer=trainer)
    assert len(trainer.seeds) == 2
    assert results.read(file) == [*short, *long]
    assert [one.epochs for one in long] == [3, 3]
    assert frontier(data, "lenet_300_100", points, file, epochs=1, trainer=FakeTrainer(0)) == short
    file.write_bytes(2 * file.read_bytes())
    with pytest.raises(ValueError, match=r"got dense, seed 0 in lines 1 and 5; .* lines 5, 6, 7, 8$"):
        results.read(file)


def test_rows_compare_with_dense_of_the_same_epochs_and_small_dense_of_any():
    table = statistics(
        [
            *(of_length(Point("dense", 0), 3, 0.95, 40.0), of_length(ERK, 3, 0.92, 20.0)),
            *(of_length(Point("dense", 0), 1, 0.9, 10.0), of_length(ERK, 1, 0.85, 5.0)),
            *(
                of_length(Point("small dense", 0, 0.1), epochs, 0.8 + epochs / 25, 5.0 * epochs)
                for epochs in (1, 3)
            ),
        ]
    )
    assert [(line.epochs, line.kind) for line in table.itertuples()] == [
        *((1, "dense"), (1, "small dense"), (1, "sparse"), (3, "dense"), (3, "small dense"), (3, "sparse"))
    ]
    short, long = table.iloc[2], table.iloc[5]
    assert (short.above_dense, short.vs_small, short.vs_dense) == pytest.approx((-0.05, 0.01, 0.5))
    # At 20 s dense of one epoch and small dense of three are known; then comes dense of three, at 40 s.
    expected = 0.92 + (0.95 - 0.92) * math.log(20 / 15) / math.log(40 / 15)
    assert (long.above_dense, long.vs_small, long.vs_dense) == pytest.approx((-0.03, 0.92 - expected, 0.5))
    assert [row["epochs"] for row in to_dicts(table)] == [1, 1, 1, 3, 3, 3]
    assert list(table.best) == [True, False, True, True, True, False]


def test_interval_of_three_values_is_their_range():
    assert interval((0.5, 0.1, 0.2)) == pytest.approx((0.1, 0.5))
    assert interval((0.5, 0.1)) == pytest.approx((0.1, 0.5))
    assert interval((0.3, 0.3, 0.3)) == pytest.approx((0.3, 0.3))
    assert all(math.isnan(end) for values in ((0.5,), (0.5, math.nan, 0.1)) for end in interval(values))


def test_interval_of_many_values_is_about_two_standard_errors():
    values = tuple(float(value) for value in torch.randn(100, generator=torch.Generator().manual_seed(0)))
    mean = sum(values) / 100
    error = math.sqrt(sum((value - mean) ** 2 for value in values)) / 100
    # The quantiles of 10,000 resamples are known to some hundredths of a standard error.
    assert interval(values) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.15 * error)


def test_difference_is_shown_with_its_interval():
    records = [
        of_length(dataclasses.replace(point, seed=seed), 3, accuracy, 10.0)
        for seed, gain in enumerate((0.001, 0.005, 0.003))
        for point, accuracy in ((Point("dense", 0), 0.9), (ERK, 0.9 + gain))
    ]
    table = statistics(records)
    assert list(report.texts(table)["vs dense"]) == ["", "+0.30 [0.10, 0.50]"]
    assert list(report.texts(statistics(records[:2]))["vs dense"]) == ["", "+0.10"]


def test_report_has_a_panel_and_rows_for_each_length(tmp_path):
    records = [
        of_length(point, epochs, 0.8 + point.flops / 10 + epochs / 100, epochs * (1 + point.flops))
        for epochs in (10, 1, 3)
        for point in frontier_points(methods=["random"], block_rows=[1], seeds=[0, 1])
    ]
    report.write(records, tmp_path)
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert page.startswith("**lenet_300_100 on clouds, 1, 3 and 10 epochs, batch 16, 2 threads**")
    assert list(report.texts(statistics(records))["epochs"].unique()) == ["1", "3", "10"]
    assert "epochs" not in report.texts(statistics(records[:5]))


def test_command_trains_all_lengths_shortest_first(run, tmp_path):
    some = [*TINY, "--seeds", 0, "--methods", "random", "--rules", "erk", "--out", tmp_path]
    result = run(*some, "--epochs", "2,1")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [line["settings"]["epochs"] for line in lines] == [1, 1, 1, 2, 2, 2]
    assert "1 epoch:\n1/3 dense" in result.stderr
    assert "lenet_300_100 on digits, 1 and 2 epochs" in result.stdout
    result = run(*some, "--epochs", "3", "--limit-minutes", 0)
    assert result.exit_code == 130
    assert "time is up; the same command goes on where this one stopped" in result.stderr
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 6


def test_command_tunes_rates_and_prunes_wide_networks(run, tmp_path):
    pytest.importorskip("optuna")
    some = [
        *TINY,
        "--methods",
        "random",
        "--rules",
        "erk",
        "--widths",
        2,
        "--seeds",
        0,
        "--out",
        tmp_path,
        "--json",
    ]
    result = run(*some, "--tune", 2, "--tune-factor", 2, "--tune-epochs", 1)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["settings"]["tuning"]["trials"] == 2
    assert [row["point"]["width"] for row in content["rows"]] == [1.0, 1.0, 2.0]
    assert {row["lr"] for row in content["rows"]} <= {0.0005, 0.001}
    assert "random erk V=4 2x wide 20 % FLOPs, 1 epoch" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "1,0"], "expected whole numbers above 0 with commas between, got '1,0'"),
        (["--tune-epochs", 3], "--tune-epochs: expected --tune, the number of trials, as well"),
        (["--tune", 1], "should be greater than or equal to 2"),
        (["--widths", "2,wide"], "expected numbers with commas between, got '2,wide'"),
        (["--width", 0], "should be greater than or equal to 0.01"),
    ],
)
def test_command_refuses(run, tmp_path, arguments, message):
    result = run("--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
