import pytest

pytest.importorskip("pandas")
pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytest.importorskip("optuna")

import typer
from typer.testing import CliRunner

from bench.mosaic import __main__ as command


@pytest.fixture
def invoke():
    app = typer.Typer()
    app.command()(command.main)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def words(text):
    return " ".join(text.replace("│", " ").split())


def test_command_lists_what_is_asked_for(invoke, tmp_path):
    asked = ["region", "--seeds", "0", "--filter", "same.*(dense|snip)", "--out", tmp_path]
    assert invoke(*asked, "--list").stdout.splitlines() == [
        "task same, seed 0: dense",
        "task same, seed 0: small dense, h = 80",
        "task same, seed 0: F-test 784 + small dense",
        "task same, seed 0: told the tile + small dense",
        "task same, seed 0: snip 99 %",
        "task same, seed 0: iter_snip 99 %",
    ]


def test_command_names_the_experiments(invoke):
    done = invoke("regions")
    assert done.exit_code == 2
    assert "expected tuned, region, time, plot, got 'regions'" in words(done.stderr)


def test_command_keeps_quick_figures_out_of_the_results(invoke):
    done = invoke("tuned", "--quick")
    assert done.exit_code == 2
    assert "expected --out with --quick, whose figures are no results" in words(done.stderr)


def test_command_does_runs_in_the_folder(invoke, tmp_path, monkeypatch):
    asked = {}

    def perform(runs, file, rates, **options):
        asked.update(runs=runs, file=file, rates=rates, **options)
        return True

    monkeypatch.setattr(command, "perform", perform)
    options = [
        "--seeds",
        "4",
        "--filter",
        "random",
        "--limit-minutes",
        2,
        "--quick",
        "--out",
        tmp_path / "new",
    ]
    assert invoke("tuned", *options).exit_code == 0
    assert [run.label for run in asked["runs"]] == [f"base, seed 4: random {part} %" for part in (98, 99)]
    assert (asked["file"], asked["rates"]) == (tmp_path / "new/tuned.jsonl", tmp_path / "new/rates.log")
    assert (asked["seconds"], asked["size"]) == (120, command.QUICK)


def test_command_can_be_interrupted(invoke, tmp_path, monkeypatch):
    def perform(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "perform", perform)
    done = invoke("tuned", "--out", tmp_path)
    assert done.exit_code == 130
    assert done.stderr == "interrupted; the same command goes on where this one stopped\n"
