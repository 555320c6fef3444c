import copy
import io
import itertools
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bounds import assert_half_the_digits
from layers import check_step
from torch import Tensor, nn

import sparseprune as sp
from sparseprune import SparseLinear, ops
from sparseprune.format.bsr import BLOCK_ROWS


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


def in_blocks(matrix: Tensor, layer: SparseLinear) -> Tensor:
    """What a dense matrix holds at the layer's blocks, (nnzb, V)."""
    rows, cols = layer.mask.shape
    shape = (rows // layer.block[0], layer.block[0], cols)
    return matrix.reshape(shape).transpose(1, 2)[layer.mask.reshape(shape)[:, 0]]


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


# ---- from dense and back ----


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


# ---- state_dict, copies, files ----


def test_linear_state_dict_round_trip() -> None:
    sparse, _ = pair(seed=0)
    state = sparse.state_dict()
    assert list(state) == ["values", "bias", "crow", "col"]
    for target in (pair(seed=1)[0], pair(density=-1)[0], SparseLinear(20, 33), pair(seed=0)[0]):
        values = target.values
        target.values.grad = torch.zeros_like(values)
        assert target.load_state_dict(state) == ([], [])
        assert target.values is values  # an optimizer holds the parameter
        check_same_layer(target, sparse)
        target.values.data.zero_()
        target.crow.zero_()
    assert all(torch.equal(state[name], tensor) for name, tensor in sparse.state_dict().items())
    assert sparse.values.any()


@pytest.mark.parametrize(("of", "into"), [(1, 4), (4, 1), (2, 16)])
def test_linear_loads_a_state_dict_with_other_blocks(of: int, into: int) -> None:
    sparse, _ = pair(32, block_rows=of)
    target, _ = pair(32, block_rows=into, seed=1)
    target.values.grad = torch.zeros_like(target.values)
    values = target.values
    target.load_state_dict(sparse.state_dict())
    assert target.values is values
    assert target.values.grad is None
    check_same_layer(target, sparse)


def test_linear_loads_without_a_change_of_pattern_keep_gradients() -> None:
    sparse, _ = pair()
    sparse.values.grad = torch.ones_like(sparse.values)
    plan = sparse.plan
    sparse.load_state_dict(sparse.state_dict())
    assert sparse.plan is plan
    assert sparse.values.grad is not None


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("of", [1, 4])
def test_linear_from_the_meta_device(of: int, assign: bool) -> None:
    sparse, dense = pair(32, block_rows=of)
    with torch.device("meta"):
        layers = [SparseLinear(20, 32), SparseLinear(20, 32, block=(8, 1))]
    for layer in [*layers, copy.deepcopy(sparse).to("meta")]:
        assert layer.values.is_meta
        assert layer(torch.empty(3, 20, device="meta")).shape == (3, 32)
        if not assign:
            layer = copy.deepcopy(layer).to_empty(device="cpu")
            assert layer.values.numel() == 0
        layer.load_state_dict(copy.deepcopy(sparse.state_dict()), assign=assign)
        assert not any(t.is_meta for t in (*layer.parameters(), *layer.buffers()))
        check_same_layer(layer, sparse)
        check_step(layer, dense, noise(3, 20), layer(noise(3, 20)))


def test_linear_never_takes_over_half_precision() -> None:
    sparse, _ = pair()
    before = copy.deepcopy(sparse)
    state = {**sparse.state_dict(), "values": sparse.values.detach().half()}
    with pytest.raises(RuntimeError, match=r"SparseLinear: expected float32 .*, got torch\.float16"):
        sparse.load_state_dict(state, assign=True)
    check_same_layer(sparse, before)
    sparse.load_state_dict(state)  # copied into float32
    assert sparse.values.dtype == torch.float32


def test_linear_state_dict_round_trip_within_a_model_and_with_assign() -> None:
    sparse, _ = pair(seed=0)
    model = nn.Sequential(nn.Linear(20, 20), sparse)
    for assign in (False, True):
        other = nn.Sequential(nn.Linear(20, 20), SparseLinear(20, 33))
        other.load_state_dict(copy.deepcopy(model.state_dict()), assign=assign)
        check_same_layer(other[1], sparse)


def without_first(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "values": state["values"][1:]}


def descending(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "col": state["col"].flip(0)}


def of_more_rows(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "crow": torch.cat([state["crow"], state["crow"][-1:]])}


def beyond(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "col": state["col"] + 20}


def but(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (
            without_first,
            "values.shape == [{nnz} (blocks of the checkpoint's pattern), one of 1, 2, 4, 8, 16 (rows of a "
            "block)], got [{less}, 1]",
        ),
        (
            lambda state: {**state, "values": state["values"].expand(-1, 3)},
            "(rows of a block)], got [{nnz}, 3]",
        ),
        (lambda state: {**state, "values": state["values"][:, 0]}, "(rows of a block)], got [{nnz}]"),
        (
            lambda state: {**state, "values": state["values"].expand(-1, 2)},
            "expected out_features divisible by 2 (rows of a block), got 33",
        ),
        (descending, "plan: expected columns of a row to ascend within 0 .. 19"),
        (of_more_rows, "expected crow.shape == [34] (out_features / 1 + 1), got [35]"),
        (beyond, "plan: expected columns of a row to ascend within 0 .. 19"),
        (but("values"), "expected values, crow and col together, got crow, col"),
        (but("crow"), "expected values, crow and col together, got values, col"),
        (but("crow", "col"), "expected values, crow and col together, got values"),
        (but("bias"), 'Missing key(s) in state_dict: "bias"'),
        (lambda state: {**state, "weight": torch.zeros(33, 20)}, 'Unexpected key(s) in state_dict: "weight"'),
        (lambda state: {"weight": torch.zeros(33, 20), "bias": state["bias"]}, '"values", "crow", "col"'),
    ],
)
def test_linear_refuses_a_corrupt_state_dict(
    corrupt: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, needs_extension: None
) -> None:
    state = corrupt(pair(seed=0)[0].state_dict())
    target, _ = pair(seed=1)
    before = copy.deepcopy(target)
    nnz = len(pair(seed=0)[0].values)
    expected = message.format(nnz=nnz, less=nnz - 1) if "{nnz}" in message else message
    with pytest.raises(RuntimeError, match=r"Error.s. in loading state_dict for SparseLinear") as error:
        target.load_state_dict(state)
    assert expected in str(error.value)
    for name in ("values", "crow", "col", "plan", "plan_t"):
        unchanged = torch.equal(getattr(target, name), getattr(before, name))
        assert unchanged or message.startswith(('Missing key(s) in state_dict: "bias"', "Unexpected"))
    target(noise(3, 20))  # still whole


@pytest.mark.parametrize("part", [("crow",), ("col",), ("values",), ("crow", "col")])
def test_linear_never_loads_half_a_pattern(part: tuple[str, ...]) -> None:
    # As many nonzeros elsewhere: copied without a new plan, they would give another layer's answer.
    target, _ = pair(seed=0)
    state = target.state_dict()
    shifted = {**state, "crow": state["crow"].flip(0).neg() + state["crow"][-1], "col": state["col"]}
    before = copy.deepcopy(target)
    with pytest.raises(RuntimeError, match="expected values, crow and col together"):
        target.load_state_dict({name: shifted[name] for name in part}, strict=False)
    check_same_layer(target, before)
    assert target.load_state_dict({}, strict=False).missing_keys == ["values", "bias", "crow", "col"]


COPIES: dict[str, Callable[[SparseLinear], SparseLinear]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch_save": lambda layer: saved_and_loaded(layer),
}


def saved_and_loaded(layer: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("block_rows", [1, 4])
def test_linear_copies(how: str, block_rows: int) -> None:
    sparse, _ = pair(32, block_rows=block_rows)
    sparse.eval()
    sparse.batch_inner = sparse.relu = True
    sparse.values.requires_grad_(False)
    copied = COPIES[how](sparse)
    assert not copied.training
    assert not copied.values.requires_grad
    for layer in (sparse, copied):
        layer.values.requires_grad_()
    check_same_layer(copied, sparse)
    assert list(dict(copied.named_buffers())) == list(dict(sparse.named_buffers()))
    shared = copied.values is sparse.values
    assert shared == (how == "copy")


def test_linear_plans_are_not_saved(needs_extension: None) -> None:
    sparse, _ = pair(200, 300, 0.2)
    state_bytes = sum(t.nbytes for t in sparse.state_dict().values())
    assert sparse.plan.nbytes > 4000
    assert len(pickle.dumps(sparse)) < state_bytes + 4000
    file = io.BytesIO()
    torch.save(sparse.state_dict(), file)
    assert file.tell() < state_bytes + 4000


# ---- dtypes and devices ----


def test_linear_to_cpu_and_double() -> None:
    sparse, dense = pair()
    plan = sparse.plan
    assert sparse.to("cpu") is sparse
    assert sparse.plan is plan
    values = sparse.values
    sparse.double()
    assert sparse.values is values
    assert sparse.values.dtype == sparse.bias.dtype == torch.float64
    assert sparse.crow.dtype == sparse.plan.dtype == torch.int32
    x = noise(5, 20).double()
    check_step(sparse, dense, x, sparse(x))
    assert sparse.float()(x.float()).dtype == torch.float32


@pytest.mark.parametrize("block_rows", [1, 4])
@pytest.mark.parametrize("batch", [1, 7, 33])
def test_linear_in_bfloat16(batch: int, block_rows: int) -> None:
    sparse, dense = pair(32, block_rows=block_rows)
    plan = sparse.plan
    assert sparse.to(torch.bfloat16) is sparse
    dense.bfloat16()
    assert sparse.plan is plan
    x = noise(batch, 20).bfloat16().requires_grad_()
    g = noise(batch, 32, seed=1).bfloat16()
    y = sparse(x)
    y.backward(g)
    assert {t.dtype for t in (y, x.grad, sparse.values.grad, sparse.bias.grad)} == {torch.bfloat16}
    check_step(sparse, dense, x, y, g)
    check_same_layer(saved_and_loaded(sparse), sparse)


@pytest.mark.parametrize(
    "convert",
    [
        lambda layer: layer.half(),
        lambda layer: layer.to(torch.float16),
        lambda layer: layer.to(dtype=torch.float16, device="cpu"),
        lambda layer: nn.Sequential(layer).half(),
    ],
)
def test_linear_refuses_half_precision(convert: Callable[[nn.Module], nn.Module]) -> None:
    sparse, _ = pair()
    before = copy.deepcopy(sparse)
    message = (
        r"SparseLinear: expected float32 or bfloat16 .*, got torch\.float16, which has no sparse kernels; "
    )
    with pytest.raises(TypeError, match=message):
        convert(sparse)
    check_same_layer(sparse, before)
    assert sparse.values.dtype == sparse.bias.dtype == torch.float32


def test_linear_share_memory() -> None:
    sparse, dense = pair()
    sparse.share_memory()
    assert sparse.values.is_shared()
    x = noise(5, 20)
    check_step(sparse, dense, x, sparse(x))


def test_linear_under_autocast() -> None:
    model = nn.Sequential(nn.Linear(20, 20), pair()[0], nn.ReLU(), nn.Linear(33, 3))
    x = noise(17, 20)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model[0](x)
        assert hidden.dtype == torch.bfloat16
        assert model[1](hidden).dtype == torch.float32  # the weight's: autocast brings the input to that
        y = model(x)
    assert y.dtype == torch.bfloat16
    assert_half_the_digits(y, expected.bfloat16())
    y.float().sum().backward()
    assert model[1].values.grad.dtype == torch.float32
    assert model[0].weight.grad.any()


@pytest.mark.parametrize("compiled", [False, True])
def test_linear_in_bfloat16_under_autocast(compiled: bool) -> None:
    torch._dynamo.reset()
    sparse = pair(32, block_rows=4)[0].bfloat16()
    layer = torch.compile(sparse, backend="aot_eager", fullgraph=True) if compiled else sparse
    x = noise(17, 20).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert torch.equal(y, sparse(x.bfloat16()))
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert sparse.values.grad is not None
    assert sparse.values.grad.dtype == torch.bfloat16


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


# ---- compiled and exported ----


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


# ---- errors ----


def test_linear_refuses_wrong_inputs() -> None:
    sparse, _ = pair()
    message = "SparseLinear: expected x.shape[-1] == 20 (in_features), got x.shape "
    for x in (noise(3, 21), noise(19), torch.tensor(1.0), noise(20, 3)):
        with pytest.raises(ValueError, match=re.escape(message + str(list(x.shape)))):
            sparse(x)


def test_linear_refuses_wrong_input_dtypes(needs_extension: None) -> None:
    sparse, _ = pair()
    with pytest.raises(ValueError, match="spmm: expected values to be float64, got float32"):
        sparse(noise(3, 20).double())
    with pytest.raises(ValueError, match="spmm: expected values to be bfloat16, got float32"):
        sparse(noise(3, 20).bfloat16())
    with pytest.raises(ValueError, match=r"spmm: expected x to be float32.*, got float16"):
        sparse(noise(3, 20).half())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda d, m: (d, m.t()), ValueError, "expected a mask of shape [4, 5] (the weight's), got [5, 4]"),
        (
            lambda d, m: (d, m.float()),
            TypeError,
            "expected the mask to be a bool tensor (True = keep), got dtype",
        ),
        (
            lambda d, m: (d, m.tolist()),
            TypeError,
            "expected the mask to be a bool tensor (True = keep), got list",
        ),
        (lambda d, m: (d.half(), m), TypeError, "got torch.float16, which has no sparse kernels; use"),
    ],
)
def test_linear_from_dense_refuses(make: Any, error: type[Exception], message: str) -> None:
    dense, mask = make(nn.Linear(5, 4), torch.ones(4, 5, dtype=torch.bool))
    with pytest.raises(error, match=re.escape(message)):
        SparseLinear.from_dense(dense, mask)


@pytest.mark.parametrize(
    ("rows", "block", "message"),
    [
        (8, (3, 1), "block == (V, 1), rows x columns, with V in 1, 2, 4, 8, 16, got (3, 1)"),
        (8, (4, 2), "with V in 1, 2, 4, 8, 16, got (4, 2)"),
        (8, 4, "with V in 1, 2, 4, 8, 16, got 4"),
        (6, (4, 1), "rows divisible by 4 (rows of a block), got 6"),
        (8, (4, 1), "a mask made of whole 4 x 1 blocks, got one that cuts blocks; prune with that"),
    ],
)
def test_linear_from_dense_refuses_blocks(rows: int, block: Any, message: str) -> None:
    mask = torch.ones(rows, 5, dtype=torch.bool)
    mask[3, 2] = False
    with pytest.raises(ValueError, match=f"SparseLinear.from_dense: expected .*{re.escape(message)}"):
        SparseLinear.from_dense(nn.Linear(5, rows), mask, block=block)


def test_linear_refuses_half_a_pattern_and_other_shapes() -> None:
    crow = torch.zeros(5, dtype=torch.int32)
    with pytest.raises(ValueError, match="expected both crow and col, or neither, got one of them"):
        SparseLinear(5, 4, crow=crow)
    with pytest.raises(
        ValueError, match=re.escape("expected crow.shape == [4] (out_features / 1 + 1), got [5]")
    ):
        SparseLinear(5, 3, crow=crow, col=crow[:0])
    with pytest.raises(
        ValueError, match=re.escape("expected crow.shape == [3] (out_features / 2 + 1), got [5]")
    ):
        SparseLinear(5, 4, crow=crow, col=crow[:0], block=(2, 1))
    with pytest.raises(ValueError, match=r"out_features divisible by 8 \(rows of a block\), got 12"):
        SparseLinear(5, 12, block=(8, 1))
    with pytest.raises(ValueError, match=re.escape("SparseLinear: expected block == (V, 1)")):
        SparseLinear(5, 12, block=(12, 1))
    with pytest.raises(TypeError, match=r"got torch\.float16, which has no sparse kernels"):
        SparseLinear(5, 4, dtype=torch.float16)


def test_linear_is_exported_by_the_package() -> None:
    assert sp.SparseLinear is SparseLinear is sp.nn.SparseLinear
