import dataclasses
import json
import re

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("typer")
pytest.importorskip("pandas")
pytest.importorskip("optuna")

from bench_wide import made_up
from typer.testing import CliRunner

import sparseprune as sp
from bench import ledger
from bench.report.tables import wide_data as tables
from bench.wide_data import __main__ as command
from bench.wide_data import attempt, looks, prepared, run, timing
from bench.wide_data.attempt import Attempt, Settings
from bench.wide_data.contenders import LEARNERS, SCREENED_INPUTS, TRIALS, contenders


@pytest.fixture
def wide():
    return made_up()


def attempt_of(label, wide, variant=0):
    (contender,) = (one for one in contenders() if one.label == label)
    return Attempt(contender, contender.variants[variant], wide, Settings(1, 8), seed=0)


def test_contenders_have_as_many_trials_each():
    assert {len(one.variants) * len(one.rates) for one in contenders()} == {TRIALS}
    labels = [one.label for one in contenders()]
    assert len(set(labels)) == len(labels)
    assert labels[0] == "dense"


@pytest.mark.parametrize("label", [one.label for one in contenders() if one.label != "dense"])
def test_attempt_measures_every_contender(label, wide, monkeypatch):
    monkeypatch.setattr(attempt, "WIDE", 10_000)
    trying = attempt_of(label, wide, -1)
    result = trying.run(1.0 if label in LEARNERS else 1e-2)
    assert 0 <= result["accuracy"] <= 1
    assert result["total_seconds"] == result["prune_seconds"] + result["train_seconds"]
    if label in LEARNERS:
        assert 0 < result["weights"] <= 40 * 3
        return
    assert result["steps"] == 6
    if trying.contender.method is None:
        return
    total = 40 * 100 + 100 * 100 + 100 * 100 + 100 * 3
    assert result["weights"] == round((1 - trying.contender.sparsity) * total)
    assert 0 < result["looks"]["inputs"] <= 40
    assert set(result["looks"]["names"]) == {"red", "green", "blue"}


def test_attempt_screens_what_the_variant_says(wide, monkeypatch):
    monkeypatch.setattr(attempt, "WIDE", 10_000)
    trying = attempt_of("F-test, then small dense, 300 hidden units", wide)
    trying.variant = {"inputs": 3}
    start = trying.start
    assert start.data.sample == (3,)
    assert start.looks["inputs"] == 3
    assert start.looks["names"]["green"][0][0] == "word1"


def test_attempt_rescales_kept_weights_alone(wide, monkeypatch):
    monkeypatch.setattr(attempt, "WIDE", 10_000)
    rescaled = sp.densify(attempt_of("snip 90 %", wide).start.model).state_dict()
    monkeypatch.setattr(attempt.sp, "rescale_weights", lambda *_: None)
    plain = sp.densify(attempt_of("snip 90 %", wide).start.model).state_dict()
    changed = {name: not torch.equal(plain[name], rescaled[name]) for name in plain}
    assert any(changed.values())
    assert not any(changed[name] for name in changed if name.endswith("bias"))
    assert all(torch.equal(plain[name] == 0, rescaled[name] == 0) for name in plain)


def test_looked_at_finds_the_inputs_that_tell_classes(wide, monkeypatch):
    monkeypatch.setattr(looks, "BEST", 3)
    kept = np.zeros(40, np.int64)
    kept[[0, 1, 2, 7]] = [3, 2, 1, 4]
    found = looks.looked_at(kept, wide)
    assert (found["inputs"], found["first layer"], found["share of best"]) == (4, 10, 0.6)
    assert found["names"]["red"][:1] in ([["word0", 3.0]], [["word7", 4.0]])
    assert ["word1", 2.0] in found["names"]["green"]
    monkeypatch.setattr(looks, "FEW_CLASSES", 2)
    assert looks.looked_at(kept, wide)["names"] == {}


@pytest.fixture
def perform(wide, tmp_path, monkeypatch):
    """Run the experiment on three contenders; returns what was said."""
    monkeypatch.setattr(attempt, "WIDE", 10_000)
    monkeypatch.setitem(run.SETTINGS, "wide", Settings(1, 16))

    def go(seeds=(0,), only="^(small dense, 20|snip 98|linear SVM)", data=wide, **options):
        said = []
        run.perform({"wide": data}, seeds, tmp_path, only=only, say=said.append, **options)
        return said

    return go


def test_perform_goes_on_where_it_stopped(perform, tmp_path, monkeypatch):
    ticks = iter([0.0] * 4 + [100.0] * 1000)
    with pytest.raises(
        run.OutOfTimeError, match="stopped before wide, tuning small dense, 20 hidden units at"
    ):
        perform(seconds=50, clock=lambda: next(ticks))
    said = perform()
    # One trial is there already.
    assert sum("scores" in line for line in said) == 3 * TRIALS - 1
    assert sum("% after" in line for line in said) == 3
    rows = ledger.read(tmp_path / "wide.jsonl")
    assert [row["key"].get("contender") for row in rows] == [
        None,
        "small dense, 20 hidden units",
        "snip 98 %",
        "linear SVM",
    ]
    assert [row["result"]["trials"] for row in rows[1:]] == [TRIALS] * 3
    assert perform() == []
    # Another seed is trained, and nothing is tuned again.
    again = perform(seeds=(0, 1))
    assert [re.search(r"seed (\d)", line)[1] for line in again] == ["1"] * 3


def test_perform_chooses_by_validation_samples_and_trains_on_all(perform, monkeypatch, wide):
    trained = []

    def fake(self, rate, warm=False):
        trained.append((len(self.data.train_y), self.variant["inputs"], rate))
        best = self.variant["inputs"] == SCREENED_INPUTS[1] and rate == self.contender.rates[1]
        return {"accuracy": 0.9 if best else 0.1, "total_seconds": 1.0, "weights": 1}

    monkeypatch.setattr(Attempt, "run", fake)
    perform(only="F-test")
    (contender,) = (one for one in contenders() if one.label.startswith("F-test"))
    few, all_samples = len(wide.tuning().train_y), len(wide.train_y)
    assert [count for count, _, _ in trained] == [few] * TRIALS + [all_samples]
    assert trained[-1] == (all_samples, SCREENED_INPUTS[1], contender.rates[1])


def test_perform_refuses_runs_of_other_data_or_settings(perform, wide, tmp_path):
    perform(only="linear SVM")
    before = (tmp_path / "wide.jsonl").read_bytes()
    other = dataclasses.replace(wide, train_y=wide.train_y[::-1].copy())
    with pytest.raises(
        ValueError, match=r"got others: sha256 '[0-9a-f]+' there, '[0-9a-f]+' now; give another --out"
    ):
        perform(only="linear SVM", data=other)
    with pytest.raises(ValueError, match="epochs 1 there, 2 now"):
        perform(only="linear SVM", epochs=2)
    assert (tmp_path / "wide.jsonl").read_bytes() == before


def test_tables_and_plot_show_every_contender(perform, tmp_path):
    pytest.importorskip("matplotlib")
    from bench.report.plots.wide_data import save

    perform(seeds=(0, 1), only="^(small dense, 20|F-test|snip 98|random|linear SVM)")
    runs = tables.read(tmp_path / "wide.jsonl")
    shown = tables.accuracy(runs)
    lines = [line for line in shown.splitlines() if line.startswith("|")][2:]
    assert [line.split("|")[1].strip() for line in lines] == [
        "small dense, 20 hidden units",
        "F-test, then small dense, 300 hidden units",
        "snip 98 %",
        "random 98 %",
        "linear SVM",
    ]
    assert all("±" in line for line in lines)
    assert "python -m bench.wide_data run --data wide --seeds 0,1" in shown
    assert "6 trials for each contender" in shown
    named = tables.inputs(runs)
    assert re.search(r"\| class +\| F-test +\| snip 98 % +\| random 98 % +\|", named)
    assert "word0" in named
    save({"wide": tmp_path / "wide.jsonl", "none": tmp_path / "none"}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileNotFoundError, match="expected results, found none"):
        save({}, tmp_path / "plot.png")


def test_times_of_a_quiet_machine_stand_in_for_those_of_the_runs(perform, wide, tmp_path, monkeypatch):
    perform(seeds=(0, 1), only="^(F-test|snip 98|linear SVM)")
    before = tables.read(tmp_path / "wide.jsonl").frame.set_index(["contender", "seed"])
    said = []
    timing.perform({"wide": wide}, tmp_path, say=said.append)
    networks = [one for one in contenders() if one.kind != "linear"]
    assert sum("ms a step" in line for line in said) == len(networks) + 1  # two numbers of inputs
    after = tables.read(tmp_path / "wide.jsonl").frame.set_index(["contender", "seed"])
    times = {row["key"]["contender"]: row["result"] for row in ledger.read(tmp_path / timing.TIMES)}
    snip = after.loc["snip 98 %", 0]
    assert snip["step_seconds"] == times["snip 98 %"]["step_seconds"]
    assert snip["total_seconds"] == snip["prune_seconds"] + snip["steps"] * snip["step_seconds"]
    assert set(after.loc["linear SVM"]["total_seconds"]) == {before.loc["linear SVM"]["total_seconds"].min()}
    assert (after["accuracy"] == before["accuracy"]).all()
    timing.perform({"wide": wide}, tmp_path, say=said.append)
    assert "has the times already" in said[-1]


def test_command_runs_what_is_prepared(wide, tmp_path, monkeypatch):
    monkeypatch.setattr(attempt, "WIDE", 10_000)
    prepared.save(wide, tmp_path / "genotypes.npz")
    options = ["run", "--data", "genotypes", "--data-dir", str(tmp_path), "--out", str(tmp_path), "--filter"]
    outcome = CliRunner().invoke(command.app, [*options, "linear SVM", "--seeds", "0"])
    assert outcome.exit_code == 0, outcome.output
    rows = ledger.read(tmp_path / "genotypes.jsonl")
    assert rows[0]["result"]["sha256"] == wide.sha256
    assert json.loads(json.dumps(wide.figures())) == rows[0]["result"]
    outcome = CliRunner().invoke(command.app, ["run", "--data", "words", "--data-dir", str(tmp_path)])
    assert outcome.exit_code == 2
    outcome = CliRunner().invoke(command.app, ["run", "--data", "debian-text", "--data-dir", str(tmp_path)])
    assert outcome.exit_code == 1
    assert "prepare --data debian-text makes it" in outcome.output
