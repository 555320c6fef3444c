"""The operators of sparse matrix products in graphs: fake kernels, torch's checks of operators, gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from linear_problems import LAYOUTS, Problem, noise, problem, random_mask
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sparseprune import ops
from sparseprune.format.bsr import bsr_from_mask

# ---- fake kernels, opcheck ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("cols", "batch"), [(96, 65), (1, 17), (96, 1), (96, 0), (1, 1)])
@pytest.mark.parametrize(("dtype", "block_rows"), [(torch.float32, 1), (torch.bfloat16, 4)])
def test_fake_kernels_agree(layout: str, cols: int, batch: int, dtype: torch.dtype, block_rows: int) -> None:
    p = problem("third", 36, cols, batch, layout, dtype, block_rows)
    real = [
        ops.spmm(p.x, p.values, p.pattern, p.bias),
        *(ops.spmm(p.x, p.values, p.pattern, None, batch_inner) for batch_inner in (False, True)),
        ops.spmm_t(p.g, p.values, p.pattern, cols),
        ops.sddmm(p.g, p.x, p.pattern, block_rows),
        *ops.spmm_backward(p.g, p.x, p.values, p.pattern),
    ]
    with FakeTensorMode() as mode:
        x, g, values, bias = (mode.from_tensor(t) for t in (p.x, p.g, p.values, p.bias))
        pattern = ops.Pattern(*(mode.from_tensor(t) for t in p.pattern))
        fake = [
            ops.spmm(x, values, pattern, bias),
            *(ops.spmm(x, values, pattern, None, batch_inner) for batch_inner in (False, True)),
            ops.spmm_t(g, values, pattern, cols),
            ops.sddmm(g, x, pattern, block_rows),
            *ops.spmm_backward(g, x, values, pattern),
        ]
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@pytest.mark.parametrize(("layout", "block_rows"), [("feature_inner", 1), ("batch_inner", 2)])
@pytest.mark.parametrize("name", ["spmm", "spmm_t", "sddmm", "spmm_backward"])
def test_opcheck(name: str, layout: str, block_rows: int) -> None:
    p = problem("third", 8, 33, 17, layout, torch.float32, block_rows)
    x, g, values, bias = (t.detach().requires_grad_() for t in (p.x, p.g, p.values, p.bias))
    arguments: dict[str, tuple[Any, ...]] = {
        "spmm": (x, values, *p.pattern, bias, layout == "feature_inner", block_rows == 2),
        "spmm_t": (g, values, *p.pattern, 33),
        "sddmm": (g, x, *p.pattern, block_rows),
        "spmm_backward": (g, x, values, *p.pattern, p.exact.y.to(p.x.dtype) if block_rows == 2 else None),
    }
    torch.library.opcheck(getattr(torch.ops.sparseprune, name).default, arguments[name])


def test_opcheck_topk_masks() -> None:
    scores = [noise(5, 7).float(), noise(11, seed=1).float().reshape(1, 11).t()]
    torch.library.opcheck(torch.ops.sparseprune.topk_masks.default, (scores, 9))


def test_opcheck_plan() -> None:
    crow, col = bsr_from_mask(random_mask(7, 33, 0.3))
    # The size of a plan depends on the pattern: no fake kernel, plans are made outside of compiled graphs.
    tests = ("test_schema", "test_autograd_registration")
    torch.library.opcheck(torch.ops.sparseprune.plan.default, (crow, col, 33, 1, False), test_utils=tests)


# ---- gradients ----

FUNCTIONS: dict[str, Callable[[Problem], tuple[Callable[..., Any], tuple[Tensor, ...]]]] = {
    "spmm": lambda p: (lambda x, values, b: ops.spmm(x, values, p.pattern, b), (p.x, p.values, p.bias)),
    "spmm_with_relu": lambda p: (
        lambda x, values, b: ops.spmm(x, values, p.pattern, b, relu=True),
        (p.x, p.values, p.bias),
    ),
    "spmm_t": lambda p: (lambda g, v: ops.spmm_t(g, v, p.pattern, p.mask.shape[1]), (p.g, p.values)),
    "sddmm": lambda p: (lambda g, x: ops.sddmm(g, x, p.pattern, p.block_rows), (p.g, p.x)),
    "spmm_backward": lambda p: (lambda g, x, v: ops.spmm_backward(g, x, v, p.pattern), (p.g, p.x, p.values)),
    "spmm_backward_with_relu": lambda p: (
        lambda g, x, v: ops.spmm_backward(g, x, v, p.pattern, p.exact.y),
        (p.g, p.x, p.values),
    ),
}


@pytest.mark.parametrize(
    ("rows", "layout", "block_rows"),
    [(5, "feature_inner", 1), (5, "batch_inner", 1), (8, "feature_inner", 2)],
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_first_and_second_order(name: str, rows: int, layout: str, block_rows: int) -> None:
    p = problem("empty_rows_and_columns", rows, 6, 3, layout, torch.float64, block_rows)
    function, inputs = FUNCTIONS[name](p)
    inputs = tuple(t.detach().requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_one_input_at_a_time(name: str) -> None:
    function, inputs = FUNCTIONS[name](problem("third", 8, 6, 3, "feature_inner", torch.float64, 4))
    for i in range(len(inputs)):
        some = tuple(t.detach().requires_grad_(i == j) for j, t in enumerate(inputs))
        assert torch.autograd.gradcheck(function, some)


@pytest.mark.parametrize(("dtype", "block_rows"), [(torch.float32, 1), (torch.bfloat16, 4)])
def test_gradients_equal_the_dense_ones(dtype: torch.dtype, block_rows: int, isa: str) -> None:
    p = problem("third", 96, 257, 65, "feature_inner", dtype, block_rows)
    x, values, bias = (t.detach().requires_grad_() for t in (p.x, p.values, p.bias))
    ops.spmm(x, values, p.pattern, bias).backward(p.g)
    assert x.grad is not None
    assert values.grad is not None
    assert bias.grad is not None
    p.check("d_x", x.grad)
    p.check("d_values", values.grad)
    p.check("d_bias", bias.grad)
