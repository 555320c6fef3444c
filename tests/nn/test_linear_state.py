"""What becomes of a SparseLinear in checkpoints, copies, other dtypes and on other devices."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from bounds import assert_half_the_digits
from layers import check_step
from linear_pairs import check_same_layer, noise, pair, saved_and_loaded
from torch import Tensor, nn

from sparseprune import SparseLinear


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
    plan = sparse.pattern.plan
    sparse.load_state_dict(sparse.state_dict())
    assert sparse.pattern.plan is plan
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


@pytest.mark.parametrize("assign", [False, True])
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
        (but("values"), "expected values.shape == [{nnz} (blocks of the checkpoint's pattern), one of"),
        (but("crow"), "expected crow and col together, or those of the layer, got one of them"),
        (
            lambda state: {**state, "bias": state["bias"][1:]},
            "expected bias.shape == [33] (out_features), got [32]",
        ),
        (lambda state: {**state, "bias": 1.0}, "expected bias to be a tensor, got float"),
        (lambda state: {**state, "col": state["col"].tolist()}, "expected col to be a tensor, got list"),
        (lambda state: {**state, "crow": state["crow"].long() + 2**31}, "expected crow to fit into int32"),
        (lambda state: {**state, "col": state["col"].float()}, "expected col to be integers, got torch"),
    ],
)
def test_linear_refuses_a_corrupt_state_dict(
    corrupt: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    assign: bool,
    needs_extension: None,
) -> None:
    state = corrupt(pair(seed=0)[0].state_dict())
    target, _ = pair(seed=1)
    before = copy.deepcopy(target)
    nnz = len(pair(seed=0)[0].values)
    expected = message.format(nnz=nnz, less=nnz - 1) if "{nnz}" in message else message
    with pytest.raises(RuntimeError, match=r"Error.s. in loading state_dict for SparseLinear") as error:
        target.load_state_dict(state, assign=assign)
    assert expected in str(error.value)
    check_same_layer(target, before)


@pytest.mark.parametrize("part", [("crow",), ("col",), ("values", "crow"), ("values", "col")])
def test_linear_never_loads_half_a_pattern(part: tuple[str, ...]) -> None:
    # As many nonzeros elsewhere.
    target, _ = pair(seed=0)
    state = target.state_dict()
    shifted = {**state, "crow": state["crow"].flip(0).neg() + state["crow"][-1], "col": 19 - state["col"]}
    before = copy.deepcopy(target)
    with pytest.raises(RuntimeError, match="expected crow and col together"):
        target.load_state_dict({name: shifted[name] for name in part}, strict=False)
    check_same_layer(target, before)


def test_linear_loads_what_there_is_unless_strict() -> None:
    target, _ = pair(seed=0)
    other, before = copy.deepcopy(target), copy.deepcopy(target)
    with torch.no_grad():
        other.values.neg_()
    state = other.state_dict()
    names = ["values", "bias", "crow", "col"]
    assert target.load_state_dict({}, strict=False).missing_keys == names
    assert target.load_state_dict({"values": state["values"]}, strict=False).missing_keys == names[1:]
    check_same_layer(target, other)
    found = target.load_state_dict({**before.state_dict(), "mask": torch.ones(1)}, strict=False)
    assert found.unexpected_keys == ["mask"]
    check_same_layer(target, before)


COPIES: dict[str, Callable[[SparseLinear], SparseLinear]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch_save": lambda layer: saved_and_loaded(layer),
}


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
    assert sparse.pattern.plan.nbytes > 4000
    assert len(pickle.dumps(sparse)) < state_bytes + 4000
    file = io.BytesIO()
    torch.save(sparse.state_dict(), file)
    assert file.tell() < state_bytes + 4000


def test_linear_to_cpu_and_double() -> None:
    sparse, dense = pair()
    plan = sparse.pattern.plan
    assert sparse.to("cpu") is sparse
    assert sparse.pattern.plan is plan
    values = sparse.values
    sparse.double()
    assert sparse.values is values
    assert sparse.values.dtype == sparse.bias.dtype == torch.float64
    assert sparse.crow.dtype == sparse.pattern.plan.dtype == torch.int32
    x = noise(5, 20).double()
    check_step(sparse, dense, x, sparse(x))
    assert sparse.float()(x.float()).dtype == torch.float32


@pytest.mark.parametrize("block_rows", [1, 4])
@pytest.mark.parametrize("batch", [1, 7, 33])
def test_linear_in_bfloat16(batch: int, block_rows: int) -> None:
    sparse, dense = pair(32, block_rows=block_rows)
    plan = sparse.pattern.plan
    assert sparse.to(torch.bfloat16) is sparse
    dense.bfloat16()
    assert sparse.pattern.plan is plan
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
        assert model[1](hidden).dtype == torch.bfloat16
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
