"""Layers that would keep nothing, and the floor that the error names."""

import re
from typing import Any

import pytest
import torch
from other_layers import Conv1D
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
    with pytest.raises(ValueError, match=r"got none kept in '2\.weight', '4\.weight'; choose") as error:
        sp.prune(network(), method="magnitude", scope="global", **arguments)
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
    with pytest.raises(ValueError, match=r"choose scope=\"balanced\" or .*, give .* min_per_layer=1, keep"):
        sp.prune(Counting(), method="magnitude", sparsity=0.9, input_size=(20,), scope="global")


def test_scopes_of_the_error_leave_no_layer_empty() -> None:
    for scope in ("balanced", "erk", "layer"):
        masks = sp.prune(network(), method="magnitude", sparsity=0.9, scope=scope)
        assert all(mask.any() for mask in masks.values())


def test_the_error_leaves_the_model_untouched() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="got none kept"):
        sp.prune(model, batches(), method="magnitude", sparsity=0.9, scope="global")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- no scope named ----------------------------------------------------------------------------------------


class Whisper(nn.Module):
    """Two layers, of which the loss hardly sees the second, as transformers' hardly see queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loud, self.quiet = nn.Linear(20, 30), nn.Linear(20, 30)

    def forward(self, x: Tensor) -> Tensor:
        return self.loud(x) + 1e-4 * self.quiet(x)


def equal(masks: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return masks.keys() == others.keys() and all(torch.equal(masks[name], others[name]) for name in masks)


def told(*layers: str) -> str:
    return f'in {", ".join(map(repr, layers))}, so that layers share the weights by scope="balanced"'


@pytest.mark.parametrize(
    "options", [{}, {"block": (2, 1)}, {"block": "channel"}, {"pattern": "fan_in"}, {"keep": "last"}], ids=str
)
def test_without_a_scope_layers_that_would_be_empty_are_balanced(options: dict) -> None:
    options = {"method": "magnitude", "sparsity": 0.8, **options}
    with pytest.warns(RuntimeWarning, match=told("2.weight", "4.weight")) as warnings:
        masks = sp.prune(network(), **options)
    assert [warning.filename for warning in warnings] == [__file__]
    assert equal(masks, sp.prune(network(), scope="balanced", **options))
    with pytest.raises(ValueError, match="got none kept"):
        sp.prune(network(), scope="global", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "snip"},
        {"method": "snip", "rounds": 3},
        {"method": "iter_snip", "rounds": 3, "preset": "authors"},
    ],
    ids=str,
)
def test_without_a_scope_batches_are_scored_as_with_that_scope(options: dict) -> None:
    data = [(torch.randn(5, 20), torch.arange(5)) for _ in range(2)]
    with pytest.warns(RuntimeWarning, match=told("quiet.weight")):
        masks = sp.prune(Whisper(), iter(data), sparsity=0.9, **options)
    assert equal(masks, sp.prune(Whisper(), data, sparsity=0.9, scope="balanced", **options))


@pytest.mark.parametrize("options", [{"sparsity": 0.3}, {"min_per_layer": 2}, {"allow_empty": True}])
def test_without_a_scope_all_weights_are_ranked_together_where_no_layer_is_empty(options: dict) -> None:
    masks = sp.prune(network(), method="magnitude", **options)
    assert equal(masks, sp.prune(network(), method="magnitude", scope="global", **options))


# ---- queries, keys and values in one weight ----------------------------------------------------------------


class Fused(nn.Module):
    """Queries and keys are small, as seen from the loss."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv: nn.Module = nn.Linear(8, 24)
        with torch.no_grad():
            self.qkv.weight[:16] *= 1e-6
        if transposed:
            self.c_attn, weight = Conv1D(24, 8), self.qkv.weight.detach().t().contiguous()
            del self.qkv
            self.c_attn.weight = nn.Parameter(weight)
        self.out = nn.Linear(8, 8)


@pytest.mark.parametrize("transposed", [False, True])
def test_queries_keys_and_values_of_one_weight_are_three_layers(transposed: bool) -> None:
    name, dim = ("c_attn.weight", 1) if transposed else ("qkv.weight", 0)

    def kept(**options: Any) -> list[int]:
        masks = sp.prune(Fused(transposed), **{"method": "magnitude", "sparsity": 0.5, **options})
        assert masks[name].shape == Fused(transposed).get_parameter(name).shape
        return [int(third.sum()) for third in masks[name].chunk(3, dim)]

    assert kept(scope="layer") == kept(scope="erk") == kept(scope="balanced") == [32, 32, 32]
    assert kept(scope="layer", block=(4, 1)) == [32, 32, 32]
    assert kept(scope={name: 0.25, "out": 1.0}, sparsity=None) == [16, 16, 16]
    assert kept(keep=name.split(".")[0], sparsity=0.2) == [64, 64, 64]
    assert kept(allow_empty=True) == kept(scope="global", allow_empty=True)
    assert kept(scope="global", allow_empty=True)[:2] == [0, 0]
    assert kept(min_per_layer=5)[:2] == [5, 5]
    with pytest.warns(RuntimeWarning, match=told(f"{name}.queries", f"{name}.keys")):
        assert kept() == [32, 32, 32]
    with pytest.raises(ValueError, match=rf"none kept in '{name}\.queries', '{name}\.keys'; choose scope="):
        kept(scope="global")
    # Patterns count all rows of a weight alike.
    assert kept(pattern="fan_in", scope="layer") == [32, 32, 32]
    assert len(set(kept(pattern="fan_in"))) == 1
    assert kept(pattern="2:4", sparsity=None) == [32, 32, 32]


def test_too_few_weights_for_all_layers_are_an_error_without_a_scope() -> None:
    with pytest.raises(
        ValueError, match=r"keep more weights \(one block in each layer takes 4, these are 2\)"
    ):
        sp.prune(network(), method="magnitude", sparsity=0.9992)
