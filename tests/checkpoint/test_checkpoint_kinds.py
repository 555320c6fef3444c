"""Checkpoints of layers whose weight has another name, another shape or another class."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparseprune as sp


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0])
        return y


class Conv1D(nn.Module):
    """As that of transformers: a linear layer with a weight (in_features, out_features)."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class SmallExperts(nn.Module):
    __module__ = "transformers.models.small"

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(2, 16, 8))
        self.down = nn.Parameter(torch.randn(2, 8, 16))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = ((x @ self.gate).relu() @ self.down).sum(0)
        return y


def of_transformers() -> nn.Module:
    torch.manual_seed(0)
    # Square, so that no shape tells which way round a weight is.
    return nn.Sequential(Conv1D(16, 16), nn.GELU(), Conv1D(24, 16), SmallerFrom24(), SmallExperts())


class SmallerFrom24(nn.Linear):
    def __init__(self) -> None:
        super().__init__(24, 16)


MODELS = {"attention": Attending, "transformers": of_transformers}


def masks_of(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(p.shape, generator=generator) < 0.4 for name, p in sp.scores.prunable(model).items()
    }


def batch(name: str) -> Tensor:
    shape = (3, 5, 16) if name == "attention" else (5, 16)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def form_of(model: nn.Module, form: str, seed: int = 0) -> nn.Module:
    layers: Any = form
    return model if form == "plain" else sp.sparsify(model, masks_of(model, seed), layers=layers)


@pytest.mark.parametrize("target", ["sparse", "dense", "plain"])
@pytest.mark.parametrize("source", ["sparse", "dense"])
@pytest.mark.parametrize("name", MODELS)
def test_other_kinds_of_layers_are_saved_and_loaded(
    tmp_path: Path, name: str, source: str, target: str
) -> None:
    model, x = MODELS[name](), batch(name)
    masks = masks_of(model)
    assert len(masks) >= 3
    saved = form_of(model, source)
    optimizer = torch.optim.AdamW(saved.parameters(), 0.01)
    step(saved, optimizer, x)
    sp.save(saved, tmp_path / "a", optimizer)
    loaded = form_of(MODELS[name](), target, seed=1)
    resumed = torch.optim.AdamW(loaded.parameters(), 0.01)
    facts = sp.load(tmp_path / "a", loaded, resumed)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert facts["sparsity"] == 1 - kept / sum(mask.numel() for mask in masks.values())
    expected, found = sp.densify(saved).state_dict(), sp.densify(loaded).state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], t) for key, t in expected.items())
    # The state of each weight, in the form of the dense model.
    dense = MODELS[name]()
    of_dense = torch.optim.AdamW(dense.parameters(), 0.01)
    sp.save(loaded, tmp_path / "b", resumed)
    sp.load(tmp_path / "b", dense, of_dense)
    again = MODELS[name]()
    of_again = torch.optim.AdamW(again.parameters(), 0.01)
    sp.load(tmp_path / "a", again, of_again)
    for key, mask in masks.items():
        state = of_again.state[again.get_parameter(key)]["exp_avg"]
        assert not state[~mask].any()
        assert state[mask].any()
        assert torch.equal(of_dense.state[dense.get_parameter(key)]["exp_avg"], state)
    if source == target:
        step(saved, optimizer, x)
        step(loaded, resumed, x)
        assert torch.equal(saved(x), loaded(x))


@pytest.mark.parametrize("target", ["sparse", "dense"])
@pytest.mark.parametrize("name", MODELS)
def test_other_kinds_of_layers_load_dense_checkpoints(name: str, target: str) -> None:
    model = MODELS[name]()
    masks = masks_of(model)
    loaded = form_of(model, target)
    dense = MODELS[name]()
    for parameter in dense.parameters():
        parameter.data.neg_()
    sp.apply_masks(dense, masks)
    loaded.load_state_dict(dense.state_dict())
    found = sp.densify(loaded).state_dict()
    assert all(torch.equal(found[key], t) for key, t in dense.state_dict().items())


@pytest.mark.parametrize("form", ["sparse", "dense"])
@pytest.mark.parametrize("name", MODELS)
def test_masks_of_other_kinds_of_layers_are_found(name: str, form: str) -> None:
    masks = masks_of(MODELS[name]())
    model = form_of(MODELS[name](), form)
    for network in (model, sp.densify(model)):
        found = sp.masks_from_zeros(network)
        assert found.keys() == masks.keys()
        assert all(torch.equal(found[key], mask) for key, mask in masks.items())
