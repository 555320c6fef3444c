"""Layers that would keep nothing, and the floor that the error names."""

import re

import pytest
import torch
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.scores.paths import live


def network() -> nn.Module:
    """A wide layer in the middle, whose weights are small."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 30),
        nn.ReLU(),
        nn.Linear(30, 30),
        nn.ReLU(),
        nn.Linear(30, 30),
        nn.ReLU(),
        nn.Linear(30, 4),
    )
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
        model[4].weight.mul_(1e-3)
    return model


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(5, 20), torch.zeros(5, dtype=torch.int64))]


def floor_of(**arguments) -> int:
    with pytest.raises(ValueError, match=r"got none kept in '2\.weight', '4\.weight'; give each") as error:
        sp.prune(network(), method="magnitude", **arguments)
    return int(re.search(r"min_per_layer=(\d+)", str(error.value))[1])


@pytest.mark.parametrize("source", [{"input_size": (20,)}, {"batches": batches()}])
@pytest.mark.parametrize("block", [(1, 1), (2, 1)])
def test_the_floor_of_the_error_makes_all_layers_live(source: dict, block: tuple[int, int]) -> None:
    options = {"sparsity": 0.9, "block": block, **source}
    floor = floor_of(**options)
    assert floor > 1

    def all_live(floor: int) -> bool:
        masks = sp.prune(network(), method="magnitude", min_per_layer=floor, **options)
        return all(alive.any() for alive in live(network(), masks, (20,)).values())

    assert all_live(floor)
    assert not all_live(floor // 2)


def test_the_floor_is_1_where_the_shape_of_a_sample_is_not_known() -> None:
    assert floor_of(sparsity=0.9) == 1
    assert floor_of(sparsity=0.9, batches=iter(batches())) == 1


class Counting(nn.Module):
    """Paths cannot be followed through a maximum over a dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).max(1, keepdim=True).values


def test_the_floor_is_1_where_paths_cannot_be_followed() -> None:
    with pytest.raises(ValueError, match=r"floor with min_per_layer=1, choose scope=\"erk\" or \"layer\""):
        sp.prune(Counting(), method="magnitude", sparsity=0.9, input_size=(20,))


def test_scopes_of_the_error_leave_no_layer_empty() -> None:
    for scope in ("erk", "layer"):
        masks = sp.prune(network(), method="magnitude", sparsity=0.9, scope=scope)
        assert all(mask.any() for mask in masks.values())


def test_the_error_leaves_the_model_untouched() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="got none kept"):
        sp.prune(model, batches(), method="magnitude", sparsity=0.9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
