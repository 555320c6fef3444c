"""``sparsify``: which layers it replaces, what they compute, and what it refuses."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bounds import assert_half_the_digits, assert_sums, of_layer
from layers import check_step
from small_networks import WEIGHTS, check_unchanged, layer_of, masked, masks_of, network, noise, state
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.experiments import models
from sparseprune.nn import (
    MaskedConv1d,
    MaskedConv2d,
    MaskedConv3d,
    MaskedLinear,
    SparseConv1d,
    SparseConv2d,
    SparseLinear,
)


@pytest.fixture
def images() -> Tensor:
    return noise(9, 2, 5, 5)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layers", ["sparse", "dense", "measured"])
def test_sparsify_computes_what_the_masked_model_computes(layers: Any, inplace: bool, images: Tensor) -> None:
    model = network().double()
    masks = masks_of(model)
    reference = masked(model, masks)
    before = state(model)
    sparse = sp.sparsify(model, masks, layers=layers, inplace=inplace, batch_size=8)
    assert (sparse is model) == inplace
    if not inplace:
        check_unchanged(model, before)
        ours = {id(t.untyped_storage()) for t in sparse.state_dict().values()}
        assert not ours & {id(t.untyped_storage()) for t in model.state_dict().values()}
        pointers = {t.data_ptr() for t in model.state_dict().values()}
        assert not pointers & {t.data_ptr() for t in sparse.state_dict().values() if t.numel()}
    for name in WEIGHTS:
        layer = layer_of(sparse, name)
        assert torch.equal(layer.mask, masks[name])
        assert torch.equal(layer.weight, layer_of(reference, name).weight)
    for train in (True, False):
        sparse.train(train)
        reference.train(train)
        assert_half_the_digits(sparse(images.double()), reference(images.double()))


def test_sparsify_chooses_the_kinds_of_layers_that_were_asked_for() -> None:
    model = network()
    masks = masks_of(model)
    kinds = {"sparse": (SparseConv2d, SparseLinear), "dense": (MaskedConv2d, MaskedLinear)}
    for layers, (conv, linear) in kinds.items():
        result = sp.sparsify(model, masks, layers=layers)
        assert [type(layer_of(result, name)) for name in WEIGHTS] == [conv] + [linear] * 5
    measured = sp.sparsify(model, masks, batch_size=4)
    assert {type(layer_of(measured, name)) for name in WEIGHTS[1:]} <= {SparseLinear, MaskedLinear}


def test_sparsify_does_not_disturb_random_numbers() -> None:
    model = network()
    masks = masks_of(model)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    sp.densify(sp.sparsify(model, masks, batch_size=4))
    assert torch.equal(torch.rand(4), expected)


def test_sparsify_leaves_layers_without_a_mask_alone(images: Tensor) -> None:
    model = network().double()
    masks = masks_of(model, only=lambda name: name.startswith("3.blocks"))
    sparse = sp.sparsify(model, masks, layers="sparse")
    kinds = [type(layer_of(sparse, name)) for name in WEIGHTS]
    assert kinds == [nn.Conv2d, nn.Linear, nn.Linear, SparseLinear, SparseLinear, nn.Linear]
    assert_half_the_digits(sparse(images.double()), masked(model, masks)(images.double()))
    untouched = sp.sparsify(model, {})
    assert [type(m) for m in untouched.modules()] == [type(m) for m in model.modules()]


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = self.first
        self.nested = nn.Sequential(self.first, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.nested(self.first(x)))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_sparsify_of_a_layer_used_twice(layers: Any, inplace: bool) -> None:
    model = UsedTwice().double()
    masks = {"first.weight": torch.eye(5, dtype=torch.bool)}
    reference = masked(model, masks)
    sparse = sp.sparsify(model, masks, layers=layers, inplace=inplace)
    assert sparse.first is sparse.second is sparse.nested[0]
    assert sp.summary(sparse).kept == 5
    x = noise(3, 5).double()
    assert_half_the_digits(sparse(x), reference(x))
    assert torch.equal(sp.densify(sparse)(x), reference(x))


def test_sparsify_of_a_single_layer() -> None:
    layer = nn.Linear(5, 4)
    masks = {"weight": noise(4, 5) > 0}
    sparse = sp.sparsify(layer, masks, layers="sparse")
    assert isinstance(sparse, SparseLinear)
    assert torch.equal(sparse.weight, layer.weight * masks["weight"])
    assert type(sp.densify(sparse)) is nn.Linear
    with pytest.raises(
        ValueError, match=r"a single layer cannot be replaced in place; use the returned copy"
    ):
        sp.sparsify(layer, masks, layers="sparse", inplace=True)


@pytest.mark.parametrize("layers", ["sparse", "dense", "measured"])
@pytest.mark.parametrize(
    ("conv", "kinds", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (SparseConv1d, MaskedConv1d), (4, 9)),
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), (SparseConv2d, MaskedConv2d), (4, 7, 7)),
        (nn.Conv2d(4, 6, (1, 3), padding=2, padding_mode="reflect"), (SparseConv2d, MaskedConv2d), (4, 7, 7)),
    ],
)
def test_sparsify_of_convolutions(
    conv: nn.Module, kinds: tuple[type, type], shape: tuple[int, ...], layers: Any
) -> None:
    model = nn.Sequential(conv)
    masks = masks_of(model, 0.4)
    reference = masked(model, masks)
    sparse = sp.sparsify(model, masks, layers=layers, input_size=shape, batch_size=17)
    expected = {"sparse": kinds[:1], "dense": kinds[1:], "measured": kinds}[layers]
    assert type(sparse[0]) in expected
    for samples in (17, 2):
        sparse.zero_grad()
        x = noise(samples, *shape).requires_grad_()
        y = sparse(x)
        y.square().sum().backward()
        if isinstance(sparse[0], kinds[0]):
            check_step(sparse[0], reference[0], x, y, 2 * y)
            continue
        expected = of_layer(reference[0], x, 2 * y)
        mask = masks["0.weight"]
        assert_sums(y, expected["y"])
        assert_sums(x.grad, expected["x"])
        assert_sums(sparse[0].weight.grad, expected["weight"].map(lambda t, mask=mask: t * mask))
    assert type(sp.densify(sparse)[0]) is type(conv)
    check_unchanged(sp.densify(sparse), state(reference))


@pytest.mark.parametrize("layers", ["sparse", "measured"])
@pytest.mark.parametrize(
    ("layer", "kind", "reason"),
    [
        (nn.Conv3d(2, 3, 2, dilation=2), MaskedConv3d, "no sparse kernels for Conv3d"),
        (nn.Conv2d(3, 6, 3, groups=3), MaskedConv2d, "depthwise: no sparse kernels"),
        (nn.Conv1d(3, 3, 3, groups=3), MaskedConv1d, "depthwise: no sparse kernels"),
        (nn.Conv2d(3, 6, 3).half(), MaskedConv2d, "no sparse kernels for float16"),
        (nn.Linear(3, 6).half(), MaskedLinear, "no sparse kernels for float16"),
    ],
)
def test_sparsify_says_what_has_no_sparse_kernels(
    layer: nn.Module, kind: type, reason: str, layers: Any
) -> None:
    model = nn.Sequential(layer)
    masks = masks_of(model)
    sparse = sp.sparsify(model, masks, layers=layers)
    assert type(sparse[0]) is kind
    assert torch.equal(sparse[0].kept_weight(), masked(model, masks)[0].weight)
    (row,) = sp.summary(sparse).rows
    assert (row.computes, row.choice) == ("dense, masked", reason)


@pytest.mark.parametrize("make", [models.resnet8, models.vgg16_bn], ids=["resnet8", "vgg16_bn"])
def test_sparsify_of_whole_networks(make: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    model = make((3, 32, 32), 5, 0.125)
    masks = masks_of(model, 0.3)
    reference = masked(model, masks)
    sparse = sp.sparsify(model, masks, input_size=(3, 32, 32), batch_size=16)
    chosen = {row.choice.removeprefix("a tie: ").partition(" ")[0] for row in sp.summary(sparse).rows}
    assert chosen <= {"sparse", "dense", "plain"}
    forced = sp.sparsify(model, masks, layers="sparse")
    assert sum(isinstance(m, SparseConv2d) for m in forced.modules()) == sum(
        isinstance(m, nn.Conv2d) for m in model.modules()
    )
    x = noise(16, 3, 32, 32)
    for one in (sparse, forced):
        assert_half_the_digits(one(x), copy.deepcopy(reference)(x))
        dense = sp.densify(one)
        assert [type(m) for m in dense.modules()] == [type(m) for m in model.modules()]
        assert_half_the_digits(dense.eval()(x), one.eval()(x))


def test_sparsify_keeps_flags_and_hides_non_finite_pruned_weights() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Conv1d(1, 1, 2)).eval()
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    masks = {
        name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() > 1
    }
    for name, mask in masks.items():
        mask.view(-1)[0] = False
        model.get_parameter(name).data.view(-1)[0] = float("inf")
    for layers in ("sparse", "dense"):
        result = sp.sparsify(model, masks, layers=layers)
        assert not any(module.training for module in result.modules())
        assert [p.requires_grad for p in result.parameters()] == [False, True, True, False]
        assert result[0](noise(2, 5)).isfinite().all()
        assert result[1](noise(2, 1, 5)).isfinite().all()


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    return model


def tied_to_embedding() -> nn.Module:
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7))
    model[1].weight = model[0].weight
    return model


FULL = torch.ones(5, 5, dtype=torch.bool)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("make", "masks", "options", "error", "message"),
    [
        (network, {"9.weight": FULL}, {}, ValueError, "for weights of the model (0.0.weight, 0.1.weight, 2."),
        (network, {"9.weight": FULL}, {}, ValueError, "got '9.weight'"),
        (network, {"4.bias": FULL}, {}, ValueError, "got '4.bias'"),
        (nn.ReLU, {"weight": FULL}, {}, ValueError, "for weights of the model (none), got 'weight'"),
        (
            network,
            {"4.weight": FULL},
            {},
            ValueError,
            "'4.weight': expected a mask of shape [3, 6] (the weight's)",
        ),
        (
            network,
            {"4.weight": torch.full((3, 6), 0.5)},
            {},
            ValueError,
            "expected a mask of 0 and 1 (1 = keep), got other numbers in torch.float32",
        ),
        (network, {"4.weight": [True]}, {}, TypeError, "the mask to be a tensor or an array, got list"),
        (
            network,
            {"0.1.weight": FULL[0, :4]},
            {},
            TypeError,
            "of a Linear or Conv layer, got one of BatchNorm2d",
        ),
        (
            UsedTwice,
            {"first.weight": FULL, "second.weight": FULL},
            {},
            ValueError,
            "one mask of a weight, got",
        ),
        (
            tied,
            {"0.weight": FULL},
            {},
            ValueError,
            "'0.weight' is shared with 2.weight; a sparse layer cannot share",
        ),
        (tied_to_embedding, {"1.weight": FULL[:1].expand(7, 5)}, {}, ValueError, "is shared with 0.weight"),
        (network, {}, {"layers": "fast"}, ValueError, 'layers="measured", "sparse" or "dense", got \'fast\''),
        (network, {}, {"batch_size": 0}, ValueError, "expected batch_size >= 1, got 0"),
        (
            network,
            {},
            {"layers": "measured", "input_size": (2, 4, 4)},
            ValueError,
            "a sample that the model takes, got (2, 4, 4) (mat1 and mat2 shapes",
        ),
    ],
)
def test_sparsify_refuses(
    make: Callable[[], nn.Module],
    masks: dict[str, Any],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    inplace: bool,
) -> None:
    model = make()
    good = masks_of(model, only=lambda name: name in ("2.weight", "3.inner.0.weight") and "2" not in masks)
    before, kinds = state(model), [type(m) for m in model.modules()]
    with pytest.raises(error, match=f"^sparsify: .*{re.escape(message)}"):
        sp.sparsify(model, {**good, **masks}, inplace=inplace, **{"layers": "sparse", **options})
    check_unchanged(model, before)
    assert [type(m) for m in model.modules()] == kinds


def test_sparsify_asks_nothing_of_layers_without_masks():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.real, self.other = nn.Linear(6, 4), nn.Linear(3, 3, dtype=torch.complex64)

    model = Pair()
    masks = sp.prune(model, method="random", sparsity=0.5, exclude=["other"])
    sparse = sp.sparsify(model, masks, layers="sparse")
    assert type(sparse.real) is sp.SparseLinear
    assert type(sparse.other) is nn.Linear


def test_sparsify_takes_a_list_of_masks_in_the_order_of_the_prunable_weights():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    masks = sp.prune(model, method="random", sparsity=0.5)
    by_list = sp.sparsify(model, [mask.float() for mask in masks.values()], layers="sparse")
    by_name = sp.sparsify(model, masks, layers="sparse").state_dict()
    assert all(torch.equal(tensor, by_name[name]) for name, tensor in by_list.state_dict().items())
