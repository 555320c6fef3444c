"""The language model: the network, its contenders, its training, and an experiment that goes on."""

import dataclasses
import json
import math

import pytest
import torch
from torch.nn import functional as F

import sparseprune as sp
from bench.language import run, training
from bench.language.contenders import Contender, contenders, cross_entropy
from bench.language.gpt import GPT
from bench.language.text import Text, split
from bench.ledger import read
from bench.report.plots.language import save
from bench.report.tables.language import language

DENSE = Contender("dense", "dense", 16)
SMALL = Contender("small dense, width 8", "small dense", 8)
SPARSE = Contender("random 90 %", "sparse", 16, method="random", sparsity=0.9)


@pytest.fixture
def novels() -> Text:
    return split(["the cat sat on the mat and looked at the dog. " * 40])


@pytest.fixture
def tiny(monkeypatch):
    """An experiment of a second."""
    monkeypatch.setattr(run, "LAYERS", 1)
    monkeypatch.setattr(run, "ROUNDS", 2)
    monkeypatch.setattr(run, "TUNING_SECONDS", 2.0)
    for module in (run, training):
        monkeypatch.setattr(module, "BATCH", 2)
        monkeypatch.setattr(module, "LENGTH", 8)
    monkeypatch.setattr(training, "CURVE_PIECES", 4)
    monkeypatch.setattr(training, "LAST_PIECES", 8)


def test_gpt_does_not_look_ahead():
    torch.manual_seed(0)
    model = GPT(5, width=24, layers=2, context=6).double().eval()
    text = torch.tensor([[0, 1, 2, 3, 4, 0]])
    other = torch.tensor([[0, 1, 2, 4, 0, 1]])
    logits, others = model(text), model(other)
    assert logits.shape == (1, 6, 5)
    assert torch.allclose(logits[:, :3], others[:, :3], rtol=0, atol=1e-14)
    assert not torch.allclose(logits[:, 3], others[:, 3], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (128, 2), (192, 3), (256, 4), (20, 1), (67, 67)])
def test_gpt_has_heads_that_divide_its_width(width, heads):
    assert GPT(5, width, 1, 4).blocks[0].attention.heads == heads


def test_gpt_starts_near_equal_chances():
    torch.manual_seed(0)
    logits = GPT(40, width=64, layers=3, context=16)(torch.arange(16).unsqueeze(0))
    # Logits of standard deviation s raise the cross-entropy by about s^2 / 2 over that of equal chances.
    loss = F.cross_entropy(logits[0], torch.arange(16))
    assert abs(loss.item() - math.log(40)) < logits.var().item() / 2 + 3 * logits.std().item() / 4


def test_contenders_are_as_sparse_as_their_names_say():
    scored = [(torch.randint(7, (2, 8)), torch.randint(7, (2, 8)))]
    for contender in contenders(24):
        model = contender.make(7, 1, scored, 0)
        pruned = [row for row in sp.summary(model).rows if row.name != "head.weight"]
        kept = sum(row.kept for row in pruned) / sum(row.weights for row in pruned)
        assert kept == pytest.approx(1 - contender.sparsity, abs=0.02), contender.name
        assert model(scored[0][0]).shape == (2, 8, 7)


def test_contenders_start_with_the_norm_of_dense():
    scored = [(torch.randint(7, (2, 8)), torch.randint(7, (2, 8)))]
    dense, sparse = (one.make(7, 1, scored, 0) for one in (DENSE, SPARSE))
    norm = dense.blocks[0].mlp.hidden.weight.norm()
    assert torch.isclose(sparse.blocks[0].mlp.hidden.values.norm(), norm, rtol=1e-5)


def test_train_learns_and_is_the_same_again(tiny, novels):
    def once():
        model = run.make(DENSE, novels, 0)
        before = training.bits(model, novels.validation, 4, "float32")
        learned = training.train(
            model, novels, steps=40, lr=1e-2, precision="float32", seed=0, points=(0.5, 1.0), test=True
        )
        return before, dataclasses.replace(learned, wall_seconds=0.0)

    before, learned = once()
    assert learned.bits < before - 0.5
    assert [step for step, _ in learned.curve] == [20, 40]
    assert once() == (before, learned)


def test_rate_rises_and_falls_to_nothing():
    rates = [training.rate_at(step / 1000) for step in range(1000)]
    assert rates[0] < 0.05
    assert max(rates) == pytest.approx(1.0, abs=1e-4)
    assert rates.index(max(rates)) == 50
    assert rates[-1] < 1e-4


def test_cross_entropy_is_the_mean_over_all_characters():
    logits, following = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    each = [F.cross_entropy(logits[i, j], following[i, j]) for i in range(2) for j in range(3)]
    assert torch.isclose(cross_entropy(logits, following), torch.stack(each).mean())


def test_experiment_goes_on_where_it_stopped(tiny, novels, tmp_path):
    said = []
    models = [DENSE, SMALL, SPARSE]
    run.time_steps(models, novels, tmp_path, said.append)
    assert len(read(tmp_path / run.TIMES)) == 6
    # Steps are made up, for results that do not depend on this machine.
    file = tmp_path / run.TIMES
    rows = [
        {**row, "result": {**row["result"], "step_seconds": 1.0, "prune_seconds": 0.5}} for row in read(file)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def perform(**more):
        return run.perform(
            models, novels, tmp_path, budgets=[3.0], seeds=[0, 1], rates=[1e-3, 1e-2], say=said.append, **more
        )

    assert not perform(deadline=0.0)
    assert read(tmp_path / run.RUNS) == []
    assert perform()
    runs = read(tmp_path / run.RUNS)
    assert [row["key"]["contender"] for row in runs] == 2 * [one.name for one in models]
    # As many steps as fit into the time that pruning leaves.
    assert {row["result"]["steps"] for row in runs} == {2}
    assert {row["result"]["tuning_seconds"] for row in runs} == {2.0}
    said.clear()
    assert perform()
    assert said == []
    table = language(runs)
    assert "0.05 min: steps" in table
    assert "Seeds: 2 at 0.05 min" in table
    save(runs, tmp_path / "bits.png")
    assert (tmp_path / "bits.png").read_bytes().startswith(b"\x89PNG")


def test_language_compares_with_the_best_small_dense():
    def row(contender, seed, bits):
        result = {
            **{"bits": bits, "steps": 10, "weights": 1000, "step_seconds": 0.1, "precision": "float32"},
            **{"lr": 1e-3, "rates": {"0.001": -2.0}, "tuning_seconds": 60.0},
            "settings": {"layers": 6, "batch": 8, "length": 256},
        }
        machine = {"cpu": "a cpu", "threads": 2, "isa": "avx2", "torch": "t", "sparseprune": "s", "date": "d"}
        return {
            "key": {"contender": contender, "budget": 120.0, "seed": seed},
            "machine": machine,
            "result": result,
        }

    found = [
        *(row("small dense, width 128", seed, 3.0) for seed in (0, 1)),
        *(row("small dense, width 192", seed, 2.5 + 0.2 * seed) for seed in (0, 1)),
        *(row("random 90 %", seed, 2.3 + 0.4 * seed) for seed in (0, 1)),
    ]
    lines = [[cell.strip() for cell in line.split("|")] for line in language(found).splitlines()]
    assert lines[3][7:9] == ["2.600 ± 0.141", ""]
    assert lines[4][7:9] == ["2.500 ± 0.283", "-0.100 ± 0.141"]
