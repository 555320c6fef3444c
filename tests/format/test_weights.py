"""What can be pruned, and why the rest cannot."""

import pytest
import torch
from other_layers import Conv1D, Experts
from torch import nn

from sparseprune.format.weights import (
    Stored,
    all_weights,
    as_stored,
    fused_projections,
    in_one,
    in_thirds,
    is_transposed,
    outputs_first,
    stored_otherwise,
    weight_names,
)


class SubLinear(nn.Linear):
    pass


class SubConv(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.Linear(2, 3), ("weight",)),
        (SubLinear(2, 3), ("weight",)),
        (SubConv(2, 3, 1), ("weight",)),
        (nn.Conv1d(2, 3, 1), ("weight",)),
        (nn.Conv3d(2, 3, 1), ("weight",)),
        (nn.MultiheadAttention(4, 2), ("in_proj_weight",)),
        (nn.MultiheadAttention(4, 2, kdim=3), ("q_proj_weight", "k_proj_weight", "v_proj_weight")),
        (Conv1D(3, 2), ("weight",)),
        (Experts(2, 3, 4), ("up", "down")),
        *[(nn.LSTM(2, 3), ()), (nn.GRU(2, 3), ()), (nn.Bilinear(2, 2, 3), ()), (nn.Embedding(3, 2), ())],
        *[(nn.ConvTranspose2d(2, 3, 1), ()), (nn.LayerNorm(2), ()), (nn.ReLU(), ())],
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), ()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_weight_names(module: nn.Module, names: tuple[str, ...]) -> None:
    assert weight_names(module) == names
    assert [weight.name for weight in all_weights(module) if not weight.why_not][: len(names)] == list(names)


def test_transposed_is_transformers_class_alone() -> None:
    assert is_transposed(Conv1D)
    assert is_transposed(type("Mine", (Conv1D,), {}))
    assert not is_transposed(nn.Conv1d)
    assert not is_transposed(type("Conv1D", (nn.Module,), {"__module__": "mine"}))


def test_all_weights_lists_every_parameter_once_and_says_why_not() -> None:
    model = nn.ModuleDict(
        {
            "words": nn.Embedding(5, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "rnn": nn.LSTM(4, 4, bias=False),
            "head": nn.Linear(4, 5),
        }
    )
    model["again"] = model["attention"].out_proj
    model["head"].weight = model["words"].weight
    found = all_weights(model)
    assert [weight.parameter is model.get_parameter(weight.name) for weight in found] == [True] * len(found)
    assert [id(weight.parameter) for weight in found] == [id(p) for p in model.parameters()]
    assert {weight.names: weight.why_not for weight in found} == {
        ("words.weight", "head.weight"): "shared by words.weight, head.weight",
        ("attention.in_proj_weight",): "",
        ("attention.in_proj_bias",): "bias",
        ("attention.out_proj.weight", "again.weight"): "",
        ("attention.out_proj.bias", "again.bias"): "bias",
        ("rnn.weight_ih_l0",): "LSTM",
        ("rnn.weight_hh_l0",): "LSTM",
        ("head.bias",): "bias",
    }
    assert [weight.names[0] for weight in found if weight.shared] == ["words.weight"]


def test_a_parameter_of_two_names_in_one_module_is_shared() -> None:
    attention = nn.MultiheadAttention(4, 2, kdim=4, vdim=3)
    attention.k_proj_weight = attention.q_proj_weight
    shared = [weight for weight in all_weights(attention) if weight.shared]
    assert [weight.names for weight in shared] == [("q_proj_weight", "k_proj_weight")]
    assert torch.is_tensor(shared[0].parameter)


def test_weights_outputs_first_and_back() -> None:
    model = nn.ModuleList([nn.Linear(2, 3), Conv1D(3, 2), Experts(2, 3, 4), Experts(2, 3, 4)])
    model[3].is_transposed = True
    stored = stored_otherwise(model)
    assert stored == {
        "1.weight": Stored(True, 0),
        **{f"2.{name}": Stored(False, 2) for name in ("up", "down")},
        **{f"3.{name}": Stored(True, 2) for name in ("up", "down")},
    }
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}
    turned = outputs_first(weights, stored)
    up = weights["2.up"]
    assert turned["0.weight"] is weights["0.weight"]
    assert torch.equal(turned["1.weight"], weights["1.weight"].t())
    assert torch.equal(turned["2.up"], torch.cat([up[0], up[1]]))
    assert torch.equal(turned["3.up"], torch.cat([weights["3.up"][0].t(), weights["3.up"][1].t()]))
    assert all(tensor.is_contiguous() for tensor in turned.values())
    back = as_stored(turned, stored)
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())
    assert list(back) == list(weights)


def test_fused_projections_are_those_of_queries_keys_and_values() -> None:
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2),
            "cross": nn.MultiheadAttention(4, 2, kdim=3),
            "block": nn.ModuleDict(
                {"qkv": nn.Linear(4, 12), "c_attn": Conv1D(12, 4), "out": nn.Linear(4, 12)}
            ),
            "other": nn.ModuleDict(
                {"qkv": nn.Linear(4, 8), "c_attn": Conv1D(4, 12), "Wqkv": nn.Linear(2, 6)}
            ),
            "lazy": nn.ModuleDict({"qkv": nn.LazyLinear(12)}),
        }
    )
    assert fused_projections(model) == [
        "attention.in_proj_weight",
        "block.qkv.weight",
        "block.c_attn.weight",
        "other.Wqkv.weight",
    ]
    assert fused_projections(nn.Linear(4, 12)) == []


def test_fused_projections_in_thirds_and_in_one() -> None:
    weights = {
        "a.weight": torch.randn(2, 3),
        "b.qkv.weight": torch.randn(6, 2),
        "c.queries": torch.randn(2, 2),
    }
    fused = ["b.qkv.weight"]
    thirds = in_thirds(weights, fused)
    names = ["b.qkv.weight.queries", "b.qkv.weight.keys", "b.qkv.weight.values"]
    assert list(thirds) == ["a.weight", *names, "c.queries"]
    assert torch.equal(thirds[names[1]], weights["b.qkv.weight"][2:4])
    back = in_one(thirds, fused)
    assert list(back) == list(weights)
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())
