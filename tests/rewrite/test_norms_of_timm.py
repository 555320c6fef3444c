"""timm's ``BatchNormAct2d`` next to sparse convolutions, where timm is installed."""

import copy
import pickle
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from bounds import assert_half_the_digits
from small_networks import masks_of
from torch import Tensor, nn

import sparseprune as sp
from bench.models.libraries import load
from sparseprune.nn.batch_norm import BatchNormAct2d, BatchNormAnyAct2d

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # timm's


@pytest.fixture
def norm_act() -> Any:
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    load("timm")
    from timm.layers import BatchNormAct2d

    return BatchNormAct2d


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Block(nn.Module):
    """As timm writes it: a norm with an activation, one without, the sum, and a ReLU."""

    def __init__(self, norm_act: Any, **options: Any) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 3, padding=1, bias=False), norm_act(8, **options)
        self.conv2, self.bn2 = nn.Conv2d(8, 4, 3, padding=1), norm_act(4, apply_act=False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn2(self.conv2(self.bn1(self.conv1(x)))) + x)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"act_layer": nn.SiLU, "inplace": True},
    {"apply_act": False},
    {"drop_layer": nn.Dropout2d},
    {"act_layer": nn.PReLU, "inplace": False},
    {"momentum": None},
    {"affine": False, "track_running_stats": False},
]


def dense_and_sparse(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A network masked, and with sparse layers."""
    block = block.double()
    masks = masks_of(block)
    sp.apply_masks(block, masks)
    return block, sp.sparsify(copy.deepcopy(block), masks, layers="sparse")


def check_same(sparse: nn.Module, dense: nn.Module, samples: int = 17) -> None:
    """Outputs, gradients of the input and statistics of a step are the same."""
    outputs: list[dict[str, Tensor]] = []
    for model in (sparse, dense):
        torch.manual_seed(1)  # of what drops
        x = noise(samples, 4, 6, 5).requires_grad_()
        y = model(x)
        y.square().sum().backward()
        assert x.grad is not None
        outputs.append({"y": y.detach(), "x": x.grad, **dict(model.named_buffers())})
    for name, expected in outputs[1].items():
        assert_half_the_digits(outputs[0][name], expected, name)


@pytest.mark.parametrize("samples", [3, 17])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_step_and_an_evaluation_are_the_same(norm_act: Any, options: dict[str, Any], samples: int) -> None:
    if "drop_layer" in options and samples > 3:
        pytest.skip("which numbers drop depends on their order in memory")
    dense, sparse = dense_and_sparse(Block(norm_act, **options))
    assert type(sparse.bn1) is type(sparse.bn2) is BatchNormAnyAct2d
    assert sparse.bn2.relu  # with the sum
    for training in (True, False):
        check_same(sparse.train(training), dense.train(training), samples)


@pytest.mark.parametrize("options", OPTIONS)
def test_frozen_it_computes_the_same(norm_act: Any, options: dict[str, Any]) -> None:
    _, sparse = dense_and_sparse(Block(norm_act, **options))
    sparse(noise(17, 4, 6, 5))  # statistics that are not the first ones
    frozen, x = sp.freeze(sparse), noise(17, 4, 6, 5)
    assert_half_the_digits(frozen(x), sparse.eval()(x).detach(), "y")
    kept = [m for m in frozen.modules() if isinstance(m, BatchNormAct2d)]
    # What drops, and what has no statistics, stays.
    assert len(kept) == int("drop_layer" in options or "track_running_stats" in options)


class Sum(Block):
    """Without an activation after the sum."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x)))) + x


def test_a_sum_without_activation_is_taken_in(norm_act: Any) -> None:
    dense, sparse = dense_and_sparse(Sum(norm_act))
    check_same(sparse, dense)
    x = noise(17, 4, 6, 5)
    assert_half_the_digits(sp.freeze(sparse)(x), sparse.eval()(x).detach(), "y")


def test_densify_gives_it_back(norm_act: Any) -> None:
    dense, sparse = dense_and_sparse(Block(norm_act, act_layer=nn.PReLU, inplace=False))
    names = list(dense.state_dict())
    again = sp.densify(sparse)
    assert list(again.state_dict()) == names
    assert type(again.bn1) is type(again.bn2) is norm_act
    assert [type(norm.act) for norm in (again.bn1, again.bn2)] == [nn.PReLU, nn.Identity]
    check_same(again, dense)
    assert again.bn1.act.weight is not sparse.bn1.act.weight


def test_copies_and_pickles_compute_the_same(norm_act: Any) -> None:
    _, sparse = dense_and_sparse(Block(norm_act, act_layer=nn.SiLU))
    for copied in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        check_same(copied, copy.deepcopy(sparse))


def test_it_compiles_without_graph_breaks(norm_act: Any) -> None:
    _, sparse = dense_and_sparse(Block(norm_act))
    torch._dynamo.reset()
    compiled = copy.deepcopy(sparse)
    compiled.compile(fullgraph=True, backend="aot_eager")
    check_same(compiled, sparse)


def test_hooks_of_its_parts_are_called(norm_act: Any) -> None:
    block = Block(norm_act)
    seen: list[nn.Module] = []
    block.bn1.act.register_forward_hook(lambda module, inputs, y: seen.append(module))
    _, sparse = dense_and_sparse(block)
    assert type(sparse.bn1) is norm_act
    sparse(noise(17, 4, 6, 5))
    assert seen


def test_a_relu_after_another_activation_stays(norm_act: Any) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), norm_act(8, act_layer=nn.Tanh), nn.ReLU(), nn.Conv2d(8, 4, 1))
    dense, sparse = dense_and_sparse(model)
    assert type(sparse[2]) is nn.ReLU
    check_same(sparse, dense)


def test_an_activation_that_is_replaced_counts(norm_act: Any) -> None:
    dense, sparse = dense_and_sparse(Block(norm_act))
    for model in (dense, sparse):
        model.bn1.act = nn.Tanh()
    check_same(sparse, dense)


def test_other_norms_are_refused() -> None:
    with pytest.raises(TypeError, match="expected timm's BatchNormAct2d, got BatchNorm2d; leave it"):
        BatchNormAnyAct2d.from_batch_norm(nn.BatchNorm2d(3))
