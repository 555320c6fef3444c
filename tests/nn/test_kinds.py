"""Layers of classes other than torch's: sparse where they compute like the parent, else masked, and back."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_half_the_digits
from other_layers import Conv1D, Experts
from small_networks import check_unchanged, masked, noise, state
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.nn.kinds import layers_of
from sparseprune.nn.masked import Masked, masks_in


class Named(nn.Linear):
    """Only its attributes differ from the parent's."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.note = "mine"

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)


class NamedConv(nn.Conv2d):
    pass


class Standardised(nn.Conv2d):
    """As timm's StdConv2d: computes its weight from the parameter."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class OtherPadding(nn.Conv1d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(F.pad(x, (1, 0)), weight, bias)


class WithMask(nn.Linear):
    """Has a buffer of the name that ours would have, as networks of ordered variables do."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("mask", torch.ones(sizes[1], sizes[0]).tril())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class Scaled(nn.Linear):
    """Its forward is the parent's, but someone may want its parameter."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.ones(1))


SPARSE = {
    "linear": (lambda: Named(6, 4), (3, 6), sp.SparseLinear),
    "conv2d": (lambda: NamedConv(2, 4, 3, padding=1), (3, 2, 5, 5), sp.SparseConv2d),
    "transposed": (lambda: Conv1D(4, 6), (3, 2, 6), sp.SparseLinear),
}
MASKED = {
    "own forward": (lambda: Standardised(2, 4, 3), (3, 2, 5, 5)),
    "own _conv_forward": (lambda: OtherPadding(2, 4, 3), (3, 2, 5)),
    "own mask": (lambda: WithMask(6, 4), (3, 6)),
    "own parameter": (lambda: Scaled(6, 4), (3, 6)),
    "experts": (lambda: Experts(3, 4, 5), (6, 5)),
}
EVERY = {**{name: case[:2] for name, case in SPARSE.items()}, **MASKED}


def model_of(make: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.Tanh()).double()
    return model, sp.prune(model, method="random", sparsity=0.5)


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    return y, x.grad


@pytest.mark.parametrize("layers", ["sparse", "dense"])
@pytest.mark.parametrize("case", EVERY)
def test_any_class_computes_what_its_masked_twin_does_and_comes_back(case: str, layers: Any) -> None:
    make, shape = EVERY[case]
    model, masks = model_of(make)
    reference = masked(model, masks)
    result = sp.sparsify(model, masks, layers=layers)
    for actual, expected in zip(
        step(result, noise(*shape).double()), step(reference, noise(*shape).double()), strict=True
    ):
        assert_half_the_digits(actual, expected)
    dense = sp.densify(result)
    assert type(dense[0]) is type(model[0])
    assert vars(dense[0]).keys() == vars(model[0]).keys()
    check_unchanged(dense, state(reference))
    assert_half_the_digits(dense(noise(*shape).double()), reference(noise(*shape).double()))
    assert {layer.name: layer.mask.sum() for layer in layers_of(result)} == {
        name: mask.sum() for name, mask in masks.items()
    }
    assert all(torch.equal(layer.mask, masks[layer.name]) for layer in layers_of(result))


@pytest.mark.parametrize("case", SPARSE)
def test_a_class_that_computes_like_its_parent_is_sparse(case: str) -> None:
    make, _, kind = SPARSE[case]
    model, masks = model_of(make)
    assert type(sp.sparsify(model, masks, layers="sparse")[0]) is kind


def test_a_sparse_layer_has_the_attributes_of_the_class_that_it_stands_for() -> None:
    model, masks = model_of(lambda: Named(6, 4))
    assert sp.sparsify(model, masks, layers="sparse")[0].note == "mine"
    model, masks = model_of(lambda: Conv1D(4, 6))
    sparse = sp.sparsify(model, masks, layers="sparse")[0]
    assert (sparse.nf, sparse.nx, sparse.out_features, sparse.in_features) == (4, 6, 4, 6)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("own forward", "Standardised has a forward of its own"),
        ("own _conv_forward", "OtherPadding has a forward of its own"),
        ("own mask", "WithMask has a forward of its own"),
        ("own parameter", "Scaled has parameters or buffers of its own"),
    ],
)
def test_a_class_that_computes_otherwise_is_masked_and_says_why(case: str, reason: str) -> None:
    model, masks = model_of(MASKED[case][0])
    result = sp.sparsify(model, masks, layers="sparse")[0]
    assert isinstance(result, Masked)
    assert isinstance(result, type(model[0]))
    assert result.choice == reason


def test_a_forward_that_an_instance_has_of_its_own_is_not_replaced() -> None:
    model, masks = model_of(lambda: Named(6, 4))
    model[0].forward = functional = lambda x: F.linear(x, model[0].weight)
    assert isinstance(sp.sparsify(model, masks, layers="sparse")[0], Masked)
    assert model[0].forward is functional


@pytest.mark.parametrize("case", MASKED)
def test_masks_of_any_class_are_enforced(case: str) -> None:
    make, shape = MASKED[case]
    model, masks = model_of(make)
    result = sp.sparsify(model, masks, layers="dense")
    optimizer = torch.optim.AdamW(result.parameters(), 0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        step(result, noise(*shape).double())
        for name, mask in masks.items():
            assert not result[0]._parameters[name.rpartition(".")[2]].grad[~mask].any()
        optimizer.step()
    # What others write into pruned weights does not count.
    expected = result(noise(*shape).double())
    with torch.no_grad():
        for name, mask in masks.items():
            result[0]._parameters[name.rpartition(".")[2]].masked_fill_(~mask, 3.0)
    assert torch.equal(result(noise(*shape).double()), expected)
    for name, mask in masks.items():
        assert not sp.densify(result).get_parameter(name)[~mask].any()
        assert torch.equal(masks_in(result[0])[name.rpartition(".")[2]], mask)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("layers", ["sparse", "dense"])
@pytest.mark.parametrize("make", [lambda: Named(6, 4), lambda: WithMask(6, 4)])
def test_any_class_copies_pickles_and_loads(make: Any, layers: Any, how: Any) -> None:
    model, masks = model_of(make)
    result = sp.sparsify(model, masks, layers=layers)
    copied = how(result)
    assert [type(m) for m in copied.modules()] == [type(m) for m in result.modules()]
    check_unchanged(copied, state(result))
    x = noise(3, 6).double()
    assert torch.equal(copied(x), result(x))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    assert not torch.equal(copied(x), result(x))
    copied.load_state_dict(result.state_dict())
    assert torch.equal(copied(x), result(x))
    assert type(sp.densify(copied)[0]) is type(model[0])


def test_a_masked_model_can_be_pruned_again() -> None:
    model, masks = model_of(lambda: Standardised(2, 4, 3))
    once = sp.sparsify(model, masks, layers="dense")
    fewer = {name: mask & (noise(*mask.shape) > 0) for name, mask in masks.items()}
    assert list(sp.scores.prunable(once)) == list(masks)
    twice = sp.sparsify(once, fewer, layers="dense")
    x = noise(3, 2, 5, 5).double()
    assert_half_the_digits(twice(x), masked(model, fewer)(x))
    assert type(sp.densify(twice)[0]) is Standardised


def test_summary_tells_shapes_as_the_dense_model_has_them() -> None:
    model, masks = model_of(lambda: Conv1D(4, 6))
    (row,) = sp.summary(sp.sparsify(model, masks, layers="sparse"), input_size=(5, 6)).rows
    kept = int(masks["0.weight"].sum())
    assert (row.name, row.shape, row.kept, row.flops) == ("0.weight", (6, 4), kept, 2 * 5 * kept)
    (dense,) = sp.summary(model, input_size=(5, 6)).rows
    assert (dense.shape, dense.kept, dense.flops) == ((6, 4), 24, 2 * 5 * 24)


@pytest.mark.parametrize("make", [lambda: Named(6, 4), lambda: Conv1D(4, 6)])
def test_costs_of_any_class(make: Any) -> None:
    model, _ = model_of(make)
    masks = sp.prune(model.float(), method="magnitude", flops=0.5, input_size=(5, 6))
    assert int(masks["0.weight"].sum()) == 12


class Two(nn.Module):
    """A layer of 12 inputs and 8 outputs, and a head of large weights."""

    def __init__(self, layer: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, 3)
        self.layer.weight.data = weight
        nn.init.constant_(self.head.weight, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))


def magnitudes(model: nn.Module, *_: object) -> dict[str, Tensor]:
    return {name: p.detach().abs() for name, p in model.named_parameters() if p.dim() > 1}


@pytest.mark.parametrize(
    "options",
    [
        {"block": (4, 1)},
        {"block": (4, 1), "rounds": 2, "method": magnitudes},
        {"block": "channel"},
        {"pattern": "2:4", "sparsity": None},
        {"pattern": "fan_in"},
        {"block": (2, 1), "flops": 0.5, "sparsity": None, "input_size": (3, 12)},
    ],
    ids=lambda options: ", ".join(options),
)
def test_blocks_and_patterns_of_a_transposed_layer_are_those_of_a_linear_one(options: dict) -> None:
    weight = noise(8, 12)
    linear, transposed = Two(nn.Linear(12, 8), weight), Two(Conv1D(8, 12), weight.t().contiguous())
    options = {"method": "magnitude", "sparsity": 0.5, **options}
    masks, others = sp.prune(linear, **options), sp.prune(transposed, **options)
    assert torch.equal(masks["layer.weight"], others["layer.weight"].t())
    assert not masks["layer.weight"].all()
    layer = sp.sparsify(transposed, others, layers="sparse").layer
    assert layer.block[0] >= (options["block"][0] if isinstance(options.get("block"), tuple) else 1)
    assert sp.summary(sp.sparsify(transposed, others, layers="dense")).rows[0].block == f"{layer.block[0]}x1"
    for (control, its), (_, of_linear) in zip(
        sp.controls(others, transposed).values(), sp.controls(masks, linear).values(), strict=True
    ):
        assert control.layer.weight.shape == its["layer.weight"].shape
        assert torch.equal(its["layer.weight"], of_linear["layer.weight"].t())


def test_blocks_of_experts_are_within_an_expert() -> None:
    model = nn.Sequential(Experts(3, 8, 4))
    masks = sp.prune(model, method="random", sparsity=0.5, block=(4, 1))
    for mask in masks.values():
        rows = mask.unflatten(1, (-1, 4))
        assert torch.equal(rows.any(2), rows.all(2))
    masks = sp.prune(model, method="random", pattern="2:4")
    assert all((mask.unflatten(2, (-1, 4)).sum(3) == 2).all() for mask in masks.values())


@pytest.mark.parametrize("case", [*EVERY])
def test_any_class_compiles_in_one_graph(case: str) -> None:
    make, shape = EVERY[case]
    model, masks = model_of(make)
    x = noise(*shape).double()
    for layers in ("sparse", "dense"):
        result = sp.sparsify(model, masks, layers=layers)
        torch._dynamo.reset()
        compiled = torch.compile(result, backend="eager", fullgraph=True)
        assert_half_the_digits(compiled(x), result(x))
        exported = torch.export.export(result, (x,))
        assert_half_the_digits(exported.module()(x), result(x))


class Reading(nn.Module):
    """As torchvision's Swin: computes with the weight of a child that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.inner.weight, self.inner.bias)


@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_masks_hold_for_a_parent_that_reads_the_weight(layers: Any) -> None:
    model, masks = model_of(Reading)
    result = sp.sparsify(model, masks, layers=layers)
    optimizer = torch.optim.SGD(result.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        step(result, noise(3, 6).double())
        optimizer.step()
    dense = sp.densify(result)
    assert not dense[0].inner.weight[~masks["0.inner.weight"]].any()
    x = noise(3, 6).double()
    assert_half_the_digits(result(x), dense(x))
    assert type(dense[0].inner) is nn.Linear
