"""The layout of activations in a sparse model, and the ReLUs that sparse layers compute."""

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_half_the_digits
from small_networks import check_unchanged, layer_of, masked, masks_of, noise, state
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.format.memory import is_batch_inner_images
from sparseprune.nn import FusedReLU, SparseConv2d, SparseLinear
from sparseprune.rewrite.fuse import fuse
from sparseprune.rewrite.layout import POINTWISE, mark_layout

# ---- layout of activations ----


def full(model: nn.Module, density: float = 0.3) -> nn.Module:
    """The model with all its linear layers sparse."""
    return sp.sparsify(model, masks_of(model, density), layers="sparse")


def flags(model: nn.Module) -> list[bool | None]:
    return [module.batch_inner for module in model.modules() if isinstance(module, SparseLinear)]


def lin(rows: int = 8, cols: int = 8) -> nn.Linear:
    return nn.Linear(cols, rows)


class OwnForward(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(-1)


SHARED = nn.ReLU()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Sequential(lin()), [None]),
        (lambda: nn.Sequential(lin(), lin()), [True, False]),
        (lambda: nn.Sequential(lin(), nn.ReLU(), nn.Dropout(), lin(), nn.Tanh()), [True, False]),
        (lambda: nn.Sequential(lin(), SHARED, lin(), SHARED, lin()), [True, True, False]),
        (lambda: nn.Sequential(lin(), nn.LayerNorm(8), lin()), [None, None]),
        (lambda: nn.Sequential(lin(), lin(), nn.Softmax(1), lin(), lin()), [True, False, True, False]),
        (lambda: nn.Sequential(lin(), nn.Sequential(nn.ReLU(), lin()), nn.ELU(), lin()), [True, True, False]),
        (lambda: nn.Sequential(lin(), OwnForward(lin(), nn.ReLU(), lin()), lin()), [None] * 4),
        (lambda: nn.ModuleList([lin(), lin()]), [None, None]),
        (
            lambda: nn.ModuleDict({"a": nn.Sequential(lin(), nn.GELU(), lin()), "b": lin()}),
            [True, False, None],
        ),
    ],
)
def test_sparsify_marks_runs_of_sparse_layers(
    make: Callable[[], nn.Module], expected: list[bool | None]
) -> None:
    model = make()
    assert flags(full(model)) == expected
    inplace = sp.sparsify(model, masks_of(model), layers="sparse", inplace=True)
    assert flags(inplace) == expected


def test_sparsify_marks_only_what_is_sparse() -> None:
    model = nn.Sequential(lin(), nn.ReLU(), lin(), nn.ReLU(), lin(), nn.ReLU(), lin())
    masks = masks_of(model)
    del masks["4.weight"]
    assert flags(sp.sparsify(model, masks, layers="sparse")) == [True, False, None]
    last = model[2]
    shared = nn.Sequential(model, nn.LayerNorm(8), nn.Sequential(last, nn.ReLU(), lin()))
    masks = {name: mask for name, mask in masks_of(shared).items() if "0.4" not in name}
    sparse = sp.sparsify(shared, masks, layers="sparse")
    assert sparse[0][2] is sparse[2][0]
    assert sparse[0][2].batch_inner is False


@pytest.mark.parametrize("pointwise", POINTWISE)
def test_runs_transpose_once_at_each_end(pointwise: type[nn.Module]) -> None:
    model = nn.Sequential(
        lin(9, 7), pointwise(), lin(11, 9), nn.Sequential(pointwise(), lin(5, 11)), nn.ReLU()
    )
    masks = masks_of(model, 0.5)
    model.double().eval()
    sparse, reference = sp.sparsify(model, masks, layers="sparse"), masked(model, masks)
    seen = []
    for module in [sparse[0], sparse[1], sparse[2], sparse[3][0]]:
        module.register_forward_hook(lambda module, inputs, y: seen.append(y.stride()))
        module.register_full_backward_hook(lambda module, grads, g: seen.append(g[0].stride()))
    xs = [noise(17, 7).double().requires_grad_() for _ in range(2)]
    ys = [one(x) for one, x in zip((sparse, reference), xs, strict=True)]
    assert seen == [(1, 17)] * 4
    assert ys[0].is_contiguous()
    assert_half_the_digits(*ys)
    for y in ys:
        y.backward(noise(17, 5, seed=1).double())
    assert seen == [(1, 17)] * 8  # gradients as well
    assert_half_the_digits(xs[0].grad, xs[1].grad)
    dense = sp.densify(sparse)
    for name, mask in masks.items():
        layer, theirs = layer_of(sparse, name), layer_of(reference, name)
        assert_half_the_digits(layer.values.grad[:, 0], theirs.weight.grad[mask])
        assert_half_the_digits(layer.bias.grad, theirs.bias.grad)
        assert torch.equal(layer_of(dense, name).weight, theirs.weight)


def test_runs_train_with_dropout_and_any_leading_dimensions() -> None:
    sparse = full(nn.Sequential(lin(), nn.Dropout(0.5), lin(), nn.ReLU(inplace=True), lin()))
    for x in (noise(3, 6, 8), noise(8), noise(0, 8), noise(1, 8), noise(8, 20).t()):
        y = sparse(x)
        assert y.shape == x.shape
        assert y.is_contiguous()
        y.sum().backward()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_runs_survive_copies_and_compile(how: Callable[[nn.Module], nn.Module]) -> None:
    torch._dynamo.reset()
    sparse = full(nn.Sequential(lin(), nn.ReLU(), lin()))
    copied = how(sparse)
    assert flags(copied) == [True, False]
    compiled = torch.compile(copied, backend="aot_eager", fullgraph=True)
    results = []
    for model in (sparse, compiled):
        x = noise(17, 8).requires_grad_()
        y = model(x)
        assert y.is_contiguous()
        y.square().sum().backward()
        results.append([y, x.grad])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    parameters = zip(sparse.parameters(), copied.parameters(), strict=True)
    for ours, theirs in parameters:
        assert torch.equal(ours.grad, theirs.grad)


# ---- ReLUs that sparse layers take over ----


class Subclass(nn.ReLU):
    pass


def hooked(module: nn.Module, register: str = "register_forward_hook") -> nn.Module:
    getattr(module, register)(lambda *_: None)
    return module


ONCE = lin()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Sequential(lin(), nn.ReLU(), lin(), nn.ReLU(inplace=True)), [True, True]),
        (lambda: nn.Sequential(lin(), nn.Sequential(lin(), nn.ReLU()), nn.ReLU()), [False, True]),
        (lambda: nn.ModuleList([lin(), nn.ReLU(), nn.Sequential(lin(), nn.ReLU())]), [False, True]),
        # Something else between them, or another class.
        (lambda: nn.Sequential(lin(), nn.Dropout(), nn.ReLU(), nn.ReLU(), lin()), [False, False]),
        (lambda: nn.Sequential(lin(), nn.Identity(), nn.ReLU()), [False]),
        (lambda: nn.Sequential(lin(), Subclass(), lin(), nn.ReLU6()), [False, False]),
        (lambda: nn.Sequential(nn.Sequential(lin()), nn.ReLU()), [False]),
        # Used in several places.
        (lambda: nn.Sequential(lin(), SHARED, lin(), SHARED, lin(), nn.ReLU()), [False, False, True]),
        (lambda: nn.Sequential(ONCE, nn.ReLU(), ONCE, nn.Tanh()), [False]),
        (lambda: nn.ModuleList([nn.Sequential(ONCE, nn.ReLU()), nn.Sequential(ONCE)]), [False]),
        # Seen by a hook.
        (lambda: nn.Sequential(lin(), hooked(nn.ReLU()), lin(), nn.ReLU()), [False, True]),
        (lambda: nn.Sequential(lin(), hooked(nn.ReLU(), "register_forward_pre_hook")), [False]),
        (lambda: nn.Sequential(lin(), hooked(nn.ReLU(), "register_full_backward_hook")), [False]),
        (lambda: nn.Sequential(hooked(lin()), nn.ReLU()), [False]),
    ],
)
def test_sparsify_fuses_relus(make: Callable[[], nn.Module], expected: list[bool]) -> None:
    model = make()
    masks = masks_of(model)
    sparse = sp.sparsify(model, masks, layers="sparse")
    assert [m.relu for m in sparse.modules() if isinstance(m, SparseLinear)] == expected
    fused = [name for name, module in sparse.named_modules() if isinstance(module, FusedReLU)]
    assert len(fused) == sum(expected)
    assert all(type(model.get_submodule(name)) is nn.ReLU for name in fused)
    apart = sp.sparsify(model, masks, layers="sparse", fuse=False)
    assert [name for name, _ in sparse.named_modules()] == [name for name, _ in apart.named_modules()]
    assert not any(isinstance(m, FusedReLU) or getattr(m, "relu", False) for m in apart.modules())
    check_unchanged(sparse, state(apart))
    assert str(sp.summary(sparse)) == str(sp.summary(apart))
    assert [type(m) for m in sp.densify(sparse).modules()] == [type(m) for m in model.modules()]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_relus_change_no_number(dtype: torch.dtype, inplace: bool) -> None:
    model = nn.Sequential(lin(), nn.ReLU(inplace=True), lin(), nn.ReLU(), nn.Dropout(0.0), lin(3)).to(dtype)
    model[3].eval()
    masks = masks_of(model)
    apart = sp.sparsify(model, masks, layers="sparse", fuse=False)
    fused = sp.sparsify(model, masks, layers="sparse", inplace=inplace)
    assert re.findall(r"FusedReLU\(.*\)", repr(fused)) == ["FusedReLU(inplace=True)", "FusedReLU()"]
    results = []
    for one in (fused, apart):
        for needs in (True, False):
            x = noise(17, 8).to(dtype).requires_grad_(needs)
            one.zero_grad()
            y = one(x)
            y.backward(noise(17, 3, seed=1).to(dtype))
            results.append([y, x.grad, *(p.grad for p in one.parameters())])
    for ours, theirs in zip(results[0] + results[1], results[2] + results[3], strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)
    assert torch.equal(fused[:1](x), apart[:2](x))  # documented
    fused.load_state_dict(apart.state_dict())
    dense = sp.densify(fused)
    assert [str(dense[i]) for i in (1, 3)] == ["ReLU(inplace=True)", "ReLU()"]
    assert [dense[i].training for i in (1, 3)] == [True, False]
    check_unchanged(dense, state(sp.densify(apart)))
    assert_half_the_digits(dense(x), fused(x))


def test_dense_layers_keep_their_relus() -> None:
    model = nn.Sequential(lin(), nn.ReLU(), lin(), nn.ReLU(), nn.Conv1d(1, 1, 1), nn.ReLU())
    masks = masks_of(model)
    del masks["2.weight"]
    for layers, expected in (("dense", nn.ReLU), ("sparse", FusedReLU)):
        sparse = sp.sparsify(model, masks, layers=layers)
        assert [type(sparse[i]) for i in (1, 3, 5)] == [expected, nn.ReLU, nn.ReLU]


def test_densify_refuses_to_drop_a_relu() -> None:
    sparse = full(nn.Sequential(lin(), nn.ReLU(), lin()))
    for model, name in [
        (sparse[:1], "0"),
        (sparse[0], "the layer"),
        (nn.ModuleDict({"a": sparse[0], "b": sparse[1]}), "a"),
    ]:
        with pytest.raises(ValueError, match=rf"^densify: expected a FusedReLU after '{name}' in an nn\.Seq"):
            sp.densify(model)
    assert [type(m) for m in sp.densify(sparse[:2])] == [nn.Linear, nn.ReLU]


# ---- layout along a whole network ----


def conv(inputs: int = 4, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def sparse_convs(model: nn.Module) -> nn.Module:
    """All convolutions sparse, pools and batch-norms fused, layout marked."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d:
                mask = noise(*child.weight.shape) > 0
                setattr(parent, name, SparseConv2d.from_dense(child, mask))
    fuse(model)
    mark_layout(model)
    return model


class Ends(nn.Module):
    """A network whose last activations go through ``end``."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.end, self.a, self.b = end, conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.b(F.relu(self.a(x))))


@pytest.mark.parametrize(
    "end",
    [
        lambda y: y,
        lambda y: y.view(y.size(0), -1),
        lambda y: torch.relu(y + 1).view(y.size(0), -1),
        lambda y: y.clone().mul_(2).view(-1),
        lambda y: F.max_pool2d(y, 2).view(y.size(0), -1),
        lambda y: F.adaptive_avg_pool2d(y, 1).view(y.size(0), -1),
        lambda y: y.mean((2, 3)).view(-1),
        lambda y: torch.cat([y, y], 1).view(y.size(0), -1),
        lambda y: y.flatten(1).view(-1),
        lambda y: y.permute(0, 2, 3, 1).contiguous().view(-1),
        lambda y: torch.as_strided(y, (2, 4), (4, 1)),
    ],
)
def test_what_may_depend_on_strides_gets_ordinary_memory(end: Callable[[Tensor], Tensor]) -> None:
    model = sparse_convs(Ends(end))
    x, seen = noise(17, 4, 6, 6), []
    for module in (model.a, model.b):
        module.register_forward_hook(lambda module, inputs, y: seen.append(y))
    y = model(x)
    assert is_batch_inner_images(seen[0])
    model.end = nn.Identity()
    assert torch.equal(y, end(model(x).contiguous()))


@pytest.mark.parametrize("by_numbers", [False, True])
def test_networks_that_cannot_be_followed_are_followed_in_parts(by_numbers: bool) -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList([nn.Sequential(conv(), nn.ReLU(), conv()) for _ in range(2)])
            self.alone = conv()

        def forward(self, x: Tensor) -> Tensor:
            for stage in self.stages:
                x = stage(x)
                if not by_numbers or x.sum() > -1e9:
                    x = self.alone(x)
            return x

    model = sparse_convs(Decides())
    found = [m.batch_inner for m in model.modules() if isinstance(m, SparseConv2d)]
    # Followed as a whole, the last call of `alone` returns what the network does.
    assert found == ([True, False] * 2 + [False] if by_numbers else [True] * 4 + [False])


def test_layout_of_linear_layers_after_convolutions() -> None:
    model = sparse_convs(nn.Sequential(conv(), nn.ReLU(), conv(), nn.MaxPool2d(2), nn.Flatten(), lin(8, 16)))
    model[5] = SparseLinear.from_dense(model[5], noise(8, 16) > 0)
    mark_layout(model)
    assert [m.batch_inner for m in model if hasattr(m, "batch_inner")] == [True, True, True, False]
    seen: list[Tensor] = []
    model[5].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    y = model(noise(17, 4, 4, 4))
    assert seen[0].stride() == (1, 17)  # flattened without a copy
    assert y.is_contiguous()


def test_activations_are_brought_into_the_layout_before_they_are_pooled() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), conv(), nn.BatchNorm2d(4))
    masks = {"4.weight": torch.rand(4, 4, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5}
    sparse = sp.sparsify(model.double(), masks, layers="sparse")
    # The batch-norm after the dense convolution, the pool, the sparse convolution; the last gives the output.
    assert [m.batch_inner for m in sparse if hasattr(m, "batch_inner")] == [True, True, True, False]


def test_layers_before_dense_convolutions_give_ordinary_memory() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())
    sparse_convs(model)
    model.append(conv())
    mark_layout(model)
    assert [m.batch_inner for m in model if hasattr(m, "batch_inner")] == [True, False]


def test_a_forward_of_its_own_keeps_the_relu_that_a_layer_takes_over() -> None:
    model = nn.Sequential(nn.ReLU(), lin(), OwnForward(lin(), nn.ReLU()))
    sparse: Any = sp.sparsify(model, masks_of(model), layers="sparse")
    # Not a FusedReLU: its forward no longer calls the module.
    assert [sparse[1].relu, sparse[2][0].relu, type(sparse[2][1])] == [False, True, nn.ReLU]
    assert type(sp.densify(sparse)[2]) is OwnForward
