"""The option --data-args reaches the data, whatever the command."""

import json
import re

import pytest

pytest.importorskip("typer")
pytest.importorskip("safetensors")

from typer.testing import CliRunner

from sparseprune.experiments.cli.app import app

SOURCE = """
import numpy as np


def noise(samples, inputs=6):
    x = np.random.default_rng(0).normal(size=(samples, inputs))
    return x, np.arange(samples) % 3, x, np.arange(samples) % 3
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "args_of_mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def words(text):
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize(
    "command",
    [
        ["prune"],
        ["train"],
        ["compare"],
        ["frontier", "--out", "runs"],
        ["ticket"],
        ["cost", "lenet_300_100", "--flops"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mosaic", '{"tile": 99}'], "mosaic: expected tile from 0 to 48, got 99"),
        (["mosaic", '{"informative": 50}'], "mosaic: expected informative from 1 to 49, got 50"),
        (
            ["mosaic", "[1]"],
            "--data-args: expected keyword arguments as JSON, such as '{\"jitter\": 2}', got",
        ),
        (["digits", '{"tile": 1}'], 'digits takes no arguments, got {"tile": 1}'),
        (["args_of_mine:noise", '{"sample": 9}'], "expected arguments that fit (samples, inputs=6), got"),
    ],
)
def test_commands_tell_what_is_wrong_with_arguments_of_the_data(run, command, arguments, message):
    for package in ("pandas", "matplotlib", "tabulate", "sklearn"):
        pytest.importorskip(package)
    data, args = arguments
    result = run(*command, "--data", data, "--data-args", args)
    assert result.exit_code == 1
    assert message in words(result.stderr)


def test_arguments_shape_the_data(run):
    args = '{"samples": 20, "inputs": 7}'
    given = ["--data", "args_of_mine:noise", "--data-args", args]
    result = run("cost", "lenet_300_100", *given, "--flops", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["layers"][0]["weights"] == 300 * 7
    result = run("prune", "--model", "lenet_300_100", *given, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["data"] == f"args_of_mine:noise with {args}"
