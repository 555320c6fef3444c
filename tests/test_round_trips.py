"""Random models of all kinds of layers: prune, sparsify, train, save, load, densify, beside dense ones."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_half_the_digits
from hypothesis import given
from hypothesis import strategies as st
from other_layers import Conv1D
from small_networks import state
from torch import Tensor, nn

import sparseprune as sp

CLASSES, TOKENS = 3, 7
METHODS = ("random", "magnitude", "gradient", "snip", "grasp")
SCOPES = ("global", "layer", "erk", "balanced")
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 0.01),
}


class Derived(nn.Linear):
    """A class of a user's own, with torch's forward."""


class Scaled(nn.Linear):
    """One that reads its weight in a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, 0.5 * self.weight, self.bias)


class Attention(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.attention(x, x, x, need_weights=False)[0]
        return y


class AlongTokens(nn.Module):
    """A convolution over the tokens of (N, L, width)."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.transpose(1, 2)).transpose(1, 2)
        return y


class OverImages(nn.Module):
    """A convolution over (N, width, L, 3) that the tokens are spread to."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        image = torch.stack([x, x.flip(1), -x], 3).transpose(1, 2)
        y: Tensor = self.inner(image).mean(3).transpose(1, 2)
        return y


class Twins(nn.Module):
    """Two layers of one weight, which is not pruned."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width, bias), nn.Linear(width, width)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).tanh())
        return y


class Classifier(nn.Module):
    """The last layers, of the mean over tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(x.mean(1)))
        return y


@st.composite
def blocks(draw: st.DrawFn, width: int) -> tuple[nn.Module, int]:
    """A module of (N, L, width), and the width of what it returns."""
    kind = draw(st.sampled_from(["linear", "attention", "Conv1D", "conv1d", "conv2d", "twins"]))
    bias, out = draw(st.booleans()), draw(st.sampled_from([4, 8, 16]))
    if kind == "attention":
        return Attention(width, bias), width
    if kind == "twins":
        return Twins(width, bias), width
    if kind == "Conv1D":
        return Conv1D(out, width), out
    if kind == "linear":
        return draw(st.sampled_from([nn.Linear, Derived, Scaled]))(width, out, bias), out
    kernel, stride = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2]))
    groups = draw(st.sampled_from([1, 2, width])) if out % width == 0 else draw(st.sampled_from([1, 2]))
    conv, norm, wrap = {
        "conv1d": (nn.Conv1d, nn.BatchNorm1d, AlongTokens),
        "conv2d": (nn.Conv2d, nn.BatchNorm2d, OverImages),
    }[kind]
    modules: list[nn.Module] = [conv(width, out, kernel, stride, kernel // 2, groups=groups, bias=bias)]
    if draw(st.booleans()):
        modules.append(norm(out))
    return wrap(*modules), out


@st.composite
def models(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A model in float64 that takes (N, L, 8) or tokens (N, L), and its inputs."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    samples, length, width = draw(st.sampled_from([2, 5, 17])), draw(st.integers(1, 6)), 8
    if draw(st.booleans()):
        x = torch.randint(0, TOKENS, (samples, length))
        modules: list[nn.Module] = [nn.Embedding(TOKENS, width)]
    else:
        x, modules = torch.randn(samples, length, width, dtype=torch.float64), []
    for _ in range(draw(st.integers(1, 3))):
        module, width = draw(blocks(width))
        modules += [module, draw(st.sampled_from([nn.Tanh, nn.GELU]))()]
    return nn.Sequential(*modules, Classifier(width)).double(), x


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(len(x)) % CLASSES).backward()
        optimizer.step()


def vector(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in state.values()])


@given(data=st.data())
def test_a_model_goes_all_the_way_round(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, x = data.draw(models())
    method, scope = data.draw(st.sampled_from(METHODS)), data.draw(st.sampled_from(SCOPES))
    block = (data.draw(st.sampled_from([1, 2, 4])), 1)
    sparsity = data.draw(st.sampled_from([0.0, 0.5, 0.8]))
    forms = data.draw(st.tuples(*2 * [st.sampled_from(["sparse", "dense"])]))
    make = OPTIMIZERS[data.draw(st.sampled_from(sorted(OPTIMIZERS)))]
    path = tmp_path_factory.getbasetemp() / "round-trip.safetensors"
    before = state(model)

    masks = sp.prune(
        model,
        [(x, torch.arange(len(x)) % CLASSES)],
        method=method,
        sparsity=sparsity,
        scope=scope,
        block=block,
        allow_empty=True,
        zero_scores="random",
    )
    assert list(masks) == [name for name, p in model.named_parameters() if name in sp.scores.prunable(model)]
    sparse = sp.sparsify(model, masks, layers=forms[0])
    optimizer = make(sparse.parameters())
    train(sparse, optimizer, x, 2)
    sp.save(sparse, path, optimizer)

    # Into a model of other numbers, with other masks.
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.zero_()
    loaded = sp.sparsify(other, {name: ~mask for name, mask in masks.items()}, layers=forms[1])
    resumed = make(loaded.parameters())
    sp.load(path, loaded, resumed)
    back = sp.densify(loaded)
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    for name, tensor in sp.densify(sparse).state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    other.load_state_dict(back.state_dict(), strict=True)

    # Trained on, it is where dense training with zeros arrives.
    train(loaded, resumed, x, 1)
    dense = copy.deepcopy(model)
    sp.apply_masks(dense, masks)
    of_dense = make(dense.parameters())
    of_dense.register_step_post_hook(lambda *_: sp.apply_masks(dense, masks))
    train(dense, of_dense, x, 3)
    found = sp.densify(loaded).state_dict()
    for name, mask in masks.items():
        assert not found[name][~mask].any()
    if isinstance(of_dense, torch.optim.SGD):
        # The other divides by roundings where a gradient is 0 but for them; for such numbers, one vector.
        assert_half_the_digits(vector(found), vector(dense.state_dict()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
