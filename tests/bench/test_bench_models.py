"""bench.models: what is a yes, what is a no and why, and what the table makes of it."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

import sparseprune as sp
from bench import ledger
from bench.models import __main__ as command
from bench.models import run
from bench.models.catalogue import MODELS
from bench.models.model import Model, images, numbers
from bench.models.trial import WrongError, compare, pruned, steady
from bench.report.tables import models as table

COLUMNS = [
    "prunes",
    "sparsifies",
    "equals masked dense",
    "trains 20 steps",
    "compiles",
    "exports",
    "saves and loads",
]


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))


def small(make: Any = perceptron, name: str = "torch/small") -> Model:
    return Model(name, make, images(4, 4), F.cross_entropy)


class Branching(nn.Module):
    """Looks at numbers, which export does not let it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y if float(y.sum()) > 1e9 else 2 * y


class Zeros(nn.Module):
    """A head that is zero at initialisation: nothing reaches the layer before it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = perceptron(), nn.Linear(10, 10)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.inner(x))
        return y


def test_the_catalogue_has_thirty_models_of_five_libraries() -> None:
    assert len({model.name for model in MODELS}) == len(MODELS) >= 30
    counts = Counter(model.library for model in MODELS)
    assert counts.keys() == {"transformers", "timm", "torchvision", "torch", "sparseprune"}
    assert min(counts[library] for library in ("transformers", "timm")) >= 6
    assert counts["torchvision"] >= 11


@pytest.mark.parametrize("name", ["torch/MultiheadAttention", "sparseprune/small_conv"])
def test_a_model_is_yes_in_all_columns(name: str) -> None:
    (model,) = (model for model in MODELS if model.name == name)
    result = run.attempt(model)
    assert list(result["cells"]) == COLUMNS
    assert {cell["is"] for cell in result["cells"].values()} == {"yes"}, result["cells"]
    assert 0 < result["weights"] < result["parameters"]


def test_what_the_dense_model_cannot_do_is_told() -> None:
    cells = run.attempt(small(Branching))["cells"]
    assert cells["exports"]["is"] == "dense neither"
    assert cells["exports"]["remark"]
    assert cells["compiles"] == {"is": "yes", "remark": "1 graph breaks, as in the dense model"}
    assert {cells[column]["is"] for column in COLUMNS if column != "exports"} == {"yes"}


def test_a_fault_of_the_library_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(model: nn.Module, masks: Any, **options: Any) -> nn.Module:
        result = sparsify(model, masks, **options)
        with torch.no_grad():
            next(p for name, p in result.named_parameters() if name.endswith("values")).flatten()[0] += 1
        return result

    def no_save(*args: Any) -> None:
        raise ValueError("save: expected a disk")

    sparsify = sp.sparsify
    monkeypatch.setattr(sp, "sparsify", spoilt)
    monkeypatch.setattr(sp, "save", no_save)
    cells = run.attempt(small())["cells"]
    assert cells["equals masked dense"]["is"] == "no"
    assert cells["equals masked dense"]["remark"].startswith('WrongError: layers="sparse": ')
    assert cells["trains 20 steps"]["remark"].startswith("WrongError: 1.")
    assert cells["saves and loads"] == {"is": "no", "remark": "ValueError: save: expected a disk"}
    assert cells["exports"]["is"] == "yes"


def test_the_remedy_of_an_error_is_tried_and_told() -> None:
    trial, remark = pruned(small(Zeros))
    assert remark.startswith("with 5 steps of training before; as typed: prune: expected scores")
    assert trial.start is not None
    assert trial.dense().head.weight.abs().max() > 0
    cells = run.attempt(small(Zeros))["cells"]
    assert {cell["is"] for cell in cells.values()} == {"yes"}


def test_a_model_without_scores_has_random_masks() -> None:
    def fails(model: nn.Module, batch: Any) -> Tensor:
        raise RuntimeError("no loss")

    model = Model("torch/small", perceptron, images(4, 4), fails)
    trial, cell = run._prune(model)
    assert cell == {"is": "no", "remark": "RuntimeError: no loss"}
    assert trial is not None
    assert list(trial.masks) == ["1.weight", "3.weight"]


def test_numbers_are_compared_to_half_of_the_digits() -> None:
    x = numbers(5).double()
    compare("x", [x + 1e-9 * x.abs().max()], [x])
    for wrong in (x + 1e-7 * x.abs().max(), x * math.nan, x[:4], x.float()):
        with pytest.raises(WrongError, match=r"^x: "):
            compare("x", [wrong], [x])
    with pytest.raises(WrongError, match="other shapes"):
        compare("x", [], [x])


def test_only_batch_norms_train_where_chance_is_left_out() -> None:
    network = steady(nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2)).train())
    assert [module.training for module in network] == [False, False, True]


# ---- the command and the table -----------------------------------------------------------------------------


def fake(model: Model) -> dict[str, Any]:
    cells = {column: {"is": "yes", "remark": ""} for column in COLUMNS}
    cells["sparsifies"]["remark"] = "3 of 4 layers sparse; 1 depthwise: no sparse kernels"
    cells["prunes"]["remark"] = "with some_thing"
    cells["exports"] = {"is": "dense neither", "remark": "with some_thing"}
    cells["compiles"] = {"is": "no", "remark": "Error: <x>"}
    return {"cells": cells, "parameters": 2000, "weights": 1000, "version": "1.2"}


def test_the_command_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def attempt(model: Model) -> dict[str, Any]:
        tried.append(model.name)
        return fake(model)

    monkeypatch.setattr(run, "attempt", attempt)
    application = command.typer.Typer()
    application.command()(command.main)
    out = tmp_path / "folder" / "models.jsonl"
    options = ["--out", str(out), "--filter"]
    runner = CliRunner()
    assert runner.invoke(application, [*options, "^torch/LSTM$"]).exit_code == 0
    assert runner.invoke(application, [*options, "^torch/"]).exit_code == 0
    assert sorted(tried) == sorted(model.name for model in MODELS if model.library == "torch")
    assert len(out.read_text().splitlines()) == len(tried)
    assert "not a regular expression" in runner.invoke(application, ["--filter", "("]).output
    listed = runner.invoke(application, ["--list", "--filter", "^sparseprune"]).output.split()
    assert listed == [model.name for model in MODELS if model.library == "sparseprune"]


def test_a_library_that_is_not_installed_is_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    run.perform([small(name="no_such_library/model")], tmp_path / "a.jsonl", said.append)
    assert said == ["no_such_library/model: left out, as no_such_library is not installed"]
    assert ledger.read(tmp_path / "a.jsonl") == []


def test_the_table_explains_what_is_not_plainly_yes(tmp_path: Path) -> None:
    file = tmp_path / "models.jsonl"
    with ledger.Ledger(file) as open_file:
        for model in reversed(MODELS[:2]):
            open_file.add({"model": model.name}, json.loads(json.dumps(fake(model))))
    text = table.models(ledger.read(file))
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    assert lines[0] == ["model", "prunable", *COLUMNS]
    assert [line[0] for line in lines[2:4]] == [f"`{model.name}`" for model in MODELS[:2]]
    assert lines[2][1:] == [
        "1,000 of 2,000",
        "yes [1]",
        "3 of 4",
        "yes",
        "yes",
        "no [2]",
        "dense neither [1]",
        "yes",
    ]
    assert "\n1. with some\\_thing\n2. Error: &lt;x>\n" in text
    assert f"{MODELS[0].library} 1.2. " in text
