"""Files that were written before modules moved still load."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sparseprune as sp

RECORDED = Path(__file__).parent / "recorded"


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 16), nn.ReLU(), nn.Linear(16, 4)),
    )


@pytest.mark.parametrize(("layers", "answer"), [("sparse", "y"), ("masked", "y_masked")])
def test_checkpoints_load(layers: str, answer: str) -> None:
    content = torch.load(RECORDED / "checkpoint.pt", weights_only=True)
    forced = "sparse" if layers == "sparse" else "dense"
    model = sp.sparsify(network(), content["masks"], layers=forced).eval()
    model.load_state_dict(content[layers])
    # The same network in float64 tells what rounding is worth; the recorded answer was rounded too.
    exact = sp.densify(model).double()(content["x"].double())
    scale = exact.abs().max()
    assert (model(content["x"]) - exact).abs().max() <= 2**-12 * scale
    assert (content[answer] - exact).abs().max() <= 2**-12 * scale  # half of float32's digits


def test_mask_files_load() -> None:
    pytest.importorskip("typer")
    from sparseprune.experiments.cli import mask_file
    from sparseprune.experiments.models import Network

    content = mask_file.load(RECORDED / "masks.pt", Network("lenet_300_100", (1, 8, 8), 10), 0)
    assert content["method"] == "random"
    assert sum(int(mask.sum()) for mask in content["masks"].values()) == round(0.05 * (19200 + 30000 + 1000))


def test_pickled_models_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECORDED))
    content = torch.load(RECORDED / "model.pt", weights_only=False)
    model = content["model"]
    assert type(model[1]).__name__ == "Residual"
    assert isinstance(model[1], sys.modules["residual"].Residual)
    exact = sp.densify(model).double()(content["x"].double())
    assert (model(content["x"]) - exact).abs().max() <= 2**-12 * exact.abs().max()
    assert (content["y"] - exact).abs().max() <= 2**-12 * exact.abs().max()
