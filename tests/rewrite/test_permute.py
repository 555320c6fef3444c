"""Hidden units in another order: which layers allow it, and that the function stays the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_half_the_digits
from torch import Tensor, nn

from sparseprune.experiments.models import resnet8
from sparseprune.rewrite.permute import Hidden, hidden_layers, permute_units


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.hidden, self.head = nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        x = F.dropout(self.hidden(torch.flatten(x, 1)).tanh(), training=self.training)
        return self.head(x)


class Forward(nn.Module):
    """Two linear layers, and what is said of them."""

    def __init__(self, forward: Callable[[Forward, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU()
        self.own = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.GELU(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(24, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)),
    )


def randomised(model: nn.Module) -> nn.Module:
    """In float64, with gradients, and norms that are not all the same."""
    model = model.double()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5).mul_(torch.randn_like(tensor).sign() if tensor.dim() > 1 else 1)
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    return model


def permuted(model: nn.Module) -> list[str]:
    """The layers whose units are now in another order."""
    found = hidden_layers(model)
    for name, hidden in found.items():
        units = len(model.get_submodule(name).weight)
        permute_units(model, hidden, torch.arange(units).roll(1))
    return list(found)


@pytest.mark.parametrize(
    ("make", "sample", "layers"),
    [
        (
            lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 3)),
            (5,),
            ["0", "2"],
        ),
        (convolutional, (2, 8, 8), ["0", "4", "8"]),
        (Functional, (2, 6, 6), ["conv", "hidden"]),
        # The units of the stem and of what is added to it stay.
        (lambda: resnet8((1, 9, 9), width=0.25), (1, 9, 9), ["3.conv1", "4.conv1", "5.conv1"]),
        (
            lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)),
            (2, 9),
            ["0"],
        ),
    ],
)
def test_permuted_units_give_the_same_function(
    make: Callable[[], nn.Module], sample: tuple[int, ...], layers: list[str]
) -> None:
    model = randomised(make())
    x = torch.randn(4, *sample, dtype=torch.float64)
    outputs = [model.eval()(x)]
    norms = {name: p.grad.norm() for name, p in model.named_parameters()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert permuted(model) == layers
    outputs.append(model(x))
    assert_half_the_digits(outputs[1], outputs[0])
    # The gradients went along.
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.norm(), norms[name])
    for name in layers:
        assert not torch.equal(model.get_submodule(name).weight, before[f"{name}.weight"])


def test_units_of_a_batch_norm_go_along_in_training_mode() -> None:
    model = randomised(convolutional()[:5]).train()
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    expected = model(x)
    assert permuted(model) == ["0"]
    assert_half_the_digits(model(x), expected)


def test_gradients_are_those_of_the_units() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    model(x).square().sum().backward()
    permuted(model)
    moved = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    for gradient, parameter in zip(moved, model.parameters(), strict=True):
        assert_half_the_digits(gradient, parameter.grad)


def test_a_unit_that_was_flattened_has_a_run_of_columns() -> None:
    model = convolutional()
    assert hidden_layers(model)["4"] == Hidden("4", (), "8", 4)
    assert hidden_layers(model)["0"] == Hidden("0", ("1",), "4", 1)
    weight = model[8].weight.detach().clone()
    permute_units(model, hidden_layers(model)["4"], torch.tensor([5, 0, 1, 2, 3, 4]))
    assert torch.equal(model[8].weight[:, :4], weight[:, 20:])
    assert torch.equal(model[8].weight[:, 4:], weight[:, :20])


def linear(rows: int = 6, cols: int = 6) -> nn.Linear:
    return nn.Linear(cols, rows)


def hooked() -> nn.Module:
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    model[0].register_forward_hook(lambda module, args, output: output.flip(1))
    return model


def tied() -> nn.Module:
    model = nn.Sequential(linear(), nn.ReLU(), linear())
    model[2].weight = model[0].weight
    return model


def twice() -> nn.Module:
    layer = linear()
    return nn.Sequential(layer, nn.ReLU(), layer)


def shared_norm() -> nn.Module:
    norm = nn.BatchNorm1d(6)
    return nn.Sequential(linear(), norm, linear(), norm, linear())


@pytest.mark.parametrize(
    "make",
    [
        lambda: linear(),
        lambda: nn.Sequential(linear()),
        lambda: nn.Sequential(linear(), nn.Softmax(1), linear()),
        lambda: nn.Sequential(linear(), nn.LayerNorm(6), linear()),
        lambda: nn.Sequential(linear(), nn.PReLU(6), linear()),
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(linear()), linear()),
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 3)),
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(4, 2, 3)),
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), linear()),  # along the images' columns
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(2), linear()),
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.MaxPool2d(2, return_indices=True), linear()),
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2)),
        lambda: nn.Sequential(linear(), nn.MaxPool1d(2), nn.Linear(3, 2)),  # over the features
        hooked,
        tied,
        twice,
        shared_norm,
        lambda: Forward(lambda m, x: x + m.second(m.act(m.first(x)))[:, :1] + m.first(x)),
        lambda: Forward(lambda m, x: m.second(m.first(x) + x)),
        lambda: Forward(lambda m, x: (h := m.first(x), m.second(h) + h)[1]),
        lambda: Forward(lambda m, x: (h := m.first(x), m.second(h))),
        lambda: Forward(lambda m, x: m.second(m.act(m.first(x)) * torch.arange(6.0))),
        lambda: Forward(lambda m, x: m.second(m.first(x)[:, [1, 0, 2, 3, 4, 5]])),
        lambda: Forward(lambda m, x: m.second(m.first(x)) + m.first.bias),
        lambda: Forward(lambda m, x: m.second(m.first(x)) @ m.second.weight),
        lambda: Forward(lambda m, x: m.second(m.first(x)) if m.training else m.second(m.first(x).flip(1))),
        lambda: Forward(lambda m, x: m.second(m.first(x)) if x.sum() > 0 else x),
    ],
)
def test_units_that_something_else_may_see_stay(make: Callable[[], nn.Module]) -> None:
    assert hidden_layers(make()) == {}
