"""SIGKILL at random moments of each command: nothing that was finished is lost, nothing is half-written."""

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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

MOMENTS = int(os.environ.get("SPARSEPRUNE_KILLS", "4"))  # of each command
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
        elif file.name == "curves.html":
            assert file.read_text(encoding="utf-8").rstrip().endswith("</html>")
        elif file.name == "table.md":
            text = file.read_text(encoding="utf-8")
            assert "batch-norm keeps. MFLOP/step: products of one step, kept weights only.\n\n" in text
            # The verdict is the last line.
            assert text.endswith("This is one seed: another one may decide otherwise.\n")
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
TICKET = ["ticket", *TINY, "--epochs", "1", "--rounds", "2", "--controls"]
TRAININGS = 3 + 2 * 2  # of this ticket, dense and controls counted


# Imports once what takes seconds, then runs commands as a terminal would, each in a process of its own.
SERVER = """
import json, os, sys, warnings
import matplotlib.figure, sklearn.datasets, torch._dynamo
from sparseprune.experiments.cli.app import app
from sparseprune.experiments.compare import report
from sparseprune.experiments.frontier import plot
from sparseprune.experiments.ticket import plot as ticket_plot

warnings.simplefilter("ignore")
for line in sys.stdin:
    if (child := os.fork()) == 0:
        log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        app(json.loads(line))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Runs commands, and kills them if wanted."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, command: list[str], out: Path, seconds: float | None = None) -> float | None:
        """The seconds that a command takes; None where it was killed after so many seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([*command, "--out", str(out)]), file=self.process.stdin, flush=True)
        child, begin = int(self.process.stdout.readline()), time.monotonic()
        if seconds is not None:
            ended, _, _ = select.select([self.process.stdout], [], [], seconds)
            # One that ends just now is gone, and its number is not used again so soon.
            with contextlib.suppress(ProcessLookupError):
                if not ended:
                    os.kill(child, signal.SIGKILL)
        code = int(self.process.stdout.readline())
        if seconds is not None and code == -signal.SIGKILL:
            return None
        assert code == 0, self.log.read_text()
        return time.monotonic() - begin


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server") / "log")
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait()
    assert made.process.stdout is not None
    made.process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_leaves_a_whole_file_or_none(name: str, server: Server, tmp_path: Path) -> None:
    command, read = COMMANDS[name]
    # The first measures layers; the others read what it measured.
    seconds = min(server.run(command, tmp_path / f"whole-{number}") or 0.0 for number in range(2))
    moments, killed = random.Random(name), 0
    for number in range(MOMENTS):
        # Over the old file every other time.
        out = tmp_path / f"{number // 2}" / "out"
        there = out.exists()
        took = server.run(command, out, moments.uniform(0, seconds))
        killed += took is None
        # The machine may have been busy.
        seconds = min(seconds, took or seconds)
        if there or out.exists():
            read(out)
    print(f"{name}: {killed} of {MOMENTS} killed within {seconds:.2f} s")
    assert killed > 0
    server.run(command, out)
    read(out)
    for folder in [path for path in tmp_path.rglob("*") if path.is_dir()]:
        assert sum(map(is_part, folder.iterdir())) <= 2


@pytest.mark.slow
def test_a_killed_frontier_goes_on(server: Server, tmp_path: Path) -> None:
    seconds = min(server.run(FRONTIER, tmp_path / f"whole-{number}") or 0.0 for number in range(2))
    expected = [one.point for one in results.read(tmp_path / "whole-0" / results.FILE)]
    assert len(expected) == RUNS
    moments, killed, done = random.Random("frontier"), 0, 0
    out = tmp_path / "0"
    cut: list[str] = []
    for number in range(MOMENTS):
        # At most half of it, most often: it goes on.
        killed += server.run(FRONTIER, out, moments.uniform(0, seconds / 2)) is None
        found = [one.point for one in results.read(out / results.FILE, warn=cut.append)]
        # All that were done before, and in their order.
        assert found == expected[: len(found)]
        assert len(found) >= done
        done = len(found)
        for file in out.iterdir() if out.exists() else ():
            if file.name == "frontier.png":
                read_picture(file)
            elif file.name == "table.md":
                assert "**Bold**" in file.read_text(encoding="utf-8")
            else:
                assert is_part(file) or file.name in (results.FILE, f"{results.FILE}.lock")
        if done == RUNS:
            server.run(FRONTIER, out)
            assert [one.point for one in results.read(out / results.FILE)] == expected
            out, done = tmp_path / f"{number + 1}", 0
    print(f"frontier: {killed} of {MOMENTS} killed within {seconds:.2f} s, {len(cut)} lines cut off")
    assert killed > 0
    server.run(FRONTIER, out)
    assert [one.point for one in results.read(out / results.FILE)] == expected
    for folder in tmp_path.iterdir():
        assert sum(map(is_part, folder.iterdir())) <= MOMENTS


@pytest.mark.slow
def test_a_killed_ticket_goes_on(server: Server, tmp_path: Path) -> None:
    def trained(folder: Path) -> list[tuple[str, int, int]]:
        file = folder / "results.json"
        runs = json.loads(file.read_text())["runs"] if file.exists() else []
        return [(run["kind"], run["round"], run["weights"]) for run in runs]

    seconds = min(server.run(TICKET, tmp_path / f"whole-{number}") or 0.0 for number in range(2))
    expected = sorted(trained(tmp_path / "whole-0"))
    assert len(expected) == TRAININGS
    moments, killed, done = random.Random("ticket"), 0, 0
    out = tmp_path / "killed"
    for _ in range(MOMENTS):
        killed += server.run(TICKET, out, moments.uniform(0, seconds / 2)) is None
        found = trained(out)
        # All that were done before, none twice, and none of another search.
        assert len(found) >= done
        assert len(set(found)) == len(found)
        assert set(found) <= set(expected)
        done = len(found)
        if (out / "ticket.png").exists():
            read_picture(out / "ticket.png")
    print(f"ticket: {killed} of {MOMENTS} killed within {seconds:.2f} s")
    assert killed > 0
    server.run(TICKET, out)
    assert sorted(trained(out)) == expected
