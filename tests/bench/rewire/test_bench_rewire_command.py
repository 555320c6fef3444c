import pytest

pytest.importorskip("pandas")
pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytest.importorskip("optuna")

import typer
from typer.testing import CliRunner

from bench.rewire import __main__ as command


@pytest.fixture
def invoke(monkeypatch):
    app = typer.Typer()
    app.command()(command.main)
    # The number of threads is the process's.
    monkeypatch.setattr(command.torch, "set_num_threads", lambda count: None)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def words(text):
    return " ".join(text.replace("│", " ").split())


def test_command_lists_what_is_asked_for(invoke):
    asked = [
        "run",
        "--epochs",
        "10,3",
        "--views",
        "epochs,time",
        "--seeds",
        "0",
        "--filter",
        "RigL 9|: dense",
    ]
    assert invoke(*asked, "--list").stdout.splitlines() == [
        "3 epochs, seed 0: dense",
        "3 epochs, seed 0: RigL 90 %, uniform",
        "RigL's time for 3 epochs, seed 0: dense",
        "10 epochs, seed 0: dense",
        "10 epochs, seed 0: RigL 90 %, uniform",
        "RigL's time for 10 epochs, seed 0: dense",
    ]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["rum"], "expected cost, time, run, plot, got 'rum'"),
        (["run", "--model", "vgg"], "expected --model resnet8, resnet8-2x, mosaic, got 'vgg'"),
        (["run", "--views", "minutes"], "expected --views of epochs, time, got 'minutes'"),
        (["run", "--quick"], "expected --out with --quick, whose figures are no results"),
    ],
)
def test_command_says_what_it_expects(invoke, asked, says):
    done = invoke(*asked)
    assert done.exit_code == 2
    assert says in words(done.stderr)


def test_command_says_that_equal_time_needs_times(invoke, tmp_path):
    done = invoke("run", "--views", "time", "--out", tmp_path)
    assert done.exit_code == 2
    assert "there are no times of resnet8" in words(done.stderr)


def test_command_can_be_interrupted(invoke, tmp_path, monkeypatch):
    def perform(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.run, "perform", perform)
    done = invoke("run", "--out", tmp_path)
    assert done.exit_code == 130
    assert done.stderr == "interrupted; the same command goes on where this one stopped\n"
