"""What commands write: tried before they work, whole or not at all, and no loss of results where it fails."""

import errno
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
pytest.importorskip("tabulate")
pytest.importorskip("safetensors")

from test_frontier import FEW, FakeTrainer, record
from typer.testing import CliRunner, Result

import sparseprune as sp
from sparseprune.experiments import train as training
from sparseprune.experiments.cli.app import app
from sparseprune.experiments.compare import run as comparing
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.frontier import results, run
from sparseprune.experiments.frontier.points import Point, frontier_points
from sparseprune.format import files

TINY = ["--data", "digits", "--model", "lenet_300_100", "--samples", "60"]
TRAIN = ["train", *TINY, "--epochs", "1"]
PRUNE = ["prune", *TINY, "--method", "random"]
COMPARE = ["compare", *TINY, "--methods", "random", "--sparsities", "0.5", "--epochs", "1"]
FRONTIER = [
    *("frontier", *TINY, "--epochs", "1", "--methods", "random", "--rules", "erk", "--blocks", "1"),
    *("--budgets", "0.2", "--seeds", "0"),
]
IN_A_FILE, IN_A_FOLDER = [TRAIN, PRUNE], [COMPARE, FRONTIER]
COMMANDS = [*IN_A_FILE, *IN_A_FOLDER]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_of(result: Result) -> str:
    """The one line of an error."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.stderr.splitlines()[-1] == line
    return line.removeprefix("Error: ")


def no_space(*_: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_out_is_tried_before_the_work(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((training, "train"), (sp, "prune"), (comparing, "train"), (run._Work, "measure")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("worked"))
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("old")
    folder.mkdir()
    if command in IN_A_FILE:
        wrong = [(folder, "it is a folder"), (file / "out", f"{file} is no folder")]
    else:
        (folder / "table.md").mkdir()
        wrong = [(file, f"{file} is no folder"), (folder, "it is a folder")]
    for out, why in wrong:
        error = error_of(call(*command, "--out", out))
        assert re.match(rf"cannot write {out}\S* \({why}\); make room, or name a file that", error)
    # As where the folder cannot be written to: chmod does not bind root.
    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(
            Path,
            "open",
            lambda p, mode="r", *a, **k: (no_space if mode == "xb" else opened)(p, mode, *a, **k),
        )
        error = error_of(call(*command, "--out", tmp_path / "new"))
    assert "(No space left on device)" in error
    assert file.read_text() == "old"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_results_are_printed_where_they_cannot_be_saved(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "out"
    assert call(*command, "--out", out).exit_code == 0
    before = {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()}
    monkeypatch.setattr(os, "fsync", no_space)
    result = call(*command, "--out", out)
    assert re.match(
        rf"cannot write {out}\S* \(No space left on device\); what was there is as it was", error_of(result)
    )
    assert {"train": "test accuracy", "prune": "weights"}.get(command[0], "total") in result.stdout
    assert "saved in" not in result.stdout
    assert "are in" not in result.stdout
    result = call(*command, "--out", out, "--json")
    assert json.loads(result.stdout)
    error_of(result)
    for path, content in before.items():
        assert path.read_bytes() == content


@pytest.fixture(autouse=True)
def no_choices_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """None that could not be written either."""
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", "")


@pytest.fixture
def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=generator), torch.arange(12) % 3
    return Dataset("clouds", "this test", x[:9], y[:9], x[9:], y[9:])


def test_a_run_that_cannot_be_added_leaves_the_others(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, points = tmp_path / "runs.jsonl", frontier_points(flops=[0.5], seeds=[0], **FEW)
    run.frontier(data, "lenet_300_100", points[:2], file, trainer=FakeTrainer())
    before, told = file.read_bytes(), []
    watcher = run.Watcher()
    monkeypatch.setattr(watcher, "end", lambda task, outcome: told.append(outcome))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        message = (
            rf"^frontier: cannot add random uniform V=4 50 % FLOPs, seed 0 to {file} \(No space left on "
            r"device\); finished runs are kept: make room, and the same command goes on$"
        )
        with pytest.raises(OSError, match=message):
            run.frontier(data, "lenet_300_100", points, file, trainer=FakeTrainer(), watcher=watcher)
    assert file.read_bytes().startswith(before)
    # What the run gave is told nevertheless.
    assert len(told) == 1
    # The line was written in full, or in part: either way the next call goes on.
    file.write_bytes(file.read_bytes()[: len(before) + 100])
    with pytest.warns(UserWarning, match="the last line of .* was cut off"):
        records = run.frontier(data, "lenet_300_100", points, file, trainer=FakeTrainer())
    assert [one.point for one in records] == [one.point for one in results.read(file)] == points


def test_runs_that_are_there_twice_are_refused(data: Dataset, tmp_path: Path) -> None:
    file, points = tmp_path / "runs.jsonl", [Point("dense", seed) for seed in range(3)]
    for point in [*points, *points[1:]]:
        results.append(file, record(point))
    message = (
        rf"^frontier: expected each run once in {file}, got dense, seed 1 in lines 2 and 4; "
        r"delete what is there again, lines 4, 5$"
    )
    with pytest.raises(ValueError, match=message):
        results.read(file)
    assert message[1:-1].replace("\\", "") == error_of(call("frontier", "--report-only", "--out", tmp_path))
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:3]))
    assert [one.point for one in results.read(file)] == points
    # Nor are they made.
    file.unlink()
    records = run.frontier(data, "lenet_300_100", [points[0]] * 2, file, trainer=FakeTrainer())
    assert len(records) == 2
    assert len(results.read(file)) == 1


@pytest.mark.parametrize("line", ['{"measured": 1}', "[]", "1", '{"measured": {}, "point": []}', "\x00", ""])
def test_lines_that_are_no_runs_are_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "runs.jsonl"
    for text in (line, record(Point("dense", 0)).to_line().replace('"point": {', '"point": [], "points": {')):
        file.write_text(f"{text}\n")
        with pytest.raises(
            ValueError, match=r"expected a run in line 1 of .*; delete the line to do its run"
        ):
            results.read(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match=r"expected a file of runs, got .*, which is none"):
        results.read(file)


HOLDER = """
import sys, time
from pathlib import Path
from sparseprune.experiments.frontier import results
with results.alone(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(1000)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(data: Dataset, tmp_path: Path) -> None:
    file, points = tmp_path / "runs.jsonl", [Point("dense", 0)]
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        message = (
            rf"^frontier: expected no other process to train for {file}, but one does; wait until it has "
            "finished, or give another --out$"
        )
        with pytest.raises(BlockingIOError, match=message):
            run.frontier(data, "lenet_300_100", points, file, trainer=FakeTrainer(0))
        assert message[1:-1] == error_of(call(*FRONTIER, "--out", tmp_path))
        assert not file.exists()
        holder.kill()
    run.frontier(data, "lenet_300_100", points, file, trainer=FakeTrainer())
    assert len(results.read(file)) == 1


def test_a_second_thread_is_refused_as_well(data: Dataset, tmp_path: Path) -> None:
    file, caught = tmp_path / "runs.jsonl", []

    def second() -> None:
        try:
            run.frontier(data, "lenet_300_100", [Point("dense", 0)], file, trainer=FakeTrainer(0))
        except BlockingIOError as error:
            caught.append(error)

    with results.alone(file):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(caught) == 1
    with results.alone(file):
        pass


def test_a_lock_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = tmp_path / "file" / "runs.jsonl"
    with pytest.raises(OSError, match=rf"^frontier: cannot write {file}.lock \(.*\); give another --out"):
        results.alone(file).__enter__()


def test_check_and_lock_leave_what_is_there(tmp_path: Path) -> None:
    files.check(tmp_path / "runs.jsonl")
    with results.alone(tmp_path / "runs.jsonl"):
        pass
    assert {path.name for path in tmp_path.iterdir()} <= {"runs.jsonl.lock"}


def test_names_that_are_no_text_are_printed_as_far_as_they_are(tmp_path: Path) -> None:
    for command in COMMANDS:
        out = tmp_path / f"{command[0]}-\udcff"
        result = call(*command, "--out", out)
        assert result.exit_code == 0, result.output
        assert f"{command[0]}-?" in result.stdout
    assert "is a folder" in error_of(call(*TRAIN, "--out", out))
