"""``sparseprune mosaic`` as a user meets it."""

import json
import re

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytest.importorskip("pandas")
pytest.importorskip("tabulate")
pytest.importorskip("matplotlib")

from rich.cells import cell_len
from typer.testing import CliRunner

from sparseprune.experiments.cli.app import app
from sparseprune.experiments.mosaic import report, theme
from sparseprune.experiments.mosaic import run as running

TINY = [
    *("mosaic", "--samples", "60", "--test-samples", "20", "--epochs", "1", "--width", "0.01"),
    *("--methods", "random", "--threads", "1", "--tile", "3"),
]


@pytest.fixture
def call():
    threads = torch.get_num_threads()
    yield lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
    torch.set_num_threads(threads)


def test_mosaic_prints_a_table_that_fits_and_writes_its_files(call, tmp_path, monkeypatch):
    monkeypatch.setattr(theme, "DOTS", 20)
    result = call(*TINY, "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("dense "))
    assert all(cell_len(line) <= 80 for line in lines[: start + 6])
    assert "random 99 %, the most accurate of the pruned networks, reaches " in result.stdout
    assert "data: mosaic of " in result.stderr
    assert sorted(file.name for file in (tmp_path / "demo").iterdir()) == sorted(report.FILES)
    content = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert content["mosaic"]["tiles"] == [3]
    assert content["data"]["train"] == 60
    assert len(content["runs"]) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", "49"], "mosaic: expected tile from 0 to 48, got 49"),
        (["--informative", "50"], "mosaic: expected informative from 1 to 49, got 50"),
        (["--contrast", "0"], "mosaic: expected a contrast above 0 and up to 1, got 0.0"),
        (["--task", "other"], "mosaic: expected a task of tile, same, got 'other'"),
        (["--images", "cats"], "mosaic: expected images of fashion-mnist or mnist5k, got 'cats'"),
        (["--samples", "0"], "mosaic: expected samples from 1, got 0"),
        (["--methods", "snip,guess"], "mosaic: expected methods of random, .*, got 'guess'"),
        (["--sparsity", "1"], r"mosaic: expected a sparsity in \[0, 1\), got 1.0"),
        (["--width", "0"], "expected width > 0, got 0.0"),
    ],
)
def test_mosaic_tells_what_is_wrong(call, options, message):
    result = call(*TINY, *options)
    assert result.exit_code == 1
    assert re.search(message, result.stderr)
    assert "Traceback" not in result.output


def test_mosaic_tries_its_files_before_it_works(call, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "demo", lambda *_, **__: pytest.fail("worked"))
    (tmp_path / "mosaic.png").mkdir()
    result = call(*TINY, "--out", tmp_path)
    assert result.exit_code == 1
    assert "cannot write" in result.stderr
