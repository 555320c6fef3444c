"""Weights that layers compute, and what is written to them."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_half_the_digits
from other_layers import Conv1D
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.nn.computed import ComputedWeight
from sparseprune.nn.masked import masked_from_dense


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def mask_of(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.4


LAYERS: dict[str, Callable[[], Any]] = {
    "linear": lambda: sp.SparseLinear.from_dense(nn.Linear(6, 4), mask_of(4, 6)),
    "linear, blocks": lambda: sp.SparseLinear.from_dense(
        nn.Linear(6, 4), mask_of(2, 6).repeat_interleave(2, 0)
    ),
    "conv1d": lambda: sp.SparseConv1d.from_dense(nn.Conv1d(3, 4, 2), mask_of(4, 3, 2)),
    "conv2d": lambda: sp.SparseConv2d.from_dense(nn.Conv2d(4, 4, 2, groups=2), mask_of(4, 2, 2, 2)),
    "masked": lambda: masked_from_dense(Doubled(6, 4), mask_of(4, 6)),
    "masked, transposed": lambda: masked_from_dense(Conv1D(4, 6), mask_of(6, 4)),
}


def overwrite(weight: Tensor) -> None:
    weight.data = noise(weight)


def assign_items(weight: Tensor) -> None:
    weight.data[...] = noise(weight)


def multiply(weight: Tensor) -> None:
    weight *= 3


def rows(weight: Tensor) -> None:
    for row in weight.data:
        row.fill_(3)


def noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(5))


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "xavier_uniform_": nn.init.xavier_uniform_,
    "kaiming_normal_": nn.init.kaiming_normal_,
    "trunc_normal_": nn.init.trunc_normal_,
    "orthogonal_": nn.init.orthogonal_,
    "ones_": nn.init.ones_,
    "data.normal_": lambda weight: weight.data.normal_(),
    "data[...] =": assign_items,
    "data =": overwrite,
    "data[0] of a view": lambda weight: weight.data.flatten(1)[0].fill_(7),
    "rows": rows,
    "detach": lambda weight: weight.detach().add_(1),
    "mul_": lambda weight: weight.mul_(0.5),
    "*=": multiply,
    "copy_": lambda weight: weight.copy_(noise(weight)),
    "foreach": lambda weight: torch._foreach_mul_([weight.detach()], 2.0),
    "out": lambda weight: torch.neg(noise(weight), out=weight.detach()),
    "vector": lambda weight: nn.utils.vector_to_parameters(noise(weight).flatten(), [weight]),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_written_is_kept_where_weights_are(kind: str, write: str) -> None:
    layer = LAYERS[kind]()
    mask = layer.mask
    expected = nn.Parameter(layer.weight.detach().clone())
    stored = next(layer.parameters())
    pointer = stored.data_ptr()
    for weight in (expected, layer.weight):
        torch.manual_seed(3)
        with torch.no_grad():
            WRITES[write](weight)
    assert torch.equal(layer.weight.detach(), expected.detach().masked_fill(~mask, 0))
    assert next(layer.parameters()) is stored
    assert stored.data_ptr() == pointer


@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_written_shows_in_the_tensor_that_was_written_to(kind: str) -> None:
    layer = LAYERS[kind]()
    weight = layer.weight
    assert nn.init.ones_(weight) is weight
    assert torch.equal(weight.detach(), layer.mask.float())


@pytest.mark.parametrize("kind", LAYERS)
def test_writing_in_inference_mode(kind: str) -> None:
    layer = LAYERS[kind]()
    expected = 3 * layer.weight.detach()
    with torch.inference_mode():
        layer.weight.mul_(3)
    assert torch.equal(layer.weight.detach(), expected)


@pytest.mark.parametrize("kind", LAYERS)
def test_reading_changes_nothing(kind: str) -> None:
    layer = LAYERS[kind]()
    version = next(layer.parameters())._version
    weight = layer.weight
    assert type(weight) is ComputedWeight
    results = (
        weight + 1,
        weight.abs(),
        weight.clone(),
        weight.sum(),
        weight.flatten().tolist(),
        repr(weight),
    )
    assert not any(isinstance(result, ComputedWeight) for result in results)
    assert next(layer.parameters())._version == version
    (weight**2).sum().backward()
    grad = next(layer.parameters()).grad
    assert grad is not None
    assert grad.count_nonzero() == layer.mask.sum()


def test_a_copy_is_a_tensor_of_its_own() -> None:
    layer = LAYERS["linear"]()
    weight = layer.weight.detach()
    before = weight.clone()
    for copied in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert type(copied) is Tensor
        copied.zero_()
    assert torch.equal(layer.weight.detach(), before)


@pytest.mark.parametrize("kind", LAYERS)
def test_arrays_of_numpy_are_read_only(kind: str) -> None:
    array = LAYERS[kind]().weight.detach().numpy()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_other_tensors_take_a_weight_as_their_data() -> None:
    layer, other = LAYERS["linear"](), nn.Parameter(torch.zeros(2))
    other.data = layer.weight.detach()
    assert torch.equal(other, layer.weight)


def test_data_of_another_shape_is_refused() -> None:
    layer = LAYERS["linear"]()
    before = layer.values.clone()
    with pytest.raises(ValueError, match=r"SparseLinear: expected data of shape \[4, 6\], got \[6\]"):
        layer.weight.data = torch.ones(6)
    assert torch.equal(layer.values, before)


@pytest.mark.parametrize("value", [nn.Parameter(torch.ones(4, 6)), torch.ones(4, 6)])
def test_another_weight_is_refused(value: Tensor) -> None:
    layer = LAYERS["linear"]()
    with pytest.raises(AttributeError, match=r"got another one in its place.*use weight.copy_\(...\)"):
        layer.weight = value


def test_another_weight_of_a_masked_module_is_masked() -> None:
    layer = LAYERS["masked"]()
    layer.weight = nn.Parameter(torch.ones(4, 6))
    assert torch.equal(layer.weight.detach(), layer.mask.float())


@pytest.mark.parametrize("kind", LAYERS)
def test_freezing_a_weight_freezes_what_is_stored(kind: str) -> None:
    layer = LAYERS[kind]()
    layer.weight.requires_grad_(False)
    assert not next(layer.parameters()).requires_grad
    layer.weight.requires_grad = True
    assert next(layer.parameters()).requires_grad


def test_parametrized_values_refuse_writes() -> None:
    layer = LAYERS["linear"]()
    nn.utils.parametrize.register_parametrization(layer, "values", nn.Tanh())
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="expected values without a parametrization to write a weight to"):
        nn.init.ones_(layer.weight)
    assert torch.equal(layer.weight.detach(), before)


@pytest.mark.parametrize(
    "dense", [nn.Linear(6, 4), nn.Linear(6, 4, bias=False), nn.Conv1d(3, 4, 2), nn.Conv2d(4, 4, 2, groups=2)]
)
def test_reset_parameters_draws_what_the_dense_layer_draws(dense: nn.Module) -> None:
    assert isinstance(dense.weight, Tensor)
    mask = mask_of(*dense.weight.shape)
    model = sp.sparsify(nn.Sequential(dense), {"0.weight": mask}, layers="sparse")
    values = model[0].values
    for fresh in (model, nn.Sequential(dense)):
        torch.manual_seed(2)
        fresh.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    assert model[0].values is values
    assert torch.equal(model[0].weight.detach(), dense.weight.detach() * mask)
    if dense.bias is not None:
        assert torch.equal(model[0].bias, dense.bias)


def test_training_goes_on_with_written_weights() -> None:
    layer = LAYERS["linear"]()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    x = torch.ones(3, 6)
    for _ in range(2):
        layer(x).sum().backward()
        optimizer.step()
        with torch.no_grad():
            layer.weight.clamp_(-0.1, 0.1)
        assert layer.values.abs().max() <= 0.1
    assert_half_the_digits(layer(x), layer.to_dense()(x))


@pytest.mark.parametrize("write", WRITES)
def test_what_is_written_to_pruned_weights_of_a_masked_layer_counts_for_nothing(write: str) -> None:
    layer = masked_from_dense(nn.Linear(6, 4), mask_of(4, 6))
    with torch.no_grad():
        WRITES[write](layer.weight)
    x = torch.ones(3, 6)
    assert torch.equal(layer(x), F.linear(x, layer.weight * layer.mask, layer.bias))
    dense = sp.densify(nn.Sequential(layer))[0]
    assert torch.equal(dense.weight, layer.weight * layer.mask)


class Reader(nn.Module):
    """Computes with the weight of a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["linear", "masked"])
@pytest.mark.parametrize("way", ["eager", "compile", "export", "fx", "jit", "func", "autocast"])
def test_models_that_read_weights(kind: str, way: str) -> None:
    torch._dynamo.reset()
    model, x = Reader(LAYERS[kind]()), torch.ones(3, 6)
    expected = F.linear(x, model.layer.weight.detach().clone())
    if way == "compile":
        y = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    elif way == "export":
        y = torch.export.export(model, (x,)).module()(x)
    elif way == "fx":
        y = torch.fx.symbolic_trace(model)(x)
    elif way == "jit":
        y = torch.jit.trace(model, x)(x)
    elif way == "func":
        y = torch.func.vmap(model)(x)
    elif way == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        assert y.dtype == torch.bfloat16
        expected = F.linear(x.bfloat16(), model.layer.weight.detach().bfloat16())
    else:
        y = model(x)
    assert torch.equal(y, expected)


# Torch itself asks inputs for their gradients.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_function_takes_a_computed_weight() -> None:
    torch._dynamo.reset()
    weight = LAYERS["linear"]().weight
    total = torch.compile(lambda w: (2 * w).sum(), backend="aot_eager", fullgraph=True)
    assert torch.equal(total(weight), (2 * weight).sum())
