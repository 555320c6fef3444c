"""Layers with random arguments, and random lives of layers, beside dense ones."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bounds import assert_half_the_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import LAYOUTS, check_step, laid_out
from torch import Tensor, nn

from sparseprune import SparseConv1d, SparseConv2d, SparseLinear
from sparseprune.format.bsr import BLOCK_ROWS, mask_from_bsr
from sparseprune.nn.sparse import SparseLayer

# Torch's, of layers without weights and of paddings.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def random_mask(data: st.DataObject, weight: Tensor, block_rows: int) -> Tensor:
    density = data.draw(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]))
    blocks = torch.rand(len(weight) // block_rows, weight[0].numel()) < density
    return blocks.repeat_interleave(block_rows, 0).reshape(weight.shape)


def check_layer(data: st.DataObject, sparse_class: Any, dense: Any, block_rows: int, x: Tensor) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    if getattr(dense, "padding_mode", "zeros") != "zeros" and dtype == torch.bfloat16:
        dtype = torch.float32  # torch rounds gradients of paddings once more
    mask = random_mask(data, dense.weight, block_rows)
    with torch.no_grad():
        dense.weight.mul_(mask)
    dense, x = dense.to(dtype), x.to(dtype).requires_grad_()
    sparse = sparse_class.from_dense(dense, mask, block=(block_rows, 1))
    sparse.batch_inner = data.draw(st.sampled_from([None, False, True]))
    y = sparse(x)
    g = torch.randn(y.shape).to(dtype)
    y.backward(g)
    check_step(sparse, dense, x, y, g)


@given(st.data())
def test_linear_with_random_arguments(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    block_rows = data.draw(st.sampled_from(BLOCK_ROWS))
    rows, cols = data.draw(st.integers(1, 6)) * block_rows, data.draw(st.integers(1, 70))
    leading = data.draw(st.lists(st.sampled_from([1, 2, 3, 17, 64]), max_size=2))
    x = torch.randn(*leading, cols)
    if len(leading) == 2 and data.draw(st.booleans()):
        x = x.transpose(0, 1)
    check_layer(data, SparseLinear, nn.Linear(cols, rows, data.draw(st.booleans())), block_rows, x)


@given(st.data())
def test_convolutions_with_random_arguments(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    dims = data.draw(st.sampled_from([1, 2]))
    block_rows, groups = data.draw(st.sampled_from(BLOCK_ROWS)), data.draw(st.integers(1, 3))
    channels = groups * data.draw(st.integers(1, 4)), groups * block_rows * data.draw(st.integers(1, 2))

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(least, most)) for _ in range(dims))

    kernel, dilation = each(1, 4), each(1, 2)
    mode = data.draw(st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]))
    padding: Any = data.draw(st.sampled_from(["same", "valid", "numbers"]))
    padding = each(0, 2) if padding == "numbers" else padding
    stride = (1,) * dims if padding == "same" else each(1, 3)
    dense_class, sparse_class = [(nn.Conv1d, SparseConv1d), (nn.Conv2d, SparseConv2d)][dims - 1]
    bias = data.draw(st.booleans())
    dense = dense_class(*channels, kernel, stride, padding, dilation, groups, bias, padding_mode=mode)
    size = tuple(
        d * (k - 1) + 1 + data.draw(st.integers(2, 9)) for d, k in zip(dilation, kernel, strict=True)
    )
    samples = data.draw(st.sampled_from([None, 1, 2, 15, 16, 17, 40]))
    x = torch.randn(*([] if samples is None else [samples]), channels[0], *size)
    if x.dim() == 4:
        x = laid_out(x, data.draw(st.sampled_from(LAYOUTS)))
    check_layer(data, sparse_class, dense, block_rows, x.detach())


# ---- lives of layers ----

ROWS, COLS = 12, 18


def new_layer(seed: int, kind: str) -> Any:
    generator = torch.Generator().manual_seed(seed)
    kept = int(torch.randint(0, ROWS * COLS, (), generator=generator)) if seed % 3 else 40
    mask = torch.zeros(ROWS * COLS, dtype=torch.bool)
    mask[torch.randperm(len(mask), generator=generator)[:kept]] = True
    dense: Any = nn.Linear(COLS, ROWS) if kind == "linear" else nn.Conv2d(2, ROWS, 3, padding=1)
    with torch.no_grad():
        dense.weight.copy_(torch.randn(dense.weight.shape, generator=generator))
    cls: Any = SparseLinear if kind == "linear" else SparseConv2d
    return cls.from_dense(dense.double(), mask.view_as(dense.weight), block=(1, 1))


class Life:
    """A layer that things are done to, and other layers to take from."""

    def __init__(self, kind: str, optimizer: type[torch.optim.Optimizer]) -> None:
        self.kind, self.make_optimizer = kind, optimizer
        self.layer = new_layer(0, kind)
        self.optimizer = optimizer(self.layer.parameters(), lr=0.01)

    def other(self, seed: int) -> Any:
        return new_layer(seed, self.kind)

    def load(self, seed: int) -> None:
        self.layer.load_state_dict(self.other(seed).state_dict())

    def load_and_assign(self, seed: int) -> None:
        self.layer.load_state_dict(self.other(seed).state_dict(), assign=True)
        self.optimizer = self.make_optimizer(self.layer.parameters(), lr=0.01)

    def load_damaged(self, seed: int) -> None:
        """Either refused, with nothing changed, or a whole pattern."""
        state, before = self.other(seed).state_dict(), copy.deepcopy(self.layer)
        name = ["values", "bias", "crow", "col"][seed % 4]
        generator = torch.Generator().manual_seed(seed)
        damaged = state[name].clone()
        if len(damaged):
            at = int(torch.randint(0, len(damaged), (), generator=generator))
            choice = seed // 4 % 4
            if choice == 0:
                damaged = torch.cat([damaged[:at], damaged[at + 1 :]])
            elif choice == 1:
                damaged = damaged.double() if name in ("crow", "col") else damaged.half()
            else:
                damaged[at] = int(torch.randint(-3, 30, (), generator=generator))
        try:
            self.layer.load_state_dict({**state, name: damaged}, assign=bool(seed // 16 % 2))
        except RuntimeError:
            for key, tensor in before.state_dict().items():
                assert torch.equal(tensor, self.layer.state_dict()[key])
        else:
            self.optimizer = self.make_optimizer(self.layer.parameters(), lr=0.01)

    def copy_over(self, seed: int) -> None:
        source = self.other(seed)
        state, own = source.state_dict(), self.layer.state_dict()
        if all(own[name].shape == tensor.shape for name, tensor in state.items()):
            for name, tensor in own.items():
                tensor.copy_(state[name])

    @torch.no_grad()
    def average(self, seed: int) -> None:
        decay = [0.9, 0.99, 0.999, 0.9999][seed % 4]
        mask = self.layer.mask
        twin = copy.deepcopy(self.layer)
        for _ in range(seed % 5 + 1):
            for a, b in zip(self.layer.state_dict().values(), twin.state_dict().values(), strict=True):
                a.copy_(decay * a + (1 - decay) * b)
        assert torch.equal(self.layer.mask, mask)

    def move(self, seed: int) -> None:
        other, before = self.other(seed), self.layer.weight.detach().clone()
        self.layer.move_pattern(other.crow, other.col, [self.optimizer])
        assert torch.equal(self.layer.weight, before * other.mask)

    def train(self, seed: int) -> None:
        for _ in range(seed % 3 + 1):
            self.optimizer.zero_grad()
            self.layer(self.sample()).square().mean().backward()
            self.optimizer.step()

    def call(self, seed: int) -> None:
        other = self.other(seed)
        x = self.sample()
        assert torch.equal(torch.func.functional_call(self.layer, other.state_dict(), (x,)), other(x))

    def duplicate(self, seed: int) -> None:
        self.layer = copy.deepcopy(self.layer) if seed % 2 else pickle.loads(pickle.dumps(self.layer))
        self.optimizer = self.make_optimizer(self.layer.parameters(), lr=0.01)

    def replace(self, seed: int) -> None:
        other = self.other(seed)
        self.layer.crow.data, self.layer.col.data = other.crow, other.col
        self.layer.values.data, self.layer.values.grad = other.values.data, None
        self.optimizer = self.make_optimizer(self.layer.parameters(), lr=0.01)

    def sample(self) -> Tensor:
        shape = (3, COLS) if self.kind == "linear" else (3, 2, 5, 4)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def check(self) -> None:
        """What it computes is what its state_dict says, by an independent way."""
        layer: SparseLayer = self.layer
        state = layer.state_dict()
        weight = torch.zeros(ROWS, COLS, dtype=torch.float64)
        where = mask_from_bsr(state["crow"], state["col"], COLS, 1)
        weight[where] = state["values"][:, 0]
        dense = layer.to_dense()
        assert torch.equal(dense.weight.flatten(1), weight)
        results = []
        for module in (layer, dense):
            x = self.sample().requires_grad_()
            y = module(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), x)))
        for a, b in zip(*results, strict=True):
            assert_half_the_digits(a, b)


STEPS: list[Callable[[Life, int], None]] = [
    *(
        Life.load,
        Life.load_and_assign,
        Life.load_damaged,
        Life.copy_over,
        Life.average,
        Life.move,
        Life.train,
    ),
    *(Life.call, Life.duplicate, Life.replace),
]


# An example is a dozen steps, of which each that loads looks for optimizers among all objects in memory.
@settings(max_examples=settings.default.max_examples // 5)
@given(
    st.sampled_from(["linear", "convolution"]),
    st.sampled_from([torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop]),
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 999)), min_size=1, max_size=12),
)
def test_lives_of_layers(kind: str, optimizer: Any, steps: list[tuple[Callable[..., None], int]]) -> None:
    life = Life(kind, optimizer)
    for step, seed in steps:
        step(life, seed)
        life.check()
