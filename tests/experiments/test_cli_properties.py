"""Whatever is written after a command, it ends with exit code 0, 1 or 2 and no traceback."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
pytest.importorskip("tabulate")
pytest.importorskip("safetensors")

from typer.testing import CliRunner

from sparseprune.experiments.cli.app import app

HUGE = "99999999999999999999999"
ODD = ["", "x", "nan", "inf", "-inf", "-1", "0", "0.5", "1e400", "1e-400", "1,2", "½", " 1"]
NUMBER = [*ODD, HUGE, f"-{HUGE}", "1e30"]
METHODS = ["random", "magnitude", "snip", "grasp", "synflow", "force", "prospr", "", "random,snip", "x"]
BLOCKS = ["1", "4", "16x1", "3", "4x2", "auto", "1,4", "", "x", HUGE]
# In a folder of its own.
PATHS = ["", ".", "a-file", "a-file/x", "new/folder/x", "x" * 300, "\udcff", "/dev/null", "/dev/full"]
JSON = ["{}", "[]", "{", "1", "null", '{"a": 1}', '{"width": "x"}', "", "[" * 1200]
NAMES = ["", "x", "os:getcwd", "os:", ":", "a.b:c", "math:pi", "json:loads", "builtins:int"]

# Values of each option: some that are right, and wrong ones; none with which a command works for minutes.
INPUTS = {
    "--data": ["digits", "x.npz", "/dev/null", *NAMES],
    "--data-args": JSON,
    "--data-dir": PATHS,
    "--samples": ["20", *NUMBER],
    "--model": ["lenet_300_100", "resnet8", "lenet5_caffe", *NAMES],
    "--model-args": JSON,
    "--batch-size": ["7", *NUMBER],
    "--threads": ["1", "2", *NUMBER],
    "--prune-batches": ["1", *NUMBER],
    "--out": PATHS,
    "--json": None,
}
TRAINING = {"--epochs": ["1", *NUMBER], "--optimizer": ["adam", "sgd", "", "x"], "--lr": ["0.1", *NUMBER]}
CHOICE = {
    "--method": METHODS,
    "--scope": ["global", "layer", "erk", "", "x"],
    "--sparsity": ["0", "0.9", "0.999", "1", *NUMBER],
    "--block": BLOCKS,
    "--seed": ["3", *NUMBER],
    "--pattern": ["2:4", "1:8", "fan_in", "4:2", "0:4", "", "x"],
    "--keep": ["first", "last", "3", "3.weight", "", "x"],
    "--min-per-layer": ["1", "50", *NUMBER],
    "--rounds": ["1", "3", "0", "-1", "x"],
    "--preset": ["paper", "authors", "", "x"],
}
OPTIONS = {
    "prune": {
        **INPUTS,
        **CHOICE,
        "--flops": ["0.1", "1e-9", *NUMBER],
        "--speedup": ["nan", "0", "-1", "inf", "x"],
    },
    "train": {**INPUTS, **CHOICE, **TRAINING, "--budget": ["0.001", *ODD], "--masks": PATHS},
    "cost": {
        **{name: INPUTS[name] for name in ("--data", "--model-args", "--batch-size", "--threads", "--json")},
        "--sample": ["20", "1x8x8", "3x8x8", "8x8", "0", "x", "", HUGE, f"{HUGE}x1x1", "1x1x1", "9" * 12],
        "--classes": ["4", *NUMBER],
        "--block": BLOCKS,
    },
    "frontier": {
        **INPUTS,
        **TRAINING,
        "--methods": METHODS,
        "--rules": ["erk", "uniform", "global", "cost", "cost,erk", "", "x"],
        "--blocks": BLOCKS,
        "--budgets": ["0.2", "1", "1e-9", "0.2,0.2", *NUMBER],
        "--exponents": ["0", "1", *NUMBER],
        "--seeds": ["0,0", "1,2", *NUMBER],
        "--small-budgets": ["0.3,0.1", *NUMBER],
        "--widths": ["1,2", *NUMBER],
        "--width": ["2", *NUMBER],
        "--tune": ["2", "1", "-1", "x"],
        "--tune-factor": ["2", *NUMBER],
        "--tune-epochs": ["1", *NUMBER],
        "--limit-minutes": ["100", "-1", "nan", "inf", "x"],
        "--shuffled": None,
        "--rescale": None,
        "--report-only": None,
    },
}
TINY = ["--data", "digits", "--model", "lenet_300_100", "--samples", "20", "--batch-size", "8"]
USUAL = {
    "prune": TINY,
    "train": [*TINY, "--epochs", "1"],
    "cost": ["lenet_300_100", "--flops"],
    "frontier": [
        *(*TINY, "--out", "frontier", "--epochs", "1", "--prune-batches", "1", "--methods", "random"),
        *("--rules", "erk", "--blocks", "1", "--budgets", "0.2", "--seeds", "0"),
    ],
}


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    """A command with its usual arguments and some others; 10 to 500 ms each."""
    command = draw(st.sampled_from(["prune", "train", "cost", "frontier"]))
    words = [command, *USUAL[command]]
    for name, values in draw(st.lists(st.sampled_from(list(OPTIONS[command].items())), max_size=3)):
        # As one word: a value may begin with a hyphen.
        words.append(name if values is None else f"{name}={draw(st.sampled_from(values))}")
    return words


# A fifth of what is usual: some of them train.
@settings(max_examples=settings().max_examples // 5)
@given(words=commands())
def test_commands_end_without_a_traceback(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    folder, before, threads = tmp_path_factory.mktemp("command"), Path.cwd(), torch.get_num_threads()
    (folder / "a-file").touch()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(app, words)
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
    assert result.exit_code in (0, 1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if result.exit_code == 1:
        # Its last line says why.
        assert result.stderr.splitlines()[-1].startswith("Error: ")
    elif result.exit_code == 2:
        assert "Error" in result.stderr
    assert "Traceback" not in result.output
