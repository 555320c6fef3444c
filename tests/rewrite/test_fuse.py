import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_half_the_digits
from torch import Tensor, nn

from sparseprune.experiments.models.resnet import resnet8
from sparseprune.experiments.models.vgg import vgg16_bn
from sparseprune.experiments.models.wide_resnet import wrn
from sparseprune.format.bsr import at_blocks
from sparseprune.nn import FusedReLU, SparseConv2d, SparseLinear
from sparseprune.nn.batch_norm import BatchNormAct2d
from sparseprune.nn.pooling import BatchInnerMaxPool2d
from sparseprune.rewrite.forward import Rewritten
from sparseprune.rewrite.fuse import fuse, unfuse
from sparseprune.rewrite.layout import mark_layout


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(inputs: int = 4, outputs: int = 4, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class Block(nn.Module):
    """As most people write it."""

    def __init__(self, inputs: int = 4, outputs: int = 4, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class SharedReLU(Block):
    """As in torchvision."""

    def __init__(self, inputs: int = 4, outputs: int = 4, stride: int = 1) -> None:
        super().__init__(inputs, outputs, stride)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = self.shortcut if len(self.shortcut) else None
        del self.shortcut

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class PaddedShortcut(Block):
    """Option A of the article, and methods in place of functions."""

    def __init__(self, inputs: int = 4, outputs: int = 4, stride: int = 1) -> None:
        super().__init__(inputs, outputs, stride)
        self.shortcut = nn.Sequential()
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return out.add(short).relu()


class Whole(nn.Module):
    def __init__(self, block: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 4), nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.layers = nn.Sequential(block(4, 4), block(4, 6, 2))
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(self.pool(F.relu(self.bn1(self.conv1(x)))))
        out = F.avg_pool2d(out, 2)
        out = out.view(out.size(0), -1)
        return self.linear(out)


def pair(model: nn.Module, density: float = 0.4) -> tuple[nn.Module, nn.Module]:
    """The model with all convolutions but the first sparse, and the dense model with zeros in place."""
    dense = copy.deepcopy(model).double()
    sparse = copy.deepcopy(dense)
    generator = torch.Generator().manual_seed(1)
    names = [name for name, module in dense.named_modules() if isinstance(module, nn.Conv2d)]
    for name in names[1:]:
        layer = dense.get_submodule(name)
        mask = torch.rand(layer.weight.shape, generator=generator) < density
        layer.weight.data.mul_(mask)
        parent, _, child = name.rpartition(".")
        setattr(sparse.get_submodule(parent), child, SparseConv2d.from_dense(layer, mask))
    return sparse, dense


def fused_pair(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    sparse, dense = pair(model)
    fused = fuse(sparse)
    assert fused is sparse
    mark_layout(fused)
    return fused, dense


def check_same(ours: nn.Module, theirs: nn.Module, samples: int = 17) -> None:
    """Results, all gradients and running statistics, in training and in evaluation mode."""
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        xs = [noise(samples, 3, 8, 8).requires_grad_() for _ in range(2)]
        ys = [model(x) for model, x in zip((ours, theirs), xs, strict=True)]
        assert_half_the_digits(*ys)
        assert ys[0].is_contiguous()
        for model, y in zip((ours, theirs), ys, strict=True):
            model.zero_grad()
            y.backward(noise(*y.shape, seed=1))
        assert_half_the_digits(xs[0].grad, xs[1].grad)
        for name, module in ours.named_modules():
            twin = theirs.get_submodule(name)
            if isinstance(module, SparseConv2d):
                values = at_blocks(twin.weight.grad.flatten(1), module.crow, module.col, module.block[0])
                assert_half_the_digits(module.values.grad, values, name)
            for key, parameter in module.named_parameters(recurse=False):
                if key != "values":
                    assert_half_the_digits(parameter.grad, twin.get_parameter(key).grad)
    for key, tensor in ours.state_dict().items():
        if not key.endswith((".values", ".crow", ".col")):
            assert_half_the_digits(tensor, theirs.state_dict()[key])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "F.relu, +=": lambda: Whole(Block),
    "shared nn.ReLU": lambda: Whole(SharedReLU),
    "methods, padding": lambda: Whole(PaddedShortcut),
    "resnet8": lambda: resnet8((3, 8, 8), width=0.1),
    "wrn": lambda: wrn(10, 1, (3, 8, 8), width=0.3),
    "vgg": lambda: vgg16_bn((3, 8, 8), width=0.05),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[request.param]()


@pytest.mark.parametrize("samples", [2, 17])
def test_fuse_changes_no_number(network: nn.Module, samples: int) -> None:
    fused, dense = fused_pair(network)
    norms = [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(module, BatchNormAct2d) for module in norms)
    check_same(fused, dense, samples)


def test_fuse_keeps_names_and_parameters(network: nn.Module) -> None:
    sparse, _ = pair(network)
    names, keys = [name for name, _ in sparse.named_modules()], list(sparse.state_dict())
    parameters = dict(sparse.named_parameters())
    fused = fuse(sparse)
    assert [name for name, _ in fused.named_modules()] == names
    assert list(fused.state_dict()) == keys
    assert all(parameter is parameters[name] for name, parameter in fused.named_parameters())
    assert type(fused).__name__ == type(network).__name__
    assert isinstance(fused, type(network))


@pytest.mark.parametrize("block", [Block, SharedReLU, PaddedShortcut])
def test_fuse_takes_over_residuals_and_relus_of_a_block(block: Callable[..., nn.Module]) -> None:
    fused, _ = fused_pair(Whole(block))
    seen: list[int] = []
    for name in ("layers.0.bn1", "layers.0.bn2", "layers.1.bn2"):
        norm = fused.get_submodule(name)
        assert norm.relu
        norm.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs)))
    fused(noise(16, 3, 8, 8))
    assert seen == [1, 2, 2]
    assert fused.bn1.relu
    assert isinstance(fused.pool, BatchInnerMaxPool2d)


@pytest.mark.parametrize(
    "how",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: copy.deepcopy(pickle.loads(pickle.dumps(copy.deepcopy(model)))),
    ],
)
def test_fused_models_survive_copies(how: Callable[[nn.Module], nn.Module], network: nn.Module) -> None:
    fused, dense = fused_pair(network)
    copied = how(fused)
    assert not {id(p) for p in fused.parameters()} & {id(p) for p in copied.parameters()}
    before = {name: tensor.clone() for name, tensor in fused.state_dict().items()}
    check_same(copied, dense)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fused.state_dict().items())
    unfused = unfuse(copied)
    assert [type(m) for m in unfused.modules() if type(m) is not SparseConv2d] == [
        type(m)
        for m, twin in zip(dense.modules(), fused.modules(), strict=True)
        if type(twin) is not SparseConv2d
    ]


def test_fused_models_compile() -> None:
    torch._dynamo.reset()
    fused, dense = fused_pair(Whole(SharedReLU))
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    x = noise(17, 3, 8, 8)
    assert_half_the_digits(compiled(x), dense(x))
    assert_half_the_digits(fused.bn1.running_var, dense.bn1.running_var)


def test_unfuse_undoes_everything(network: nn.Module) -> None:
    fused, dense = fused_pair(network)
    unfused = unfuse(fused)
    kinds = {id(m): type(m) for m in dense.modules()}
    for name, module in dense.named_modules():
        if not isinstance(unfused.get_submodule(name), SparseConv2d):
            assert type(unfused.get_submodule(name)) is kinds[id(module)]
    check_same(unfused, dense)
    assert any(isinstance(module, BatchNormAct2d) for module in fused.modules())


# ---- what must be left alone ----


class Variant(nn.Module):
    """A block whose forward is ``how(block, x)``, between convolutions."""

    def __init__(self, how: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv0, self.conv1, self.bn = conv(3, 4), conv(), nn.BatchNorm2d(4)
        self.conv2, self.scale, self.how, self.flag = conv(), 2.0, how, True

    def forward(self, x: Tensor) -> Tensor:
        how = self.how
        return self.conv2(how(self, self.conv0(x)))


def relu_and_raw(block: Any, x: Tensor) -> Tensor:
    y = block.bn(block.conv1(x))
    return F.relu(y) + y


def changes_residual(block: Any, x: Tensor) -> Tensor:
    z = x
    x += block.bn(block.conv1(x + 0))
    return F.relu(x) + z


def called_twice(block: Any, x: Tensor) -> Tensor:
    return F.relu(block.bn(block.conv1(x))) + F.relu(block.bn(x))


def scaled_addition(block: Any, x: Tensor) -> Tensor:
    return torch.add(block.bn(block.conv1(x)), x, alpha=2)


def added_to_itself(block: Any, x: Tensor) -> Tensor:
    y = block.bn(block.conv1(x))
    return F.relu(y + y)


def adds_a_size(block: Any, x: Tensor) -> Tensor:
    return F.tanh(block.bn(block.conv1(x)) + x.size(1))


def random_depth(block: Any, x: Tensor) -> Tensor:
    y = block.bn(block.conv1(x))
    return F.relu(y) if random.random() < 2 else x


def by_mode(block: Any, x: Tensor) -> Tensor:
    y = block.bn(block.conv1(x))
    return F.relu(y) if block.training else y


def by_numbers(block: Any, x: Tensor) -> Tensor:
    y = block.bn(block.conv1(x))
    return F.relu(y) if x.sum() > -1e9 else y


def broadcast(block: Any, x: Tensor) -> Tensor:
    return F.relu(block.bn(block.conv1(x)) + F.adaptive_avg_pool2d(x, 1))


def viewed(block: Any, x: Tensor) -> Tensor:
    y = F.relu(block.bn(block.conv1(x)))
    return y.view(y.size(0), -1).view(y.shape)


VARIANTS = [
    relu_and_raw,
    changes_residual,
    called_twice,
    scaled_addition,
    added_to_itself,
    adds_a_size,
    random_depth,
    by_mode,
    by_numbers,
    broadcast,
    viewed,
]


@pytest.mark.parametrize("how", VARIANTS)
def test_fuse_changes_no_number_of_unusual_forwards(how: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    state = random.getstate()
    fused, dense = fused_pair(Variant(how))
    assert random.getstate() == state
    check_same(fused, dense)


class Scheduled(Variant):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv1(self.conv0(x))))
        return self.conv2(x * self.scale)


class Flagged(Variant):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv1(self.conv0(x))))
        return self.conv2(x) if self.flag else x


class Optional(Variant):
    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        y = F.relu(self.bn(self.conv1(self.conv0(x))))
        return self.conv2(y) if more is None else y


@pytest.mark.parametrize("kind", [Scheduled, Flagged, Optional])
def test_forwards_follow_their_attributes_and_arguments(kind: type[Variant]) -> None:
    fused, dense = fused_pair(kind(relu_and_raw))
    assert isinstance(fused, Rewritten) == (kind is Flagged)
    check_same(fused, dense)
    for model in (fused, dense):
        model.scale = 3.0
    check_same(fused, dense)
    if kind is Optional:
        x = noise(17, 3, 8, 8)
        assert_half_the_digits(fused(x, x), dense(x, x))


def test_fused_forwards_refuse_what_would_change_them() -> None:
    fused, dense = fused_pair(Flagged(relu_and_raw))
    with pytest.raises(
        AttributeError, match=r"^Flagged: expected 'flag' to stay True, with which sparsify\(\)"
    ):
        fused.flag = False
    with pytest.raises(AttributeError, match=r"^Flagged: expected 'bn' to stay a BatchNormAct2d, which comp"):
        fused.bn = nn.Identity()
    fused.flag, fused.scale = True, 1.0
    check_same(fused, dense)
    unfused = unfuse(fused)
    unfused.flag = False
    assert not isinstance(unfused, Rewritten)


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


def test_fuse_leaves_what_hooks_see() -> None:
    model = Whole(Block)
    hooked(model.bn1)
    hooked(model.layers[0].bn2)
    fused, dense = fused_pair(model)
    assert type(fused.bn1) is type(fused.layers[0].bn2) is nn.BatchNorm2d
    assert fused.layers[0].bn1.relu
    check_same(fused, dense)


def test_hooks_of_fused_models_are_called() -> None:
    fused, _ = fused_pair(Whole(SharedReLU))
    seen: list[nn.Module] = []
    modules = [fused, fused.layers, fused.layers[0], fused.layers[1].downsample, fused.layers[1].bn2]
    for module in modules:
        module.register_forward_hook(lambda module, inputs, y: seen.append(module))
    fused(noise(17, 3, 8, 8))
    assert {id(module) for module in seen} == {id(module) for module in modules}


def test_fuse_leaves_dense_networks_alone(network: nn.Module) -> None:
    before = [type(module) for module in network.modules()]
    assert [type(module) for module in fuse(network).modules()] == before


def test_fuse_in_sequential() -> None:
    model = nn.Sequential(conv(3), conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), conv(), nn.ReLU())
    fused, dense = fused_pair(model)
    kinds = [nn.Conv2d, SparseConv2d, BatchNormAct2d, FusedReLU, BatchInnerMaxPool2d, SparseConv2d, nn.ReLU]
    assert [type(module) for module in fused] == kinds
    assert fused[2].relu
    check_same(fused, dense)
    with pytest.raises(
        ValueError, match=r"'2' in an nn\.Sequential, since nn\.BatchNorm2d cannot hold its ReLU"
    ):
        unfuse(fused[:3])


def test_fuse_of_linear_layers() -> None:
    layer = SparseLinear.from_dense(nn.Linear(5, 5), torch.eye(5, dtype=torch.bool))
    model = fuse(nn.Sequential(layer, nn.ReLU(inplace=True)))
    assert layer.relu
    assert isinstance(model[1], FusedReLU)
    assert [type(module) for module in unfuse(model)] == [SparseLinear, nn.ReLU]
    assert not unfuse(model)[0].relu
    assert layer.relu


class Perceptron(nn.Module):
    """As most people write one; ``fc3`` gives a result that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 9), nn.Linear(9, 9), nn.Linear(9, 4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x.flatten(1)))
        x = self.act(self.fc2(x))
        x = self.fc3(x)
        return x.relu() + x


@pytest.mark.parametrize("samples", [1, 17])
def test_linear_layers_take_over_the_relus_of_a_forward(samples: int) -> None:
    torch.manual_seed(0)
    dense = Perceptron().double()
    fused = copy.deepcopy(dense)
    for name, layer in dense.named_children():
        if isinstance(layer, nn.Linear):
            mask = torch.rand(layer.weight.shape) < 0.5
            layer.weight.data.mul_(mask)
            setattr(fused, name, SparseLinear.from_dense(layer, mask))
    fused = fuse(fused)
    assert [layer.relu for layer in (fused.fc1, fused.fc2, fused.fc3)] == [True, True, False]
    x = noise(samples, 3, 4)
    for model in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), unfuse(fused)):
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [model(inputs[0]), dense(inputs[1])]
        for y in outputs:
            y.square().sum().backward()
        assert_half_the_digits(outputs[0].detach(), outputs[1].detach(), "y")
        assert inputs[0].grad is not None
        assert inputs[1].grad is not None
        assert_half_the_digits(inputs[0].grad, inputs[1].grad, "x")
    assert type(unfuse(fused)) is Perceptron
    assert not unfuse(fused).fc1.relu
    with pytest.raises(AttributeError, match="expected 'fc1' to stay a SparseLinear"):
        fused.fc1 = nn.Linear(12, 9)


class ReadsWeight(nn.Module):
    """As T5's: looks at a layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc(x)) * self.fc.weight.sum()


def test_a_forward_that_reads_the_weight_of_a_layer_stays() -> None:
    block = ReadsWeight()
    block.fc = SparseLinear.from_dense(block.fc, torch.eye(5, dtype=torch.bool))  # type: ignore[assignment]
    fuse(block)
    assert not isinstance(block, Rewritten)
    x = torch.ones(2, 5)
    before = block(x)
    with torch.no_grad():
        block.fc.values.mul_(2)  # type: ignore[operator]
    assert not torch.equal(block(x), before)
