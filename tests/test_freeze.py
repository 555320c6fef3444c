"""``freeze``: networks for inference compute what networks in evaluation mode do, with fewer operators."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_half_the_digits
from small_networks import check_unchanged, masks_of, state
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

import sparseprune as sp
from sparseprune.experiments.models.resnet import resnet8
from sparseprune.experiments.models.vgg import vgg16_bn
from sparseprune.nn.frozen import AddAct2d, FoldedNorm1d, SparseConvAct2d


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(inputs: int, outputs: int, bias: bool = False, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias, **more)


class Residual(nn.Module):
    """A block whose shortcut is a convolution; ``twice`` reads the first result twice."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv(8, 8), nn.BatchNorm2d(8)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv1(x)
        y = self.relu(self.bn1(first))
        y = self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
        return y + first if self.twice else y


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = conv(3, 8, groups=1, bias=True), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn(self.conv(x))).mean((2, 3)))


class WithoutNorm(nn.Module):
    """ReLUs and a residual addition as functions, after convolutions alone and after a batch-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(8, 8, True), conv(8, 8, True), conv(8, 8, True)
        self.bn, self.conv4 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x))
        y = F.relu(self.conv2(y) + x)
        y = F.relu(self.bn(self.conv3(y)))
        z = self.conv4(y)
        return z.relu() + z + y


def images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: images(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), Residual()),
    "read twice": lambda: images(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), Residual(twice=True)),
    "functional": Functional,
    "without batch-norm": lambda: images(conv(3, 8, True), nn.ReLU(), conv(8, 8), nn.ReLU(True)),
    "functional, without batch-norm": lambda: images(conv(3, 8, True), WithoutNorm()),
    "without relu": lambda: images(conv(3, 8), nn.BatchNorm2d(8), conv(8, 8), nn.BatchNorm2d(8)),
    "groups": lambda: images(
        conv(3, 8), nn.BatchNorm2d(8), conv(8, 8, groups=4), nn.BatchNorm2d(8), nn.ReLU()
    ),
    "depthwise": lambda: images(
        conv(3, 8), nn.BatchNorm2d(8), conv(8, 8, groups=8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8)
    ),
    "padded with reflections": lambda: images(
        conv(3, 8), nn.BatchNorm2d(8), conv(8, 8, padding_mode="reflect"), nn.BatchNorm2d(8), nn.ReLU()
    ),
    "not affine": lambda: images(conv(3, 8), nn.BatchNorm2d(8, affine=False), nn.ReLU()),
    "statistics of the batch": lambda: images(
        conv(3, 8), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), conv(8, 8)
    ),
    "pooled": lambda: images(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), conv(8, 8)),
    "one-dimensional": lambda: nn.Sequential(
        *(nn.Flatten(2), nn.Conv1d(3, 6, 5, bias=False), nn.BatchNorm1d(6), nn.ReLU()),
        *(nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(4 * 30, 4)),
    ),
    "linear": lambda: nn.Sequential(
        *(nn.Flatten(), nn.Linear(108, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU()),
        *(nn.Linear(16, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4)),
    ),
    "resnet8": lambda: resnet8((3, 6, 6), classes=4, width=0.25),
}


def trained(make: Callable[[], nn.Module], density: float = 0.4, **options: Any) -> nn.Module:
    """A sparse network whose statistics, weights and biases are no longer the initial ones."""
    torch.manual_seed(0)
    dense = make().double()
    for name, p in dense.named_parameters():
        nn.init.normal_(p, 1.0 if "bn" in name else 0.0, 0.5)
    # As researchers do, the first layer stays dense.
    masks = masks_of(dense, density)
    masks.pop(next(iter(masks)))
    model = sp.sparsify(dense, masks, layers=options.pop("layers", "sparse"), **options)
    with torch.no_grad():
        for seed in range(3):
            model.train()(noise(20, 3, 6, 6, seed=seed) + 1)
    return model


class Recorded(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(operator._opname)
        return operator(*args, **(kwargs or {}))


def operators_of(model: nn.Module, x: Tensor) -> list[str]:
    with Recorded() as recorded, torch.no_grad():
        model(x)
    return recorded.names


@pytest.mark.parametrize("samples", [1, 5, 16, 17])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_frozen_network_computes_the_same(name: str, samples: int) -> None:
    model = trained(NETWORKS[name])
    before = state(model)
    frozen = sp.freeze(model)
    assert model.training
    check_unchanged(model, before)
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    x = noise(samples, 3, 6, 6, seed=9)
    assert_half_the_digits(frozen(x), model.eval()(x), name)
    assert {t.data_ptr() for t in frozen.state_dict().values() if t.numel()}.isdisjoint(
        t.data_ptr() for t in model.state_dict().values()
    )


# A batch-norm after a ReLU stays.
@pytest.mark.parametrize(("name", "norms"), [("residual", 0), ("functional", 0), ("linear", 1)])
@pytest.mark.parametrize("options", [{"fuse": False}, {"layers": "dense"}])
def test_whatever_sparsify_made_can_be_frozen(name: str, norms: int, options: dict[str, Any]) -> None:
    model = trained(NETWORKS[name], **options)
    x = noise(17, 3, 6, 6, seed=9)
    frozen = sp.freeze(model)
    assert_half_the_digits(frozen(x), model.eval()(x), name)
    assert operators_of(frozen, x).count("native_batch_norm") == norms
    assert "batch_norm_act_eval" not in operators_of(frozen, x)


def test_a_dense_network_can_be_frozen() -> None:
    torch.manual_seed(0)
    model = NETWORKS["residual"]().double()
    x = noise(17, 3, 6, 6)
    model(x)
    frozen = sp.freeze(model)
    assert_half_the_digits(frozen(x), model.eval()(x))
    assert "batch_norm" not in " ".join(operators_of(frozen, x))


def test_one_operator_computes_a_convolution_and_what_follows() -> None:
    model = trained(NETWORKS["residual"])
    x = noise(17, 3, 6, 6)
    names = operators_of(sp.freeze(model), x)
    # The shortcut has nothing to add and no ReLU, and the first convolution keeps all of its weights.
    assert names.count("conv2d_act") == 3
    assert names.count("conv2d") == 1
    assert not {"relu", "clamp_min", "add", "convolution", "batch_norm_act_eval"} & set(names)
    names = operators_of(sp.freeze(trained(NETWORKS["without batch-norm"])), x)
    assert "relu" not in names[names.index("conv2d_act") :]


def test_convolutions_take_in_what_follows_in_a_forward() -> None:
    model = trained(NETWORKS["functional, without batch-norm"])
    frozen, x = sp.freeze(model), noise(17, 3, 6, 6)
    names = operators_of(frozen, x)
    assert names.count("conv2d_act") == 3
    # What is read twice is left: of conv4.
    assert names.count("relu") == 1
    assert type(frozen[1].conv4) is sp.SparseConv2d
    for copied in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert_half_the_digits(copied(x), model.eval()(x))


def test_depthwise_convolutions_stay_dense() -> None:
    frozen = sp.freeze(trained(NETWORKS["depthwise"]))
    assert type(frozen[2]) is nn.Conv2d
    assert type(frozen[3]) is AddAct2d


def test_what_is_not_alone_is_left_as_it_is() -> None:
    model = trained(NETWORKS["read twice"])
    block = sp.freeze(model)[3]
    assert type(block.conv1) is sp.SparseConv2d
    assert type(block.bn2) is SparseConvAct2d

    seen: list[Tensor] = []
    model = trained(NETWORKS["residual"], fuse=False)
    model[3].conv2.register_forward_hook(lambda module, inputs, output: seen.append(output))
    frozen = sp.freeze(model)
    x = noise(17, 3, 6, 6)
    assert_half_the_digits(frozen(x), model.eval()(x))
    assert len(seen) == 2
    assert type(frozen[3].conv2) is sp.SparseConv2d

    shared = conv(8, 8)
    model = trained(lambda: images(conv(3, 8), shared, nn.BatchNorm2d(8), shared, nn.BatchNorm2d(8)))
    assert_half_the_digits(sp.freeze(model)(x), model.eval()(x))

    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(conv(3, 8)), nn.BatchNorm2d(8)).double()
    model(x)
    frozen = sp.freeze(model)
    assert_half_the_digits(frozen(x), model.eval()(x))
    assert type(frozen[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("samples", [3, 17])
def test_the_gradient_of_the_input_is_that_of_the_network(samples: int) -> None:
    model = trained(NETWORKS["residual"])
    frozen = sp.freeze(model)
    x = noise(samples, 3, 6, 6, seed=9).requires_grad_()
    gradients = [torch.autograd.grad(m(x).square().sum(), x)[0] for m in (frozen, model.eval())]
    assert_half_the_digits(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = trained(NETWORKS["residual"])
    x = noise(17, 3, 6, 6).to(dtype)
    frozen = sp.freeze(model.to(dtype))
    y = frozen(x)
    assert y.dtype == dtype
    exact = copy.deepcopy(model).double().eval()(x.double())
    assert_half_the_digits(y, exact.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sp.freeze(model.float())(x.float()).dtype == torch.bfloat16


@pytest.mark.parametrize("samples", [3, 17])
def test_frozen_networks_are_copied_compiled_and_exported(samples: int) -> None:
    frozen = sp.freeze(trained(NETWORKS["residual"]))
    x = noise(samples, 3, 6, 6)
    expected = frozen(x)
    assert torch.equal(copy.deepcopy(frozen)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(frozen))(x), expected)
    compiled = torch.compile(frozen, backend="aot_eager", fullgraph=True)
    assert_half_the_digits(compiled(x), expected)
    program = torch.export.export(frozen, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    assert_half_the_digits(program.module()(x), expected)
    assert_half_the_digits(torch.func.vmap(frozen)(x[:, None])[:, 0], expected)


def test_what_freeze_refuses() -> None:
    with pytest.raises(TypeError, match=r"freeze: expected a torch\.nn\.Module, got Tensor"):
        sp.freeze(torch.zeros(1))  # type: ignore[arg-type]
    frozen = sp.freeze(trained(NETWORKS["residual"]))
    with pytest.raises(ValueError, match="densify: expected a model as it was before freeze"):
        sp.densify(frozen)
    linear = sp.freeze(trained(NETWORKS["linear"]))
    assert type(linear[2]) is FoldedNorm1d
    with pytest.raises(ValueError, match=r"expected \(samples, features\), .* got \[2, 3, 16\]"):
        linear[2](torch.zeros(2, 3, 16))


def test_a_dense_convolution_leaves_addition_and_relu_to_a_module() -> None:
    torch.manual_seed(0)
    model = images(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8), nn.ReLU())
    masks = {"3.weight": torch.rand(8, 8, 3, 3) < 0.3}
    sparse = sp.sparsify(model.double(), masks, layers="sparse")
    x = noise(17, 8, 6, 6)
    sparse(x)
    frozen = sp.freeze(sparse)
    assert type(frozen[1]) is AddAct2d
    assert_half_the_digits(frozen(x), sparse.eval()(x))
    assert "relu=True" in repr(frozen)


def test_a_deep_network_is_folded_whole() -> None:
    torch.manual_seed(0)
    model = vgg16_bn(width=0.125, classes=4)
    masks = masks_of(model, only=lambda name: name.startswith("features"))
    sparse = sp.sparsify(model, masks, layers="sparse").eval()
    frozen = sp.freeze(sparse)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    x = torch.randn(17, 3, 32, 32)
    assert_half_the_digits(frozen(x), sparse(x))
