"""Problems of sparse convolution: memory layouts, exact answers and their error bounds."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from bounds import Sums, assert_sums, integers
from linear_problems import PATTERNS, blocks_of, exact_terms_and_count, in_memory_of, noise
from torch import Tensor

from sparseprune.format.bsr import bsr_from_mask
from sparseprune.ops import convolution
from sparseprune.ops.convolution import ConvPattern, Geometry

# ---- memory layouts of (N, C, H, W) images with given numbers in them ----


def batch_inner(x: Tensor) -> Tensor:
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def sliced(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    whole = x.new_empty(n + 1, c + 2, h + 1, 2 * w + 3)
    return in_memory_of(whole, whole[1:, 1:-1, :-1, 2:-1:2], x)


def part_of_wider(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    whole = x.new_empty(n, c, h + 2, w + 5)
    return in_memory_of(whole, whole[:, :, 1:-1, 3:-2], x)


def batch_inner_sliced(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    whole = x.new_empty(c, h + 1, w + 2, n + 3)
    return in_memory_of(whole, whole[:, 1:, 1:-1, 2:-1].permute(3, 0, 1, 2), x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "batch_inner": batch_inner,
    "sliced": sliced,
    "part_of_wider": part_of_wider,
    "batch_inner_sliced": batch_inner_sliced,
    "one_sample_expanded": lambda x: x[:1].expand(x.shape),
    "one_number_expanded": lambda x: x[:1, :1, :1, :1].expand(x.shape),
}


def is_batch_inner(x: Tensor) -> bool:
    """[C, H, W, N] in memory; dimensions of size 1 do not count."""
    n, _, h, w = x.shape
    expected = (1, h * w * n, w * n, n)
    return n > 1 and all(k == 1 or s == e for k, s, e in zip(x.shape, x.stride(), expected, strict=True))


def check_layout(y: Tensor, inner: bool) -> None:
    assert y.permute(1, 2, 3, 0).is_contiguous() if inner else y.is_contiguous()


# ---- a problem and its answers ----


class Case(NamedTuple):
    samples: int = 17
    channels: int = 3  # of the input, of one group
    block_count: int = 2  # of rows of blocks, of one group
    size: tuple[int, int] = (7, 6)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (1, 1, 1, 1)  # top, bottom, left, right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    block_rows: int = 1
    pattern: str = "third"
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32
    integers: bool = False  # operands whose sums are exact

    @property
    def geometry(self) -> Geometry:
        return Geometry(
            self.channels * self.groups, *self.kernel, *self.stride, *self.pad, *self.dilation, self.groups
        )

    @property
    def out_channels(self) -> int:
        return self.block_count * self.groups * self.block_rows


class Answers(NamedTuple):
    y: Tensor
    y_without_bias: Tensor
    y_act: Tensor  # with g as the residual, and a ReLU
    d_x: Tensor
    d_values: Tensor
    d_bias: Tensor


class Problem(NamedTuple):
    case: Case
    mask: Tensor
    pattern: ConvPattern
    values: Tensor
    bias: Tensor
    x: Tensor
    g: Tensor
    # Computed when asked for: the answers in float64, what the absolute values of their terms add up to, and
    # how many terms they have, none where sums are exact.
    expected: Callable[[], tuple[Answers, Answers, Answers]]

    @property
    def exact(self) -> Answers:
        return self.expected()[0]

    def check(self, name: str, actual: Tensor) -> None:
        """The answer of this name within its error bound."""
        assert actual.dtype == self.case.dtype
        assert_sums(actual, Sums(*(getattr(answers, name) for answers in self.expected())), name)


def convolution_of(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    top, bottom, left, right = case.pad
    weight = weight.reshape(len(weight), case.channels, *case.kernel)
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, weight, bias, case.stride, 0, case.dilation, case.groups)


def answers(case: Case, mask: Tensor, x: Tensor, weight: Tensor, bias: Tensor, g: Tensor) -> Answers:
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    y = convolution_of(case, x, weight, bias)
    d_x, d_weight, d_bias = torch.autograd.grad(y, (x, weight, bias), g)
    d_values = blocks_of(d_weight, mask, case.block_rows)
    y_act = (y.detach() + g).relu()
    return Answers(y.detach(), convolution_of(case, x, weight).detach(), y_act, d_x, d_values, d_bias)


def problem(case: Case) -> Problem:
    geometry = case.geometry
    mask = PATTERNS[case.pattern](case.block_count * case.groups, geometry.cols)
    mask = mask.repeat_interleave(case.block_rows, 0)
    place, numbers = LAYOUTS[case.layout], integers if case.integers else noise
    height, width = geometry.output_size(*case.size)
    x = place(numbers(case.samples, geometry.in_channels, *case.size).to(case.dtype))
    g = place(numbers(case.samples, len(mask), height, width, seed=1).to(case.dtype))
    weight = (numbers(*mask.shape, seed=2) * mask).to(case.dtype)
    bias = numbers(len(mask), seed=3).to(case.dtype)
    operands = [t.double() for t in (x, weight, bias, g)]

    def of(change: Callable[[Tensor], Tensor]) -> Answers:
        return answers(case, mask, *map(change, operands))

    pattern = convolution.conv_pattern(*bsr_from_mask(mask, case.block_rows), geometry, case.block_rows)
    values = blocks_of(weight, mask, case.block_rows)
    expected = functools.cache(lambda: exact_terms_and_count(of, case.integers))
    return Problem(case, mask, pattern, values, bias, x, g, expected)


problem_once = functools.cache(problem)


def check_operators(p: Problem) -> None:
    """All operators and their layouts."""
    geometry = p.case.geometry
    y = convolution.conv2d(p.x, p.values, p.pattern, geometry, p.bias)
    p.check("y", y)
    check_layout(y, is_batch_inner(p.x))
    for inner in (False, True):
        y = convolution.conv2d(p.x, p.values, p.pattern, geometry, batch_inner=inner)
        p.check("y_without_bias", y)
        check_layout(y, inner)

    y_act = convolution.conv2d_act(p.x, p.values, p.pattern, geometry, p.bias, p.g)
    p.check("y_act", y_act)
    check_layout(y_act, is_batch_inner(p.x))
    same = convolution.conv2d_act(p.x, p.values, p.pattern, geometry, relu=False, batch_inner=True)
    assert torch.equal(same, y)
    check_layout(same, True)

    d_x = convolution.conv2d_t(p.g, p.values, p.pattern, geometry, p.case.size)
    p.check("d_x", d_x)
    check_layout(d_x, is_batch_inner(p.g))

    d_values = convolution.conv2d_sddmm(p.g, p.x, p.pattern, geometry, p.case.block_rows)
    p.check("d_values", d_values)
    assert d_values.is_contiguous()

    gradients = convolution.conv2d_backward(p.g, p.x, p.values, p.pattern, geometry)
    assert torch.equal(gradients[0], d_x)
    assert torch.equal(gradients[1], d_values)
    p.check("d_bias", gradients[2])
    without_bias = convolution.conv2d_backward(p.g, p.x, p.values, p.pattern, geometry, False)
    assert all(torch.equal(a, b) for a, b in zip(without_bias[:2], gradients[:2], strict=True))
    assert without_bias[2].shape == (0,)
    check_layout(gradients[0], is_batch_inner(p.x))
    assert gradients[1].is_contiguous()


# ---- calls of the operators by their names ----

NAMES = ["conv2d", "conv2d_act", "conv2d_t", "conv2d_sddmm", "conv2d_backward"]


def arguments_of(p: Problem) -> dict[str, tuple[Any, ...]]:
    x, g, values, bias = (t.detach().requires_grad_() for t in (p.x, p.g, p.values, p.bias))
    where = (*p.pattern, list(p.case.geometry))
    residual = p.g.detach().requires_grad_()
    return {
        "conv2d": (x, values, *where, bias, p.case.layout == "contiguous"),
        "conv2d_act": (x, values, *where, bias, residual, True, p.case.layout == "contiguous"),
        "conv2d_t": (g, values, *where, list(p.case.size)),
        "conv2d_sddmm": (g, x, *where, p.case.block_rows),
        "conv2d_backward": (g, x, values, *where),
    }


def operands_of(p: Problem) -> dict[str, Any]:
    geometry, size = list(p.case.geometry), list(p.case.size)
    names = {"x": p.x, "g": p.g, "values": p.values, "bias": p.bias, **p.pattern._asdict()}
    names |= {"residual": p.g, "relu": True}
    return {**names, "geometry": geometry, "input_size": size, "block_rows": p.case.block_rows}


def call(name: str, operands: dict[str, Any], function: Callable[..., Any] | None = None) -> Any:
    """The operator, or a function of the same arguments."""
    first, last = {
        "conv2d": (("x", "values"), ("bias",)),
        "conv2d_act": (("x", "values"), ("bias", "residual", "relu")),
        "conv2d_t": (("g", "values"), ("input_size",)),
        "conv2d_sddmm": (("g", "x"), ("block_rows",)),
        "conv2d_backward": (("g", "x", "values"), ()),
    }[name]
    keys = (*first, *ConvPattern._fields, "geometry", *last)
    function = function or getattr(torch.ops.sparseprune, name).default
    return function(*(operands[key] for key in keys))
