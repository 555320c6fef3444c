"""SparseLinear beside ``nn.Linear``: as a drop-in, made from it and back, trained, compiled."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bounds import assert_half_the_digits
from layers import check_step
from linear_pairs import noise, pair
from torch import Tensor, nn

import sparseprune as sp
from sparseprune import SparseLinear, ops
from sparseprune.format.bsr import BLOCK_ROWS

# ---- a drop-in for nn.Linear ----

INPUTS: dict[str, Callable[[], Tensor]] = {
    "one_sample": lambda: noise(20),
    "no_samples": lambda: noise(0, 20),
    "batch": lambda: noise(17, 20),
    "three_dimensions": lambda: noise(3, 7, 20),
    "four_dimensions": lambda: noise(2, 3, 5, 20),
    "three_dimensions_one_empty": lambda: noise(3, 0, 20),
    "batch_inner": lambda: noise(20, 17).t(),
    "every_third": lambda: noise(17, 60)[:, ::3],
    "expanded": lambda: noise(1, 20).expand(17, 20),
    "transposed_leading_dimensions": lambda: noise(3, 7, 20).transpose(0, 1),
    "channels_first": lambda: noise(3, 20, 7).transpose(1, 2),
}


@pytest.mark.parametrize(
    ("rows", "block_rows", "bias", "relu"),
    [(33, 1, True, False), (33, 1, False, True), (32, 8, True, False), (32, 4, True, True)],
)
@pytest.mark.parametrize("kind", INPUTS)
def test_linear_is_a_drop_in(kind: str, rows: int, block_rows: int, bias: bool, relu: bool) -> None:
    sparse, dense = pair(rows, bias=bias, block_rows=block_rows)
    sparse.relu = relu
    x = INPUTS[kind]().requires_grad_()
    y = sparse(x)
    g = noise(*y.shape)
    y.backward(g)
    assert x.grad is not None
    assert sparse.values.grad is not None
    assert (sparse.bias is not None) == bias
    check_step(sparse, dense, x, y, g)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("rows", "block_rows", "bias"), [(5, 1, True), (5, 1, False), (8, 4, True)])
def test_linear_gradients_of_first_and_second_order(
    rows: int, block_rows: int, bias: bool, relu: bool
) -> None:
    sparse = pair(rows, 6, 1.0, bias=bias, block_rows=block_rows)[0].double()  # no output is at the kink
    sparse.relu = relu
    names = [name for name, _ in sparse.named_parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(sparse, dict(zip(names, parameters, strict=True)), (x,))

    inputs = (noise(3, 6).double().requires_grad_(), *sparse.parameters())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("density", [-1, 2])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 9), (9, 1), (5, 7)])
def test_linear_is_a_drop_in_with_no_or_all_weights(rows: int, cols: int, density: float) -> None:
    sparse, dense = pair(rows, cols, density)
    assert len(sparse.values) == (rows * cols if density > 0 else 0)
    x = noise(4, cols)
    check_step(sparse, dense, x, sparse(x))
    sparse(x).sum().backward()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_linear_without_gradients(context: Callable[[], Any]) -> None:
    sparse, dense = pair()
    x = noise(17, 20)
    with context():
        y = sparse(x)
    check_step(sparse, dense, x, y)
    assert not y.requires_grad


@pytest.mark.parametrize("shape", [(17, 20), (3, 7, 20), (20,)])
def test_linear_output_may_be_changed_in_place(shape: tuple[int, ...]) -> None:
    sparse, dense = pair()
    x = noise(*shape).requires_grad_()
    y = sparse(x).relu_()
    y.sum().backward()
    assert x.grad is not None
    assert sparse.values.grad is not None
    sparse.relu = True  # the same function
    check_step(sparse, dense, x, y, torch.ones_like(y))


def test_linear_with_relu_saves_its_output() -> None:
    sparse, _ = pair()
    sparse.relu = True
    y = sparse(noise(17, 20))
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # as of nn.ReLU
        y.sum().backward()


@pytest.mark.parametrize("relu", [False, True])
def test_linear_frozen_parts_get_no_gradient(relu: bool) -> None:
    for values, bias, x_wanted in itertools.product([False, True], repeat=3):
        sparse, dense = pair()
        sparse.relu = relu
        sparse.values.requires_grad_(values)
        sparse.bias.requires_grad_(bias)
        x = noise(17, 20).requires_grad_(x_wanted)
        y = sparse(x)
        assert y.requires_grad == (values or bias or x_wanted)
        if y.requires_grad:
            y.sum().backward()
        assert [t.grad is not None for t in (sparse.values, sparse.bias, x)] == [values, bias, x_wanted]
        check_step(sparse, dense, x, y, torch.ones_like(y))


@pytest.mark.parametrize(("batch_inner", "expected"), [(None, None), (True, (1, 17)), (False, (33, 1))])
def test_linear_lays_out_its_output_as_asked(
    batch_inner: bool | None, expected: tuple[int, int] | None
) -> None:
    sparse, dense = pair()
    sparse.batch_inner = batch_inner
    for x in (noise(17, 20), noise(20, 17).t()):
        x.requires_grad_()
        y = sparse(x)
        assert y.stride() == (expected or ((33, 1) if x.is_contiguous() else (1, 17)))
        (x.grad,) = torch.autograd.grad(y, x, noise(17, 33))
        check_step(sparse, dense, x, y, noise(17, 33))
        assert x.grad.stride() == x.stride()


def test_linear_keeps_a_batch_inner_layout_with_leading_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse, dense = pair()
    given = []
    linear = ops.linear
    monkeypatch.setattr(ops, "linear", lambda x, *rest: given.append(x.data_ptr()) or linear(x, *rest))
    x = noise(20, 3, 7).permute(1, 2, 0)
    y = sparse(x)
    assert given == [x.data_ptr()]  # a view, no copy
    assert y.shape == (3, 7, 33)
    assert y.stride() == (7, 1, 21)
    check_step(sparse, dense, x, y)


def test_linear_keeps_a_batch_inner_layout_without_a_copy() -> None:
    sparse, _ = pair()
    seen = []
    x = noise(20, 17).t().requires_grad_()
    y = sparse(x)
    assert y.shape == (17, 33)
    assert y.stride() == (1, 17)
    y.register_hook(lambda g: seen.append(g.stride()))
    y.backward(noise(33, 17).t())
    assert seen == [(1, 17)]
    assert x.grad is not None
    assert x.grad.stride() == (1, 17)
    assert sparse(noise(17, 20)).stride() == (33, 1)
    assert nn.Sequential(sparse, nn.ReLU(), nn.Linear(33, 2))(x).shape == (17, 2)


@pytest.mark.parametrize("block_rows", [1, 4])
def test_linear_weight_is_differentiable(block_rows: int) -> None:
    sparse, dense = pair(32, block_rows=block_rows)
    assert sparse.block == (block_rows, 1)
    assert torch.equal(sparse.weight, dense.weight)
    assert torch.equal(sparse.mask, dense.weight != 0)
    sparse.weight.square().sum().backward()
    assert sparse.values.grad is not None
    assert torch.equal(sparse.values.grad, 2 * sparse.values)


def test_linear_attributes_are_those_of_nn_linear() -> None:
    sparse, dense = pair(rows=4, cols=5, density=2)
    assert (sparse.in_features, sparse.out_features) == (dense.in_features, dense.out_features)
    assert sparse.weight.shape == dense.weight.shape
    assert [name for name, _ in sparse.named_parameters()] == ["values", "bias"]
    sparse = SparseLinear.from_dense(dense, sparse.mask)
    assert (
        repr(sparse)
        == "SparseLinear(in_features=5, out_features=4, bias=True, nnz=20, sparsity=0.0000, block=(4, 1))"
    )
    empty = SparseLinear(5, 4, bias=False, block=(2, 1))
    assert repr(empty).endswith("bias=False, nnz=0, sparsity=1.0000, block=(2, 1))")
    empty.relu = True
    assert repr(empty).endswith("block=(2, 1), relu=True)")


def test_linear_from_dense_copies_and_to_dense_returns() -> None:
    dense = nn.Linear(20, 33)
    before = copy.deepcopy(dense.state_dict())
    mask = noise(33, 20) > 0
    sparse = SparseLinear.from_dense(dense, mask, block=(1, 1))
    with torch.no_grad():
        sparse.values.add_(1)
        sparse.bias.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    back = sparse.to_dense()
    assert type(back) is nn.Linear
    assert torch.equal(back.weight, (dense.weight + 1) * mask)
    assert torch.equal(back.bias, dense.bias + 1)


@pytest.mark.parametrize(
    ("rows", "made_of", "found"),
    [
        (33, 1, 1),
        (32, 1, 1),
        (32, 2, 2),
        (32, 4, 4),
        (24, 4, 4),
        (48, 8, 8),
        (48, 16, 16),
        (32, 32, 16),
        (8, 8, 8),
    ],
)
def test_linear_from_dense_finds_the_largest_block(rows: int, made_of: int, found: int) -> None:
    mask = (noise(rows // made_of, 20) > 0.5).repeat_interleave(made_of, 0)
    dense = nn.Linear(20, rows)
    sparse = SparseLinear.from_dense(dense, mask)
    assert sparse.block == (found, 1)
    assert sparse.values.shape == (int(mask.sum()) // found, found)
    assert sparse.crow.shape == (rows // found + 1,)
    for block_rows in (v for v in BLOCK_ROWS if v <= found):
        sparse = SparseLinear.from_dense(dense, mask, block=(block_rows, 1))
        assert sparse.block == (block_rows, 1)
        assert torch.equal(sparse.mask, mask)
        assert torch.equal(sparse.weight, dense.weight * mask)


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta:UserWarning")
def test_linear_stores_torchs_own_bsr_layout() -> None:
    sparse, dense = pair(32, block_rows=4)
    theirs = dense.weight.detach().to_sparse_bsr((4, 1))
    assert torch.equal(theirs.crow_indices(), sparse.crow)
    assert torch.equal(theirs.col_indices(), sparse.col)
    assert torch.equal(theirs.values()[:, :, 0], sparse.values)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_linear_from_dense_keeps_flags_and_dtype(dtype: torch.dtype, training: bool) -> None:
    dense = nn.Linear(20, 33, dtype=dtype).train(training)
    dense.weight.requires_grad_(False)
    sparse = SparseLinear.from_dense(dense, noise(33, 20) > 0)
    for layer in (sparse, sparse.to_dense()):
        assert layer.training == training
        assert layer.weight.dtype == layer.bias.dtype == dtype
        assert layer.bias.requires_grad
    assert not sparse.values.requires_grad
    assert not sparse.to_dense().weight.requires_grad
    dense.weight.requires_grad_(True)
    dense.bias.requires_grad_(False)
    sparse = SparseLinear.from_dense(dense, noise(33, 20) > 0)
    assert sparse.values.requires_grad
    assert not sparse.bias.requires_grad
    assert not sparse.to_dense().bias.requires_grad


# ---- training ----

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 0.01),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, 0.01, momentum=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_linear_trains_with_nnz_sized_optimizer_state(name: str) -> None:
    torch.manual_seed(0)
    layers = [pair(24, 20)[0], pair(3, 24, seed=1)[0]]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    masks = [layer.mask for layer in layers]
    optimizer = OPTIMIZERS[name](model.parameters())
    x, y = noise(64, 20), noise(64, 3, seed=1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for layer, mask in zip(layers, masks, strict=True):
        assert torch.equal(layer.mask, mask)
        assert layer.values.grad is not None
        assert layer.values.grad.shape == layer.values.shape == (int(mask.sum()), 1)
        state = optimizer.state[layer.values]
        sizes = {
            tensor.numel() for tensor in state.values() if isinstance(tensor, Tensor) and tensor.dim() > 0
        }
        assert sizes == {len(layer.values)}


def test_linear_trains_as_a_masked_dense_layer_does() -> None:
    sparse, dense = pair()
    mask = sparse.mask
    models = (sparse.double(), dense.double())
    optimizers = [torch.optim.SGD(model.parameters(), 0.05) for model in models]
    for step in range(5):
        x, g = noise(17, 20, seed=step).double(), noise(17, 33, seed=step + 1).double()
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(x).backward(g)
            optimizer.step()
        with torch.no_grad():
            dense.weight.mul_(mask)
    assert_half_the_digits(sparse.weight, dense.weight)
    assert_half_the_digits(sparse.bias, dense.bias)


@pytest.mark.parametrize(
    ("bias", "dynamic", "batch_inner", "block_rows"),
    [(True, False, None, 1), (False, True, None, 1), (True, False, True, 4), (True, True, False, 4)],
)
def test_linear_compiles(bias: bool, dynamic: bool, batch_inner: bool | None, block_rows: int) -> None:
    torch._dynamo.reset()
    sparse, _ = pair(32, bias=bias, block_rows=block_rows)
    sparse.batch_inner = batch_inner
    sparse.relu = block_rows == 4
    compiled = torch.compile(sparse, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for x in (noise(17, 20), noise(20, 18).t(), noise(3, 5, 20)):
        results = []
        for layer in (sparse, compiled):
            sparse.zero_grad()
            given = x.clone().requires_grad_()
            y = layer(given)
            y.square().sum().backward()
            results.append([y, given.grad, sparse.values.grad])
        assert results[0][0].stride() == results[1][0].stride()
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


def test_linear_exports() -> None:
    sparse, _ = pair()
    batch = torch.export.Dim("batch", min=2, max=1000)
    program = torch.export.export(sparse, (noise(17, 20),), dynamic_shapes=({0: batch},))
    assert "sparseprune.spmm" in str(program.graph)
    for n in (17, 64):
        x = noise(n, 20)
        assert torch.equal(program.module()(x), sparse(x))


def test_linear_is_exported_by_the_package() -> None:
    assert sp.SparseLinear is SparseLinear is sp.nn.SparseLinear


def test_a_model_that_reads_the_weight_compiles_in_one_graph() -> None:
    class Reading(nn.Module):
        # As T5 of transformers does before its last layer.
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x.to(self.layer.weight.dtype))
            return y

    model, x = Reading(pair()[0]), noise(17, 20)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), model(x))
