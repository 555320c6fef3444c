"""Sparse linear layers and the dense ones with the same weights, for tests."""

import io
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune import SparseLinear


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(
    rows: int = 33,
    cols: int = 20,
    density: float = 0.3,
    bias: bool = True,
    seed: int = 0,
    block_rows: int = 1,
) -> tuple[SparseLinear, nn.Linear]:
    """A sparse layer and the dense layer with the same weights, pruned ones zero."""
    dense = nn.Linear(cols, rows, bias)
    blocks = torch.rand(rows // block_rows, cols, generator=torch.Generator().manual_seed(seed)) < density
    mask = blocks.repeat_interleave(block_rows, 0)
    with torch.no_grad():
        dense.weight.copy_(noise(rows, cols, seed=seed) * mask)
        if bias:
            dense.bias.copy_(noise(rows, seed=seed + 1))
    return SparseLinear.from_dense(dense, mask, block=(block_rows, 1)), dense


def check_same_layer(a: SparseLinear, b: SparseLinear) -> None:
    assert list(a.state_dict()) == list(b.state_dict())
    assert all(
        torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )
    assert (a.block, a.batch_inner, a.relu) == (b.block, b.batch_inner, b.relu)
    x = noise(5, a.in_features).to(a.values.dtype)
    assert torch.equal(a(x), b(x))
    g = noise(5, a.out_features).to(a.values.dtype)
    wanted = [[layer.values, layer.bias] for layer in (a, b)]
    gradients = [torch.autograd.grad(layer(x), w, g) for layer, w in zip((a, b), wanted, strict=True)]
    assert all(torch.equal(p, q) for p, q in zip(*gradients, strict=True))


def saved_and_loaded(layer: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)
