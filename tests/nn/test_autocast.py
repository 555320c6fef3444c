"""Layers under autocast: dtypes as torch's own have them, numbers within the bounds of sums in that dtype."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bounds import assert_half_the_digits
from layers import check_step
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.nn.masked import masked_from_dense

HALVES = (torch.bfloat16, torch.float16)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sparse_of(dense: Any, block_rows: int = 1) -> Any:
    weight = dense.weight
    mask = (noise(len(weight) // block_rows, *weight.shape[1:], seed=7) > 0).repeat_interleave(block_rows, 0)
    kinds = {nn.Linear: sp.SparseLinear, nn.Conv1d: sp.SparseConv1d, nn.Conv2d: sp.SparseConv2d}
    return kinds[type(dense)].from_dense(dense, mask)


def with_relu() -> Any:
    layer = sparse_of(nn.Linear(40, 24), 4)
    layer.relu = True
    return layer


# (sparse layer, shape of its input)
LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "linear": (lambda: sparse_of(nn.Linear(40, 24)), (17, 40)),
    "linear, few samples": (lambda: sparse_of(nn.Linear(40, 24, bias=False), 2), (3, 40)),
    "linear and relu": (with_relu, (17, 40)),
    "conv1d": (lambda: sparse_of(nn.Conv1d(4, 6, 3, padding=1)), (3, 4, 9)),
    "conv2d": (lambda: sparse_of(nn.Conv2d(4, 8, 3, stride=2, groups=2), 2), (17, 4, 7, 7)),
    "conv2d, reflected": (
        lambda: sparse_of(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")),
        (3, 4, 5, 5),
    ),
}


def step(layer: Any, x: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype):
        y: Tensor = layer(x)
    y.backward(g)
    return y


def facts(layer: Any, x: Tensor, y: Tensor) -> list[torch.dtype]:
    assert x.grad is not None
    parameters = [*layer.parameters()]
    return [y.dtype, x.grad.dtype, *(p.dtype for p in parameters), *(p.grad.dtype for p in parameters)]


@pytest.mark.parametrize("given", [torch.float32, *HALVES])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_step_under_autocast(name: str, dtype: torch.dtype, given: torch.dtype) -> None:
    make, shape = LAYERS[name]
    sparse, x = make(), noise(*shape).to(given).requires_grad_()
    dense, twin = sparse.to_dense(), x.detach().clone().requires_grad_()
    g = noise(*sparse(noise(*shape)).shape, seed=1).to(dtype)
    y = step(sparse, x, g, dtype)
    assert facts(sparse, x, y) == facts(dense, twin, step(dense, twin, g, dtype))
    if given in (torch.float32, dtype):
        rounded = x.detach().to(dtype)
        # Torch adds the gradients of what padding repeats in the input's dtype.
        rounded.grad = None if "reflected" in name else narrowed(x, dtype)
        check_step(with_gradients_of(sparse, dtype), dense.to(dtype), rounded, y, g)


def narrowed(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient in the dtype that it was computed in."""
    assert t.grad is not None
    narrow = t.grad.to(dtype)
    assert torch.equal(narrow.to(t.grad.dtype), t.grad)
    return narrow


def with_gradients_of(sparse: Any, dtype: torch.dtype) -> Any:
    """What ``check_step`` reads of a layer, with gradients in the dtype of autocast."""
    values, bias = (
        None if t is None else SimpleNamespace(grad=narrowed(t, dtype)) for t in (sparse.values, sparse.bias)
    )
    pattern = {"crow": sparse.crow, "col": sparse.col, "block": sparse.block}
    return SimpleNamespace(**pattern, values=values, bias=bias, relu=getattr(sparse, "relu", False))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", LAYERS)
def test_without_gradients_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    make, shape = LAYERS[name]
    sparse, x = make(), noise(*shape)
    before = sparse(x)
    with torch.autocast("cpu", dtype):
        y = sparse(x)
        with torch.no_grad():
            assert torch.equal(sparse(x), y)
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(sparse(x), before)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["linear and relu", "conv2d"])
def test_compiled_under_autocast(name: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    make, shape = LAYERS[name]
    sparse, x = make(), noise(*shape)
    layer = torch.compile(sparse, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype):
        y = layer(x)
        assert torch.equal(y, sparse(x))
        y.float().sum().backward()
    assert sparse.values.grad.dtype == torch.float32
    assert torch.equal(layer(x), sparse(x))


def test_float64_stays_float64_under_autocast() -> None:
    sparse, x = sparse_of(nn.Linear(40, 24)).double(), noise(17, 40).double()
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse(x)
    assert torch.equal(y, sparse(x))


class Block(nn.Module):
    """Convolutions with batch normalisation, a shortcut and ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.head = nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)) + x)
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_a_network_under_autocast(layers: str, training: bool, dtype: torch.dtype) -> None:
    dense = Block()
    masks = sp.prune(dense, method="random", sparsity=0.5)
    sp.apply_masks(dense, masks)
    sparse = sp.sparsify(dense, masks, layers=layers)
    x = noise(20, 8, 6, 6)
    results = []
    for model in (sparse.train(training), dense.train(training)):
        with torch.autocast("cpu", dtype):
            y = model(x)
        y.float().pow(2).sum().backward()
        grads = {p.grad.dtype for p in model.parameters() if p.grad is not None}
        results.append((y, grads))
    (y, grads), (expected, expected_grads) = results
    assert grads == expected_grads == {torch.float32}
    assert_half_the_digits(y, expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_batch_norm_under_autocast(dtype: torch.dtype) -> None:
    norm = nn.BatchNorm2d(3)
    fused = sp.nn.BatchNormAct2d.from_batch_norm(copy.deepcopy(norm), relu=True)
    for given in (torch.float32, dtype):
        for of_residual in (torch.float32, dtype):
            x, residual = noise(17, 3, 4, 4).to(given), noise(17, 3, 4, 4, seed=1).to(of_residual)
            with torch.autocast("cpu", dtype):
                y, expected = fused(x, residual), (norm(x) + residual).relu()
            assert_half_the_digits(y, expected)


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_under_autocast(need_weights: bool) -> None:
    dense = nn.MultiheadAttention(8, 2, batch_first=True)
    masks = sp.prune(nn.ModuleList([dense]), method="random", sparsity=0.5)
    sp.apply_masks(model := nn.ModuleList([dense]), masks)
    sparse = sp.sparsify(model, masks, layers="sparse")[0]
    x = noise(3, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, weights = sparse(x, x, x, need_weights=need_weights)
        expected, expected_weights = dense(x, x, x, need_weights=need_weights)
    assert_half_the_digits(y, expected)
    if need_weights:
        assert_half_the_digits(weights, expected_weights)


def test_masked_modules_under_autocast() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    masked = masked_from_dense(Own(6, 4), noise(4, 6) > 0)
    x = noise(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = masked(x)
    assert_half_the_digits(y, masked(x).bfloat16())
    y.float().sum().backward()
    assert {p.grad.dtype for p in masked.parameters() if p.grad is not None} == {torch.float32}
