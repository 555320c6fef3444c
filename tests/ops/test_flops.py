"""What torch's counter of floating-point operations finds in sparse layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sparseprune as sp
from sparseprune.ops import flops


def counted(model: Any, x: Tensor) -> tuple[int, int]:
    """Of the forward and of the backward pass."""
    with FlopCounterMode(display=False) as forward:
        total = model(x).sum()
    with FlopCounterMode(display=False) as backward:
        total.backward()
    return forward.get_total_flops(), backward.get_total_flops()


LAYERS = {
    "linear": (lambda: nn.Linear(20, 12), (20,)),
    "linear, several rows a sample": (lambda: nn.Linear(20, 12), (3, 20)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 9, 7)),
    "conv2d, groups": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 9, 7)),
}


@pytest.mark.parametrize("input_gradient", [True, False])
@pytest.mark.parametrize("samples", [5, 17])
# Torch counts weight gradients of groups as if there were none.
@pytest.mark.parametrize("name", [name for name in LAYERS if "groups" not in name])
def test_a_layer_at_density_1_counts_as_the_dense_one(name: str, samples: int, input_gradient: bool) -> None:
    make, shape = LAYERS[name]
    dense = nn.Sequential(make())
    sparse = sp.sparsify(dense, {"0.weight": torch.ones_like(dense[0].weight).bool()}, layers="sparse")
    x = torch.randn(samples, *shape, requires_grad=input_gradient)
    assert counted(sparse, x) == counted(dense, x)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_counts_kept_weights_as_summary_does(name: str) -> None:
    make, shape = LAYERS[name]
    dense = nn.Sequential(make())
    sparse = sp.sparsify(dense, sp.prune(dense, method="random", sparsity=0.7), layers="sparse")
    x = torch.randn(5, *shape, requires_grad=True)
    one = sp.summary(sparse, input_size=shape).flops
    assert one is not None
    assert counted(sparse, x) == (5 * one, 2 * 5 * one)
    sparse[0].values.requires_grad_(False)
    assert counted(sparse, x) == (5 * one, 5 * one)


def test_a_relu_counts_nothing() -> None:
    dense = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    sparse = sp.sparsify(dense, sp.prune(dense, method="random", sparsity=0.5), layers="sparse")
    assert sparse[0].relu
    x = torch.randn(5, 8, requires_grad=True)
    assert counted(sparse, x) == (5 * 2 * 48, 5 * 4 * 48)


def test_a_transformer_counts_as_summary_does() -> None:
    dense = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    masks = sp.prune(dense, method="random", sparsity=0.5)
    one = {}
    for name, model in (("dense", dense), ("sparse", sp.sparsify(dense, masks, layers="sparse"))):
        total = sp.summary(model, input_size=(5, 8)).flops
        one[name] = counted(model, torch.randn(3, 5, 8))[0] - 3 * (total or 0)
    # What is left is the attention itself.
    assert one["dense"] == one["sparse"]


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
def test_compiled_models_are_counted() -> None:
    torch._dynamo.reset()
    dense = nn.Sequential(nn.Linear(8, 4))
    sparse = sp.sparsify(dense, sp.prune(dense, method="random", sparsity=0.5), layers="sparse")
    x = torch.randn(5, 8)
    compiled = torch.compile(sparse, backend="aot_eager")
    compiled(x)
    assert counted(compiled, x) == counted(sparse, x) == (5 * 2 * 16, 5 * 2 * 16)


def test_every_product_has_a_formula() -> None:
    gradients = [name for family in (sp.ops.products, sp.ops.convolution) for name, *_ in family.GRADIENTS]
    assert sorted(gradients) == sorted(flops.FORMULAS)
