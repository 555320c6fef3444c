import copy
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from bounds import assert_half_the_digits, assert_sums, of_layer
from layers import check_step
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.cost import choice
from sparseprune.cost.cache import Choice
from sparseprune.cost.calls import Call
from sparseprune.experiments import models
from sparseprune.format.memory import is_batch_inner_images
from sparseprune.nn import (
    MaskedConv1d,
    MaskedConv2d,
    MaskedConv3d,
    MaskedLinear,
    SparseConv1d,
    SparseConv2d,
    SparseLinear,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.blocks = nn.ModuleList([nn.Linear(6, 6, bias=False) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.inner(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return x


def network() -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(conv, nn.Flatten(), nn.Linear(4 * 25, 6), Residual(), nn.Linear(6, 3))


WEIGHTS = ["0.0.weight", "2.weight", "3.inner.0.weight", "3.blocks.0.weight", "3.blocks.1.weight", "4.weight"]


def masks_of(
    model: nn.Module, density: float = 0.3, only: Callable[[str], bool] | None = None
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(p.shape, generator=generator) < density
        for name, p in model.named_parameters()
        if p.dim() > 1 and (only is None or only(name))
    }


def masked(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """The reference: a dense copy with zeros in place."""
    model = copy.deepcopy(model)
    sp.apply_masks(model, masks)
    return model


def layer_of(model: nn.Module, weight: str) -> nn.Module:
    return model.get_submodule(weight.rpartition(".")[0])


@pytest.fixture
def images() -> Tensor:
    return noise(9, 2, 5, 5)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def check_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# ---- sparsify ----


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


@pytest.mark.parametrize(("sparse", "dense", "kind"), [(1.0, 2.0, SparseLinear), (2.0, 1.0, MaskedLinear)])
def test_sparsify_takes_the_faster_way_and_measures_a_shape_once(
    sparse: float, dense: float, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(layer: SparseLinear, twin: nn.Module, batch_size: int, call: Call | None) -> Choice:
        assert call is None
        assert isinstance(twin, MaskedLinear)
        assert torch.equal(twin.weight, layer.weight)
        measured.append((layer.out_features, layer.in_features, batch_size))
        return Choice(sparse, dense)

    monkeypatch.setattr(choice, "measure", measure)
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", "")
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    masks = {f"{i}.weight": torch.eye(n, 6, dtype=torch.bool) for i, n in enumerate([6, 6, 2])}
    result = sp.sparsify(model, masks, batch_size=17)
    assert [type(layer) for layer in result] == [kind] * 3
    assert measured == [(6, 6, 17), (2, 6, 17)]
    assert str(Choice(sparse, dense)) == result[0].choice


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


def test_sparsify_measures_convolutions_at_the_call_that_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, Call]] = []

    def measure(layer: nn.Module, twin: nn.Module, batch_size: int, call: Call) -> Choice:
        assert batch_size == 20
        measured.append((type(layer).__name__, call))
        return Choice(1.0, 2.0)

    monkeypatch.setattr(choice, "measure", measure)
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", "")
    convs = [nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2), *(nn.Conv2d(4, 4, 3) for _ in range(3))]
    model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(16, 3))
    masks = {
        name: torch.arange(p.numel()).view_as(p) % 7 == 0
        for name, p in model.named_parameters()
        if p.dim() > 1
    }
    sparse = sp.sparsify(model, masks, batch_size=20, input_size=(2, 16, 16))
    assert measured == [
        ("SparseConv2d", Call((2, 16, 16), (4, 16, 16), False)),
        ("SparseConv2d", Call((4, 8, 8), (4, 6, 6), True)),
        ("SparseConv2d", Call((4, 6, 6), (4, 4, 4), True)),
        ("SparseConv2d", Call((4, 4, 4), (4, 2, 2), True)),
        ("SparseLinear", Call((16,), (3,), True)),
    ]
    assert {row.choice for row in sp.summary(sparse).rows} == {str(Choice(1.0, 2.0))}
    measured.clear()
    sp.sparsify(model, masks, batch_size=20)
    assert [kind for kind, _ in measured] == ["SparseLinear"]


# A dense layer costs the conversion of its activations where both its neighbours are sparse.
@pytest.mark.parametrize(
    ("seconds", "converted", "batch_size", "kinds"),
    [
        ({4: (2.0, 1.0)}, 3.0, 20, "sss"),  # the first one, of 4 channels: its only neighbour is sparse
        ({4: (2.0, 1.0)}, 1.5, 20, "dss"),  # ... and it pays nevertheless
        ({5: (2.0, 1.0)}, 3.0, 20, "sss"),
        ({4: (2.0, 1.0), 5: (2.0, 1.0)}, 3.0, 20, "dds"),  # a neighbour is dense
        ({4: (2.0, 1.0), 6: (2.0, 1.0)}, 3.0, 20, "sss"),
        ({5: (2.0, 1.0)}, 3.0, 15, "sds"),  # few samples are not batch-inner
    ],
)
def test_sparsify_counts_conversions_between_sparse_convolutions(
    seconds: dict[int, tuple[float, float]],
    converted: float,
    batch_size: int,
    kinds: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(layer: nn.Module, twin: nn.Module, batch_size: int, call: Call) -> Choice:
        sparse, dense = seconds.get(call.output[0], (1.0, 2.0))
        return Choice(sparse, converted if isinstance(twin, choice.BetweenSparse) else dense)

    monkeypatch.setattr(choice, "measure", measure)
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", "")
    model = nn.Sequential(*(nn.Conv2d(n, n + 1, 3) for n in (3, 4, 5)))
    called: list[nn.Module] = []
    for conv in model:
        conv.register_forward_hook(lambda module, x, y: called.append(module))
    masks = {f"{i}.weight": torch.ones_like(conv.weight, dtype=torch.bool) for i, conv in enumerate(model)}
    result = sp.sparsify(model, masks, batch_size=batch_size, input_size=(3, 9, 9))
    assert "".join("s" if isinstance(layer, SparseConv2d) else "d" for layer in result) == kinds
    for layer, outputs in zip(result, (4, 5, 6), strict=True):
        told = layer.choice.endswith(", between sparse layers")
        assert told == (outputs in seconds and kinds != "dds" and batch_size >= 16)
    called.clear()
    result(noise(2, 3, 9, 9))
    assert called == list(result)


def test_a_dense_convolution_between_sparse_ones_is_measured_batch_inner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", "")
    dense = nn.Conv2d(3, 4, 3)
    mask = torch.ones_like(dense.weight, dtype=torch.bool)
    layouts = set()
    forward = choice.BetweenSparse.forward

    def watched(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = forward(self, x)
        y.register_hook(lambda g: layouts.add(("gradient", is_batch_inner_images(g))))
        layouts.update({("x", is_batch_inner_images(x)), ("y", is_batch_inner_images(y))})
        assert torch.equal(y, dense(x))
        return y

    monkeypatch.setattr(choice.BetweenSparse, "forward", watched)
    for first in (False, True):
        layouts.clear()
        call = Call((3, 5, 6), (4, 3, 4), not first)
        found = choice.choose(
            SparseConv2d.from_dense(dense, mask), lambda: dense, 16, call, between_sparse=True
        )
        assert min(found) > 0
        assert layouts == {("x", not first), ("y", True), ("gradient", True)}


def test_sparsify_measures_without_calling_hooks_of_sparse_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def measure(layer: nn.Module, twin: nn.Module, batch_size: int, call: Call | None) -> Choice:
        assert not layer._forward_hooks
        return Choice(1.0, 2.0)

    monkeypatch.setattr(choice, "measure", measure)
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", "")
    model = nn.Sequential(nn.Linear(5, 4))
    model[0].register_forward_hook(lambda module, x, y: calls.append(type(module).__name__))
    sparse = sp.sparsify(model, {"0.weight": torch.eye(4, 5, dtype=torch.bool)})
    assert calls == []
    sparse(noise(2, 5))
    assert calls == ["SparseLinear"]


@pytest.mark.parametrize("make", [models.resnet8, models.vgg16_bn], ids=["resnet8", "vgg16_bn"])
def test_sparsify_of_whole_networks(make: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    model = make((3, 32, 32), 5, 0.125)
    masks = masks_of(model, 0.3)
    reference = masked(model, masks)
    sparse = sp.sparsify(model, masks, input_size=(3, 32, 32), batch_size=16)
    assert {row.choice.partition(" ")[0] for row in sp.summary(sparse).rows} <= {"sparse", "dense", "plain"}
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


@pytest.mark.parametrize(
    ("density", "rows", "batch_size", "dtype", "sparse"),
    [
        (0.25, 1, 16, torch.float32, True),
        (0.5, 1, 16, torch.float32, False),
        (0.5, 4, 16, torch.float32, True),
        (0.25, 1, 16, torch.bfloat16, False),
        (0.75, 4, 16, torch.float32, False),
        (0.25, 1, 15, torch.float32, False),
        (0.25, 4, 15, torch.float32, True),
        (0.25, 1, 16, torch.float64, False),
    ],
)
def test_sparsify_assumes_by_density_where_call_are_not_known(
    density: float, rows: int, batch_size: int, dtype: torch.dtype, sparse: bool, needs_extension: None
) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3)).to(dtype)
    blocks = (torch.arange(8 // rows)[:, None] + torch.arange(36)) % 4 < density * 4
    masks = {"0.weight": blocks.repeat_interleave(rows, 0).view(8, 4, 3, 3)}
    result = sp.sparsify(model, masks, batch_size=batch_size)[0]
    assert type(result) is (SparseConv2d if sparse else MaskedConv2d)
    facts = f"density {density:.3g}, {str(dtype).removeprefix('torch.')}, batch {batch_size}"
    assert result.choice == f"assumed: {facts}; give input_size to measure"


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


# ---- errors ----


class SubLinear(nn.Linear):
    pass


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
            {"4.weight": torch.ones(3, 6)},
            {},
            TypeError,
            "expected the mask to be a bool tensor (True = keep)",
        ),
        (network, {"4.weight": [True]}, {}, TypeError, "(True = keep), got list"),
        (
            network,
            {"0.1.weight": FULL[0, :4]},
            {},
            TypeError,
            "of a Linear or Conv layer, got one of BatchNorm2d",
        ),
        (
            lambda: nn.Sequential(SubLinear(5, 5)),
            {"0.weight": FULL},
            {},
            TypeError,
            "got one of SubLinear; exclude",
        ),
        (
            lambda: nn.ModuleList([nn.MultiheadAttention(5, 1)]),
            {"0.out_proj.weight": FULL},
            {},
            TypeError,
            "got one of NonDynamicallyQuantizableLinear; exclude it in prune(), or use apply_masks()",
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


# ---- densify ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_densify_is_the_exact_inverse(layers: Any, dtype: torch.dtype) -> None:
    model = network().to(dtype)
    masks = masks_of(model)
    sparse = sp.sparsify(model, masks, layers=layers)
    before = state(sparse)
    dense = sp.densify(sparse)
    check_unchanged(sparse, before)
    assert [type(m) for m in dense.modules()] == [type(m) for m in model.modules()]
    assert not any(hasattr(module, "mask") or hasattr(module, "choice") for module in dense.modules())
    check_unchanged(dense, state(masked(model, masks)))
    pointers = {t.data_ptr() for t in sparse.state_dict().values()}
    assert not pointers & {t.data_ptr() for t in dense.state_dict().values()}
    again = sp.sparsify(dense, masks, layers=layers)
    check_unchanged(again, before)


def test_densify_of_a_dense_model_is_a_copy() -> None:
    model = network()
    dense = sp.densify(model)
    assert dense is not model
    check_unchanged(dense, state(model))


# ---- masked layers ----


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.AdamW(parameters, 0.05, weight_decay=0.1),
        lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    ],
)
def test_masked_layers_never_revive_pruned_weights(optimizer: Any, images: Tensor) -> None:
    model = network()
    masks = masks_of(model)
    result = sp.sparsify(model, masks, layers="dense")
    steps = optimizer(result.parameters())
    start = {name: layer_of(result, name).weight.clone() for name in WEIGHTS}
    for step in range(10):
        steps.zero_grad()
        result(images + step).square().mean().backward()
        for name, mask in masks.items():
            assert not layer_of(result, name).weight.grad[~mask].any()
        steps.step()
    for name, mask in masks.items():
        weight = layer_of(result, name).weight
        assert not weight[~mask].any()
        assert (weight != start[name])[mask].any()


def test_masked_layers_ignore_what_others_write_into_pruned_weights(images: Tensor) -> None:
    model = network()
    masks = masks_of(model)
    result = sp.sparsify(model, masks, layers="dense").eval()
    expected = result(images)
    with torch.no_grad():
        for name, mask in masks.items():
            layer_of(result, name).weight.masked_fill_(~mask, 3.0)
    assert torch.equal(result(images), expected)
    assert torch.equal(sp.densify(result)(images), expected)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_sparse_models_copy_and_pickle(
    layers: Any, how: Callable[[nn.Module], nn.Module], images: Tensor
) -> None:
    model = network()
    sparse = sp.sparsify(model, masks_of(model), layers=layers).eval()
    copied = how(sparse)
    check_unchanged(copied, state(sparse))
    assert torch.equal(copied(images), sparse(images))
    assert str(sp.summary(copied)) == str(sp.summary(sparse))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    assert not torch.equal(copied(images), sparse(images))


@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_sparse_models_state_dict_round_trip(layers: Any, images: Tensor) -> None:
    model = network()
    sparse = sp.sparsify(model, masks_of(model, 0.3), layers=layers).eval()
    other = sp.sparsify(network(), masks_of(model, 0.6), layers=layers).eval()
    other.load_state_dict(sparse.state_dict())
    assert torch.equal(other(images), sparse(images))


@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_sparse_models_train_alike(layers: Any, images: Tensor) -> None:
    model = network().double()
    masks = masks_of(model)
    models = (sp.sparsify(model, masks, layers=layers), masked(model, masks))
    for one in models:
        optimizer = torch.optim.SGD(one.parameters(), 0.05)
        for step in range(4):
            optimizer.zero_grad()
            one(images.double() + step).square().mean().backward()
            optimizer.step()
            if one is models[1]:
                sp.apply_masks(one, masks)
    dense = sp.densify(models[0])
    for ours, theirs in zip(dense.parameters(), models[1].parameters(), strict=True):
        assert_half_the_digits(ours, theirs)
