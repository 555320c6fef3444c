"""SIGKILL at random moments of each command: nothing that was finished is lost, nothing is half-written."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
pytest.importorskip("tabulate")
pytest.importorskip("safetensors")

from sparseprune.experiments.cli import mask_file
from sparseprune.experiments.frontier import results
from sparseprune.experiments.models import Network
from sparseprune.format import files

MOMENTS = int(os.environ.get("SPARSEPRUNE_KILLS", "2"))  # of each command
TINY = ["--data", "digits", "--model", "lenet_300_100", "--samples", "200", "--threads", "1"]
NETWORK = Network("lenet_300_100", (1, 8, 8), 10)


def read_checkpoint(file: Path) -> None:
    saved = torch.load(file, weights_only=True)
    assert saved["state_dict"].keys() >= {"1.weight", "5.bias"}
    assert 0 <= saved["accuracy"] <= 1


def read_masks(file: Path) -> None:
    assert len(mask_file.load(file, NETWORK, 0)["masks"]) == 3


def read_report(folder: Path) -> None:
    """Whatever there is of a report is whole."""
    for file in folder.iterdir():
        if file.name == "results.json":
            assert len(json.loads(file.read_text())["runs"]) == 3
        elif file.name == "curves.png":
            read_picture(file)
        elif file.name == "table.md":
            assert file.read_text(encoding="utf-8").endswith(
                "batch-norm keeps. MFLOP/step: products of one step, kept weights only.\n"
            )
        else:
            assert is_part(file), file


def read_picture(file: Path) -> None:
    picture = file.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture.endswith(b"IEND\xaeB`\x82")


def is_part(file: Path) -> bool:
    return file.match(files.PART.format("*"))


COMMANDS: dict[str, tuple[list[str], Callable[[Path], None]]] = {
    "train": (["train", *TINY, "--method", "snip", "--epochs", "3"], read_checkpoint),
    "prune": (["prune", *TINY, "--method", "grasp"], read_masks),
    "compare": (
        ["compare", *TINY, "--methods", "random", "--sparsities", "0.5", "--epochs", "1"],
        read_report,
    ),
}
FRONTIER = [
    *("frontier", *TINY, "--epochs", "1", "--methods", "random,snip", "--rules", "erk", "--blocks", "1"),
    *("--budgets", "0.2", "--seeds", "0,1"),
]
RUNS = 8  # of this frontier


def start(command: list[str], out: Path) -> subprocess.Popen[str]:
    """The command, from when it has imported all and begins."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sparseprune", *command, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("data: digits"), first + process.stdout.read()
    return process


def end(command: list[str], out: Path) -> float:
    """Let it run; the seconds from its beginning."""
    with start(command, out) as process:
        begin = time.monotonic()
        text, _ = process.communicate()
        assert process.returncode == 0, text
    return time.monotonic() - begin


def kill(command: list[str], out: Path, seconds: float) -> float | None:
    """Kill it after so many seconds; the seconds that it took if it had ended before."""
    with start(command, out) as process:
        begin = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=seconds)
        took = time.monotonic() - begin
        process.kill()
    assert process.returncode in (0, -signal.SIGKILL)
    return took if process.returncode == 0 else None


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_leaves_a_whole_file_or_none(name: str, tmp_path: Path) -> None:
    command, read = COMMANDS[name]
    seconds = end(command, tmp_path / "whole")
    read(tmp_path / "whole")
    moments, killed = random.Random(name), 0
    for number in range(MOMENTS):
        # Over the old file every other time.
        out = tmp_path / f"{number // 2}" / "out"
        there = out.exists()
        took = kill(command, out, moments.uniform(0, seconds))
        killed += took is None
        # The first run measured layers; the others read what it measured.
        seconds = min(seconds, took or seconds)
        if there or out.exists():
            read(out)
    print(f"{name}: {killed} of {MOMENTS} killed in {seconds:.2f} s")
    assert killed > 0
    end(command, out)
    read(out)
    for folder in {path.parent for path in tmp_path.rglob("*")}:
        assert sum(map(is_part, folder.iterdir())) <= 2


@pytest.mark.slow
def test_a_killed_frontier_goes_on(tmp_path: Path) -> None:
    seconds = end(FRONTIER, tmp_path / "whole")
    expected = [one.point for one in results.read(tmp_path / "whole" / results.FILE)]
    assert len(expected) == RUNS
    moments, killed, done = random.Random("frontier"), 0, 0
    out = tmp_path / "0"
    cut: list[str] = []
    for number in range(MOMENTS):
        killed += kill(FRONTIER, out, moments.uniform(0, seconds)) is None
        found = [one.point for one in results.read(out / results.FILE, warn=cut.append)]
        # All that were done before, and in their order.
        assert found == expected[: len(found)]
        assert len(found) >= done
        done = len(found)
        for file in out.iterdir():
            if file.name == "frontier.png":
                read_picture(file)
            elif file.name == "table.md":
                assert "Bold" in file.read_text(encoding="utf-8")
            else:
                assert is_part(file) or file.name in (results.FILE, f"{results.FILE}.lock")
        if done == RUNS:
            out, done = tmp_path / f"{number + 1}", 0
    print(f"frontier: {killed} of {MOMENTS} killed in {seconds:.2f} s, {len(cut)} lines cut off")
    assert killed > 0
    end(FRONTIER, out)
    assert [one.point for one in results.read(out / results.FILE)] == expected
    for folder in tmp_path.iterdir():
        assert sum(map(is_part, folder.iterdir())) <= MOMENTS
