"""Problems of sparse matrix products: patterns, memory layouts, exact answers and their error bounds."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from bounds import Sums, assert_sums, integers
from torch import Tensor

from sparseprune import ops
from sparseprune.format.bsr import bsr_from_mask


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- patterns ----


def random_mask(rows: int, cols: int, density: float) -> Tensor:
    return torch.rand(rows, cols, generator=torch.Generator().manual_seed(rows + cols)) < density


def with_empty_rows_and_columns(rows: int, cols: int) -> Tensor:
    mask = random_mask(rows, cols, 0.3)
    mask[::3] = mask[-1] = False
    mask[:, ::4] = mask[:, -1] = False
    return mask


def skewed(rows: int, cols: int) -> Tensor:
    """One full row and one full column among sparse ones."""
    mask = random_mask(rows, cols, 0.02)
    mask[rows // 2] = True
    mask[:, cols // 3] = True
    return mask


PATTERNS: dict[str, Callable[[int, int], Tensor]] = {
    "no_weight": lambda rows, cols: random_mask(rows, cols, -1),
    "one_weight": lambda rows, cols: torch.arange(rows * cols).reshape(rows, cols) == rows * cols // 2,
    "tiny": lambda rows, cols: random_mask(rows, cols, 0.002),
    "third": lambda rows, cols: random_mask(rows, cols, 0.3),
    "all": lambda rows, cols: random_mask(rows, cols, 2),
    "empty_rows_and_columns": with_empty_rows_and_columns,
    "skewed": skewed,
}


def pattern_of(mask: Tensor, block_rows: int = 1) -> ops.Pattern:
    return ops.plans(*bsr_from_mask(mask, block_rows), mask.shape[1], block_rows)


def blocks_of(matrix: Tensor, mask: Tensor, block_rows: int) -> Tensor:
    """``values`` (nnzb, V): what the matrix holds in the blocks of the mask."""
    shape = (len(matrix) // block_rows, block_rows, matrix.shape[1])
    return matrix.reshape(shape).transpose(1, 2)[mask.reshape(shape)[:, 0]]


# ---- memory layouts of a (features, batch) activation with given numbers in it ----


def in_memory_of(whole: Tensor, part: Tensor, x: Tensor) -> Tensor:
    whole.fill_(float("nan"))  # what lies around the activation must not be read
    return part.copy_(x)


def spread(x: Tensor) -> Tensor:
    whole = x.new_empty(2 * x.shape[0] + 1, 3 * x.shape[1] + 2)
    return in_memory_of(whole, whole[1::2, 2::3], x)


def part_of_wider(x: Tensor) -> Tensor:
    whole = x.new_empty(x.shape[0] + 1, x.shape[1] + 5)
    return in_memory_of(whole, whole[1:, 3:-2], x)


def part_of_deeper(x: Tensor) -> Tensor:
    whole = x.new_empty(x.shape[1] + 1, x.shape[0] + 4)
    return in_memory_of(whole, whole[1:, 3:-1].t(), x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "feature_inner": lambda x: x.t().contiguous().t(),
    "batch_inner": lambda x: x.contiguous(),
    "spread": spread,
    "part_of_wider": part_of_wider,
    "part_of_deeper": part_of_deeper,
    "one_sample_expanded": lambda x: x[:, :1].expand(x.shape),
    "one_feature_expanded": lambda x: x[:1].expand(x.shape),
    "one_number_expanded": lambda x: x[:1, :1].expand(x.shape),
}


def is_batch_inner(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.stride(0) != 1


def strides(features: int, batch: int, batch_inner: bool) -> tuple[int, ...]:
    return (torch.empty(features, batch) if batch_inner else torch.empty(batch, features).t()).stride()


def layout_like(like: Tensor, features: int) -> tuple[int, ...]:
    """The documented strides of a result."""
    return strides(features, like.shape[1], is_batch_inner(like))


# ---- a problem and its answers ----


class Answers(NamedTuple):
    """What the operators give: y = W x + b, d_x = W^T g, d_values = (g x^T) at the blocks, d_bias = g 1."""

    y: Tensor
    y_without_bias: Tensor
    d_x: Tensor
    d_values: Tensor
    d_bias: Tensor


class Problem(NamedTuple):
    mask: Tensor
    block_rows: int
    pattern: ops.Pattern
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
        assert actual.dtype == self.x.dtype
        assert_sums(actual, Sums(*(getattr(answers, name) for answers in self.expected())), name)


def answers(weight: Tensor, mask: Tensor, block_rows: int, bias: Tensor, x: Tensor, g: Tensor) -> Answers:
    y = weight @ x
    return Answers(y + bias[:, None], y, weight.t() @ g, blocks_of(g @ x.t(), mask, block_rows), g.sum(1))


def exact_terms_and_count(
    of: Callable[[Callable[[Tensor], Tensor]], Any], sums_are_exact: bool
) -> tuple[Any, Any, Any]:
    """The answers to operands as they are, to their absolute values, and to 1 for what is not 0."""
    exact = of(lambda t: t)
    if sums_are_exact:
        none = type(exact)(*map(torch.zeros_like, exact))
        return exact, none, none
    return exact, of(torch.abs), of(lambda t: (t != 0).double())


@functools.cache
def problem(
    kind: str,
    rows: int,
    cols: int,
    batch: int,
    layout: str = "feature_inner",
    dtype: torch.dtype = torch.float32,
    block_rows: int = 1,
    numbers: Callable[..., Tensor] = noise,
) -> Problem:
    """A problem of normally distributed numbers, or of ``integers``, whose sums are exact."""
    mask = PATTERNS[kind](rows // block_rows, cols).repeat_interleave(block_rows, 0)
    place = LAYOUTS[layout]
    x, g = place(numbers(cols, batch).to(dtype)), place(numbers(rows, batch, seed=1).to(dtype))
    weight = (numbers(rows, cols, seed=2) * mask).to(dtype)
    bias = numbers(rows, seed=3).to(dtype)
    operands = [t.double() for t in (weight, bias, x, g)]

    def of(change: Callable[[Tensor], Tensor]) -> Answers:
        w, b, x, g = map(change, operands)
        return answers(w, mask, block_rows, b, x, g)

    values = blocks_of(weight, mask, block_rows)
    expected = functools.cache(lambda: exact_terms_and_count(of, numbers is integers))
    return Problem(mask, block_rows, pattern_of(mask, block_rows), values, bias, x, g, expected)


def check_operators(p: Problem) -> None:
    """All operators, their layouts, and ReLU with its gradient."""
    rows, cols = p.mask.shape
    y = ops.spmm(p.x, p.values, p.pattern, p.bias)
    p.check("y", y)
    without = ops.spmm(p.x, p.values, p.pattern)
    p.check("y_without_bias", without)
    assert y.stride() == without.stride() == layout_like(p.x, rows)
    for batch_inner in (False, True):
        y = ops.spmm(p.x, p.values, p.pattern, p.bias, batch_inner)
        p.check("y", y)
        assert y.stride() == strides(rows, p.x.shape[1], batch_inner)

    positive = ops.spmm(p.x, p.values, p.pattern, p.bias, relu=True)
    assert torch.equal(positive, ops.spmm(p.x, p.values, p.pattern, p.bias).relu())
    assert positive.stride() == layout_like(p.x, rows)

    d_x = ops.spmm_t(p.g, p.values, p.pattern, cols)
    p.check("d_x", d_x)
    assert d_x.stride() == layout_like(p.g, cols)

    d_values = ops.sddmm(p.g, p.x, p.pattern, p.block_rows)
    p.check("d_values", d_values)
    assert d_values.is_contiguous()

    d_x, d_values, d_bias = ops.spmm_backward(p.g, p.x, p.values, p.pattern)
    p.check("d_x", d_x)
    p.check("d_values", d_values)
    p.check("d_bias", d_bias)
    assert d_x.stride() == layout_like(p.x, cols)
    assert d_values.is_contiguous()

    for y in (positive, positive.t().contiguous().t()):
        through = torch.ops.aten.threshold_backward(p.g, y, 0)  # torch's derivative of ReLU
        expected = ops.spmm_backward(through, p.x, p.values, p.pattern)
        gradients = ops.spmm_backward(p.g, p.x, p.values, p.pattern, y)
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
        assert [t.stride() for t in gradients] == [t.stride() for t in expected]
