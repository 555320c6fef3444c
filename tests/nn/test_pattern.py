"""What is written to crow and col of a layer, copied, averaged, replaced or moved: nothing is used unseen."""

import copy
import gc
import io
import logging
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from bounds import assert_half_the_digits
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparseprune import SparseConv2d, SparseLinear
from sparseprune.nn.sparse import SparseLayer

KINDS = ["linear", "blocks", "convolution"]


def layer(kind: str, seed: int = 0, kept: int = 60) -> Any:
    """A layer with so many blocks at random places."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols, block_rows = {"linear": (32, 40, 1), "blocks": (32, 40, 4), "convolution": (16, 36, 1)}[kind]
    mask = torch.zeros(rows // block_rows * cols, dtype=torch.bool)
    mask[torch.randperm(len(mask), generator=generator)[:kept]] = True
    mask = mask.view(-1, cols).repeat_interleave(block_rows, 0)
    made: Any = (
        SparseConv2d.from_dense(nn.Conv2d(4, 16, 3, padding=1), mask.view(16, 4, 3, 3), block=(block_rows, 1))
        if kind == "convolution"
        else SparseLinear.from_dense(nn.Linear(cols, rows), mask, block=(block_rows, 1))
    )
    with torch.no_grad():
        made.values.copy_(torch.randn(made.values.shape, generator=generator))
        made.bias.copy_(torch.randn(made.bias.shape, generator=generator))
    return made.double()


def sample(kind: str) -> Tensor:
    shape = (3, 4, 7, 6) if kind == "convolution" else (5, 40)
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def assert_computes_like(actual: Any, expected: Any, kind: str) -> None:
    """The same output and gradients, and those of the dense layer."""
    results = []
    for module in (actual, expected, expected.to_dense()):
        x = sample(kind).requires_grad_()
        y = module(x)
        weight = module.values if isinstance(module, SparseLayer) else module.weight
        results.append([y, *torch.autograd.grad(y, (x, weight, module.bias), y.detach() + 1)])
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    for a, b in ((0, 0), (1, 1), (3, 3)):  # not the weight's, which is dense there
        assert_half_the_digits(results[0][a], results[2][b])


def copy_over(target: nn.Module, source: nn.Module) -> None:
    state = source.state_dict()
    for name, tensor in target.state_dict().items():
        tensor.copy_(state[name])


def replace_data(target: nn.Module, source: nn.Module) -> None:
    for name, tensor in [*target.named_parameters(), *target.named_buffers()]:
        tensor.data = source.state_dict()[name].clone()


def write_behind_torch(target: nn.Module, source: nn.Module) -> None:
    """Without a trace in the tensors: it is noticed when the layer is saved or copied, at the latest."""
    for name, tensor in target.named_buffers():
        tensor.data.copy_(source.state_dict()[name])
    target.load_state_dict(
        {"values": source.state_dict()["values"], "bias": source.state_dict()["bias"]}, False
    )
    target.state_dict()


@pytest.mark.parametrize("write", [copy_over, replace_data, write_behind_torch])
@pytest.mark.parametrize("kind", KINDS)
def test_another_pattern_that_is_written_is_followed(kind: str, write: Callable[..., None]) -> None:
    target, source = layer(kind), layer(kind, seed=1)
    target(sample(kind))
    write(target, source)
    assert_computes_like(target, source, kind)
    write(target, layer(kind))
    assert_computes_like(target, layer(kind), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_functional_call_with_another_pattern(kind: str) -> None:
    target, source = layer(kind), layer(kind, seed=1)
    x = sample(kind)
    own = target(x)
    assert torch.equal(torch.func.functional_call(target, source.state_dict(), (x,)), source(x))
    assert torch.equal(target(x), own)
    few = layer(kind, kept=50).state_dict()
    assert torch.equal(torch.func.functional_call(target, few, (x,)), layer(kind, kept=50)(x))
    assert_computes_like(target, layer(kind), kind)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.col.zero_(), "expected columns of a row to ascend"),
        (lambda m: m.col.fill_(10**6), "expected columns of a row to ascend within"),
        (lambda m: m.crow.neg_(), "crow"),
        (lambda m: setattr(m, "crow", m.crow[:-1]), r"expected crow.shape == "),
        (lambda m: setattr(m, "col", m.col[:-1]), "expected crow to run from 0 to"),
        (lambda m: setattr(m, "col", m.col.long()), "col"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_pattern_is_an_error(
    kind: str, spoil: Callable[[Any], object], message: str, needs_extension: None
) -> None:
    module, other = layer(kind), layer(kind, seed=1)
    spoil(module)
    for use in (
        lambda: module(sample(kind)),
        lambda: module.mask,
        lambda: module.weight,
        module.state_dict,
        lambda: copy.deepcopy(module),
        lambda: pickle.dumps(module),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    # The way out: load_state_dict, of anything.
    for source in (other, layer(kind)):
        module.load_state_dict(source.state_dict())
        assert_computes_like(module, source, kind)
        assert torch.equal(module.state_dict()["col"], source.col)
        spoil(module)
    module.load_state_dict(source.state_dict())
    assert_computes_like(module, source, kind)


def exponential_average(tensors: Callable[[nn.Module], Any], decay: float) -> Callable[..., None]:
    """As timm's ModelEmaV2: ``copy_`` of an average in float32, whatever the tensor's dtype."""

    def update(average: nn.Module, model: nn.Module) -> None:
        for old, new in zip(tensors(average), tensors(model), strict=True):
            old.copy_(decay * old + (1 - decay) * new)

    return update


AVERAGES = {
    "state_dict": lambda module: module.state_dict().values(),
    "parameters and buffers": lambda module: [*module.parameters(), *module.buffers()],
}


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999])
@pytest.mark.parametrize("over", AVERAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_averages_keep_the_pattern(kind: str, over: str, decay: float) -> None:
    model = layer(kind)
    average, only_values = copy.deepcopy(model), copy.deepcopy(model)
    update = exponential_average(AVERAGES[over], decay)
    with torch.no_grad():
        for _ in range(30):
            model.values.mul_(1.1).add_(0.01)
            update(average, model)
            exponential_average(lambda module: [module.values, module.bias], decay)(only_values, model)
    assert_computes_like(average, only_values, kind)
    assert torch.equal(average.crow, model.crow)
    assert torch.equal(average.col, model.col)
    assert_computes_like(copy.deepcopy(average), only_values, kind)


def test_averages_of_large_indices_keep_the_pattern() -> None:
    # Beyond 2^17, float32's errors are larger than the steps of the average.
    dense = nn.utils.skip_init(nn.Linear, 200_000, 4)
    model = SparseLinear.from_dense(dense, torch.rand(4, 200_000) < 0.01)
    average = copy.deepcopy(model)
    with torch.no_grad():
        for _ in range(200):
            exponential_average(lambda module: list(module.buffers()), 0.9999)(average, model)
    assert not torch.equal(average.col, model.col)
    assert torch.equal(average.mask, model.mask)


@torch.no_grad()
def test_what_averaging_does_to_a_pattern_is_told(caplog: pytest.LogCaptureFixture) -> None:
    module = layer("linear")
    with caplog.at_level(logging.INFO, "sparseprune"):
        for _ in range(3):
            exponential_average(AVERAGES["parameters and buffers"], 0.9999)(module, layer("linear"))
        module(sample("linear"))
    assert caplog.messages == ["SparseLinear: crow and col were averaged like weights; its pattern stays"]


def test_a_pattern_one_column_beside_is_no_average() -> None:
    # All of it moved at once, or one number: neither is what averaging does, which moves equal numbers alike.
    right = SparseLinear.from_dense(nn.Linear(9, 4), torch.eye(4, 9, dtype=torch.bool))
    left = torch.zeros(4, 9, dtype=torch.bool)
    for col in (right.col + 1, right.col + torch.tensor([0, 0, 0, 1], dtype=torch.int32)):
        moved = copy.deepcopy(right)
        moved.col.copy_(col)
        expected = left.clone()
        expected[torch.arange(4), col.long()] = True
        assert torch.equal(moved.mask, expected)


def test_a_pattern_of_another_layer_is_no_average() -> None:
    # In a layer of two columns all patterns are as near as averages are.
    first = SparseLinear.from_dense(nn.Linear(2, 2), torch.tensor([[False, True], [False, True]]))
    second = SparseLinear.from_dense(nn.Linear(2, 2), torch.tensor([[True, False], [True, False]]))
    first.col.copy_(second.col)
    assert torch.equal(first.mask, second.mask)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9999)])
@pytest.mark.parametrize("kind", KINDS)
def test_averaged_model_over_buffers(kind: str, average: Any) -> None:
    model = layer(kind)
    averaged = AveragedModel(model, use_buffers=True, multi_avg_fn=average)
    for _ in range(5):
        averaged.update_parameters(model)
    assert torch.equal(averaged.module.mask, model.mask)
    assert_half_the_digits(averaged(sample(kind)), model(sample(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_layers_refuse_what_was_written_or_follow_it(kind: str, needs_extension: None) -> None:
    torch._dynamo.reset()
    target, source = layer(kind), layer(kind, seed=1)
    compiled = torch.compile(target, backend="aot_eager", fullgraph=True)
    x = sample(kind)
    compiled(x).sum().backward()
    target.zero_grad()
    copy_over(target, source)
    with pytest.raises(ValueError, match=r"expected the plan .* outside of compiled graphs"):
        compiled(x).sum().backward()
    target(x)
    assert torch.equal(compiled(x), source(x))
    compiled(x).sum().backward()
    assert target.values.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_exported_programs_with_a_damaged_plan_never_crash(kind: str, needs_extension: None) -> None:
    module = layer(kind).eval()
    x = sample(kind)
    program = torch.export.export(module, (x,))
    file = io.BytesIO()
    torch.export.save(program, file)
    for number in range(30):
        file.seek(0)
        loaded = torch.export.load(file)
        for plan in loaded.constants.values():
            plan[(number * 7919) % len(plan)] ^= 1 << number
        damaged = loaded.module()
        if kind == "convolution":  # forward, it has no use for a plan
            assert torch.equal(damaged(x), module(x))
        else:
            with pytest.raises(ValueError, match="expected"):
                damaged(x)


# ---- ways to make a step of an optimizer ----

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "fused adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "foreach amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True, amsgrad=True),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
}


def step(module: Any, optimizer: torch.optim.Optimizer, kind: str) -> None:
    optimizer.zero_grad()
    module(sample(kind)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kept", [5, 400])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_loading_another_number_of_weights_renews_the_optimizers_state(
    kind: str, name: str, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    module, source = layer(kind), layer(kind, seed=1, kept=kept)
    values = module.values
    optimizer = OPTIMIZERS[name]([values, module.bias])
    for _ in range(2):
        step(module, optimizer, kind)
    module.load_state_dict(source.state_dict())
    assert f"so the state of {type(optimizer).__name__} begins anew" in caplog.text
    assert module.values is values
    of_source = OPTIMIZERS[name]([source.values])
    for _ in range(3):
        step(module, optimizer, kind)
        step(source, of_source, kind)
        source.load_state_dict({"bias": module.bias.detach()}, strict=False)
    gc.collect()
    states = [optimizer.state[values], of_source.state[source.values]]
    for key in states[0]:
        assert states[0][key].shape == states[1][key].shape


def test_loading_the_optimizers_state_first_keeps_it() -> None:
    module, saved = layer("linear"), layer("linear", seed=1, kept=77)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.1) for m in (module, saved)]
    step(saved, optimizers[1], "linear")
    optimizers[0].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    module.load_state_dict(saved.state_dict())
    for m, optimizer in zip((module, saved), optimizers, strict=True):
        step(m, optimizer, "linear")
    assert_computes_like(module, saved, "linear")


def test_loading_before_training_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    module = layer("linear")
    optimizer = torch.optim.Adam(module.parameters(), fused=True)
    module.load_state_dict(layer("linear", seed=1, kept=77).state_dict())
    step(module, optimizer, "linear")
    assert optimizer.state[module.values]["exp_avg"].shape == (77, 1)
    assert caplog.text == ""


# ---- moving a pattern ----


def numbered(t: Tensor) -> Tensor:
    return torch.arange(1.0, t.numel() + 1, dtype=t.dtype).reshape(t.shape)


@pytest.mark.parametrize("kept", [60, 20, 90])
@pytest.mark.parametrize("kind", KINDS)
def test_moved_patterns_carry_values_gradients_and_state_with_them(kind: str, kept: int) -> None:
    module, target = layer(kind), layer(kind, seed=1, kept=kept)
    optimizer = torch.optim.Adam(module.parameters(), amsgrad=True)
    step(module, optimizer, kind)
    values, state = module.values, optimizer.state[module.values]
    address = values.data_ptr()
    for t in (values.data, values.grad, state["exp_avg"], state["max_exp_avg_sq"]):
        t.copy_(numbered(t))
    before = module.weight.detach()
    module.move_pattern(target.crow, target.col, [optimizer])
    assert module.values is values
    assert (values.data_ptr() == address) == (kept == 60)
    assert torch.equal(module.mask, target.mask)
    assert torch.equal(module.weight, before * target.mask)
    moved = values.detach()
    assert torch.equal(moved, values.grad)
    assert torch.equal(moved, state["exp_avg"])
    assert torch.equal(moved, state["max_exp_avg_sq"])
    assert state["step"].item() == 1
    step(module, optimizer, kind)
    twin = copy.deepcopy(module)
    assert_computes_like(module, twin, kind)


def test_a_move_to_no_pattern_changes_nothing(needs_extension: None) -> None:
    module = layer("linear")
    before = copy.deepcopy(module)
    for crow, col in ((module.crow, module.col.flip(0)), (module.crow[:-1], module.col)):
        with pytest.raises(ValueError, match="expected"):
            module.move_pattern(crow, col)
        assert_computes_like(module, before, "linear")


def test_compiled_layers_go_on_after_a_move(needs_extension: None) -> None:
    torch._dynamo.reset()
    module, target = layer("linear"), layer("linear", seed=1)
    compiles = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=compiles, fullgraph=True)
    x = sample("linear")
    compiled(x)
    for pattern in (target.pattern, module.pattern, target.pattern):
        module.move_pattern(pattern.crow.clone(), pattern.col.clone())
        assert torch.equal(compiled(x), copy.deepcopy(module)(x))
    assert compiles.frame_count == 1


# ---- as nn.Linear ----


def test_values_can_be_parametrized() -> None:
    class Doubled(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return 2 * values

        def right_inverse(self, values: Tensor) -> Tensor:
            return values / 2

    for kind in KINDS:
        module, plain = layer(kind), layer(kind)
        parametrize.register_parametrization(module, "values", Doubled())
        assert torch.equal(module(sample(kind)), plain(sample(kind)))
        module(sample(kind)).sum().backward()
        plain(sample(kind)).sum().backward()
        original = module.parametrizations.values.original
        assert torch.equal(original.grad, 2 * plain.values.grad)
        assert torch.equal(copy.deepcopy(module)(sample(kind)), plain(sample(kind)))
        module.load_state_dict(module.state_dict())
        with pytest.raises(ValueError, match="expected values without a parametrization"):
            module.move_pattern(module.crow, module.col)
        other = layer(kind, seed=1, kept=30)
        parametrize.register_parametrization(other, "values", Doubled())
        with pytest.raises(RuntimeError, match="blocks of the checkpoint's pattern"):
            module.load_state_dict(other.state_dict())
        parametrize.remove_parametrizations(module, "values")
        assert_computes_like(module, plain, kind)


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 4), (4, 0), (0, 0)])
def test_linear_without_inputs_or_outputs(inputs: int, outputs: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a layer without weights
        dense = nn.Linear(inputs, outputs)
    made = SparseLinear.from_dense(dense, torch.ones(outputs, inputs, dtype=torch.bool))
    for sparse in (made, SparseLinear(inputs, outputs), copy.deepcopy(made)):
        with torch.no_grad():
            sparse.bias.copy_(dense.bias)
        for shape in ((3, inputs), (inputs,), (2, 3, inputs), (0, inputs)):
            x = torch.randn(shape, requires_grad=True)
            y = sparse(x)
            assert torch.equal(y, dense(x))
            y.sum().backward()
            assert x.grad is not None
            assert x.grad.shape == x.shape
        assert sparse.weight.shape == dense.weight.shape
        repr(sparse)


# ---- memory ----


def test_layers_that_are_gone_leave_no_memory_behind(needs_extension: None) -> None:
    # 400 layers of 1 MB of plans: kept, they would be 400 MB.
    dense = nn.Linear(500, 400)
    mask = torch.rand(400, 500) < 0.5

    def memory() -> int:
        with open("/proc/self/statm") as numbers:
            return int(numbers.read().split()[1]) * 4096

    for number in range(400):
        module = SparseLinear.from_dense(dense, mask)
        module(torch.randn(1, 500)).sum().backward()
        if number == 100:
            before = memory()
    assert memory() - before < 100e6
