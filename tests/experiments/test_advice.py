import json
import re

import pytest

from sparseprune import ops
from sparseprune._summary import Summary, SummaryRow
from sparseprune.cost.cache import Choice
from sparseprune.cost.speedup import SpeedUp

pytest.importorskip("typer")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

from typer.testing import CliRunner

from sparseprune.experiments.cli.advice import REMEDY, advice
from sparseprune.experiments.cli.app import app


def row(computes, choice):
    return SummaryRow("1.weight", (4, 3), 12, 6, "1x1", 12, 99, computes, str(choice))


def told(*rows, speedup=None):
    found = advice(Summary([row(*one) for one in rows]), speedup)
    assert found is None or found.endswith(f" {REMEDY}")
    return found and found.removesuffix(f" {REMEDY}")


SLOW = "Pruned like this, the network does not get faster: "
# 2 and 6 ms dense; a tie, and one that is faster dense.
TIE, DENSE = ("sparse", Choice(2e-3, 2e-3)), ("dense, masked", Choice(9e-3, 6e-3))


@pytest.fixture(autouse=True)
def needs_kernels():
    if ops.extension is None:
        pytest.skip("without kernels nothing is measured")


def test_advice_where_all_layers_stay_dense():
    assert told(DENSE, DENSE) == SLOW + "all layers are faster dense, 12 ms a step."


def test_advice_where_sparse_layers_hardly_gain():
    assert told(TIE, DENSE) == SLOW + "its layers take 8 ms a step, and dense 8 ms."
    assert (
        told(("sparse", Choice(2e-3, 2.3e-3)), DENSE)
        == SLOW + "its layers take 8 ms a step, and dense 8.3 ms."
    )
    assert told(("sparse", Choice(2e-3, 3e-3)), DENSE) is None


def test_advice_reads_seconds_of_large_layers():
    assert told(("sparse", Choice(1.5, 1.51)), ("dense", Choice(3.0, 2.5)))[len(SLOW) :] == (
        "its layers take 4e+03 ms a step, and dense 4.01e+03 ms."
    )


def test_advice_says_when_a_measurement_was_disturbed():
    busy = ("dense, masked", Choice(9e-3, 6e-3, "other processes kept 1.3 processors busy"))
    assert told(busy) == SLOW + "all layers are faster dense, 6 ms a step (other processes ran meanwhile)."


def test_advice_is_silent_where_layers_were_not_measured():
    assert told() is None
    assert (
        told(TIE, ("sparse", "assumed: density 0.1, float32, batch 256; give input_size to measure")) is None
    )
    assert told(TIE, ("dense, masked", "plain torch, no sparse kernels")) is None


def test_advice_goes_by_the_whole_step_where_that_was_timed():
    assert told(DENSE, speedup=SpeedUp(2.0, 1.9, 2.0, 1.05)) is None
    assert told(("sparse", Choice(1e-3, 9e-3)), speedup=SpeedUp(2.0, 0.94, 2.0, 2.1)) == (
        SLOW + "its training step is 0.94 times as fast as dense."
    )


def test_prune_tells_of_a_network_that_does_not_gain(monkeypatch, tmp_path):
    arguments = ["prune", "--data", "digits", "--model", "lenet_300_100", "--method", "random"]
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", str(tmp_path / "choices.json"))
    monkeypatch.setattr("sparseprune.cost.choice.measure", lambda *_: Choice(2e-3, 1e-3))
    output = CliRunner().invoke(app, arguments).stdout
    assert SLOW + "all layers are faster dense, 3 ms a step." in output
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["advice"].startswith(SLOW)
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", str(tmp_path / "others.json"))
    monkeypatch.setattr("sparseprune.cost.choice.measure", lambda *_: Choice(1e-3, 2e-3))
    output = CliRunner().invoke(app, arguments).stdout
    assert "1.weight" in output
    assert not re.search("does not get faster", output)


def test_compare_prints_what_was_saved_and_a_verdict():
    pytest.importorskip("pandas")
    quick = ["--data", "digits", "--samples", 60, "--model", "lenet_300_100", "--methods", "random"]
    arguments = ["compare", *quick, "--sparsities", 0.5, "--epochs", 1, "--screen", 5]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    start = lines.index("What it saved over dense at equal epochs, pruning included:")
    figures = r"  random 50 %: [\d.]+ s (less|more) \(.*%\), .* CPU-s .*, 0\.\d MB (less|more) \(.*%\).*"
    assert re.fullmatch(figures, lines[start + 1])
    assert lines[start + 2].startswith("  energy: ")
    assert lines[-1].startswith("In this comparison ")
    assert " at equal epochs: " in lines[-1]
    assert "A dense network on inputs chosen beforehand is " in lines[-1]
    assert lines[-1].endswith("This is one seed: another one may decide otherwise.")
    arguments = ["compare", "--data", "digits", "--model", "resnet8", "--screen", "5"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "got resnet8" in result.stderr
