"""The operators of sparse convolution in graphs: fake kernels, torch's checks of operators, gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_problems import (
    LAYOUTS,
    NAMES,
    Case,
    Problem,
    arguments_of,
    check_layout,
    is_batch_inner,
    problem_once,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sparseprune.ops import convolution
from sparseprune.ops.convolution import ConvPattern

# ---- fake kernels, opcheck ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "case",
    [
        Case(33),
        Case(0),
        Case(1, size=(1, 1)),
        Case(5, stride=(2, 1), dtype=torch.bfloat16, block_rows=4),
        Case(17, 1, 1, (1, 1), (1, 1), pad=(0, 0, 0, 0)),
    ],
)
def test_fake_kernels_agree(layout: str, case: Case) -> None:
    p, geometry = problem_once(case._replace(layout=layout)), case.geometry

    def results(x: Tensor, g: Tensor, values: Tensor, bias: Tensor, *parts: Tensor) -> list[Tensor]:
        pattern = ConvPattern(*parts)
        return [
            convolution.conv2d(x, values, pattern, geometry, bias),
            *(convolution.conv2d(x, values, pattern, geometry, None, inner) for inner in (False, True)),
            convolution.conv2d_act(x, values, pattern, geometry, bias, g),
            convolution.conv2d_act(x, values, pattern, geometry, None, g, False, True),
            convolution.conv2d_t(g, values, pattern, geometry, case.size),
            convolution.conv2d_sddmm(g, x, pattern, geometry, case.block_rows),
            *convolution.conv2d_backward(g, x, values, pattern, geometry),
            *convolution.conv2d_backward(g, x, values, pattern, geometry, False),
        ]

    tensors = (p.x, p.g, p.values, p.bias, *p.pattern)
    with FakeTensorMode() as mode:
        fake = results(*(mode.from_tensor(t) for t in tensors))
    for a, b in zip(results(*tensors), fake, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        # Torch does not keep track of the strides of dimensions of size 1, or of an empty tensor.
        assert a.numel() == 0 or all(
            size == 1 or s == t for size, s, t in zip(a.shape, a.stride(), b.stride(), strict=True)
        )


@pytest.mark.parametrize("case", [Case(3), Case(17, layout="batch_inner", block_rows=2, stride=(2, 2))])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, case: Case) -> None:
    torch.library.opcheck(
        getattr(torch.ops.sparseprune, name).default, arguments_of(problem_once(case))[name]
    )


def test_opcheck_conv2d_plan() -> None:
    p = problem_once(Case())
    arguments = (*p.pattern[:2], list(p.case.geometry), 1)
    # The size of a plan depends on the pattern: no fake kernel, plans are made outside of compiled graphs.
    tests = ("test_schema", "test_autograd_registration")
    torch.library.opcheck(torch.ops.sparseprune.conv2d_plan.default, arguments, test_utils=tests)


# ---- gradients ----

FUNCTIONS: dict[str, Callable[[Problem], tuple[Callable[..., Any], tuple[Tensor, ...]]]] = {
    "conv2d": lambda p: (
        lambda x, values, b: convolution.conv2d(x, values, p.pattern, p.case.geometry, b),
        (p.x, p.values, p.bias),
    ),
    "conv2d_act": lambda p: (
        lambda x, values, b, r: convolution.conv2d_act(x, values, p.pattern, p.case.geometry, b, r),
        (p.x, p.values, p.bias, p.g),
    ),
    "conv2d_t": lambda p: (
        lambda g, values: convolution.conv2d_t(g, values, p.pattern, p.case.geometry, p.case.size),
        (p.g, p.values),
    ),
    "conv2d_sddmm": lambda p: (
        lambda g, x: convolution.conv2d_sddmm(g, x, p.pattern, p.case.geometry, p.case.block_rows),
        (p.g, p.x),
    ),
    "conv2d_backward": lambda p: (
        lambda g, x, values: convolution.conv2d_backward(g, x, values, p.pattern, p.case.geometry),
        (p.g, p.x, p.values),
    ),
    "conv2d_backward without bias": lambda p: (
        lambda g, x, v: convolution.conv2d_backward(g, x, v, p.pattern, p.case.geometry, False)[:2],
        (p.g, p.x, p.values),
    ),
    "convolve": lambda p: (
        lambda x, values, b: convolution.convolve(x, values, p.pattern, p.case.geometry, b),
        (p.x, p.values, p.bias),
    ),
}
SMALL = Case(2, 2, 2, (4, 3), dtype=torch.float64)


@pytest.mark.parametrize(
    "case",
    [
        SMALL,
        SMALL._replace(layout="batch_inner", block_rows=2, stride=(2, 1), pad=(0, 1, 2, 0)),
        SMALL._replace(
            samples=16, channels=1, block_count=1, size=(1, 2), kernel=(2, 1), groups=2, layout="batch_inner"
        ),
    ],
    ids=["contiguous", "batch_inner", "many"],
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_first_and_second_order(name: str, case: Case) -> None:
    function, inputs = FUNCTIONS[name](problem_once(case))
    inputs = tuple(t.detach().requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, gen_non_contig_grad_outputs=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_one_input_at_a_time(name: str) -> None:
    function, inputs = FUNCTIONS[name](problem_once(SMALL._replace(block_rows=2)))
    for i in range(len(inputs)):
        some = tuple(t.detach().requires_grad_(i == j) for j, t in enumerate(inputs))
        assert torch.autograd.gradcheck(function, some)


# ---- a convolution as a layer computes it ----


@pytest.mark.parametrize(
    "case",
    [Case(3), Case(33, layout="batch_inner", block_rows=4), Case(33, dtype=torch.bfloat16, stride=(2, 2))],
    ids=["few", "batch_inner", "bfloat16"],
)
@pytest.mark.parametrize("inner", [None, False, True])
def test_convolve_gradients_equal_the_dense_ones(case: Case, inner: bool | None, isa: str) -> None:
    p = problem_once(case)
    x, values, bias = (t.detach().requires_grad_() for t in (p.x, p.values, p.bias))
    y = convolution.convolve(x, values, p.pattern, case.geometry, bias, inner)
    p.check("y", y)
    check_layout(y, is_batch_inner(p.x) if inner is None else inner)
    d_x, d_values, d_bias = torch.autograd.grad(y, (x, values, bias), p.g)
    p.check("d_x", d_x)
    p.check("d_values", d_values)
    p.check("d_bias", d_bias)


class Recorded(TorchDispatchMode):
    """The names of the library's operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator.namespace == "sparseprune":
            self.names.append(operator._opname)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ((True, True, True), ["conv2d_backward"]),
        ((True, True, False), ["conv2d_backward"]),
        ((False, True, True), ["conv2d_sddmm"]),
        ((False, True, False), ["conv2d_sddmm"]),
        ((True, False, False), ["conv2d_t"]),
        ((True, False, True), ["conv2d_t"]),
        ((False, False, True), []),
    ],
)
def test_convolve_computes_only_the_gradients_that_are_needed(
    needs: tuple[bool, ...], expected: list[str]
) -> None:
    p = problem_once(Case(dtype=torch.float64))
    inputs = [t.detach().requires_grad_(need) for t, need in zip((p.x, p.values, p.bias), needs, strict=True)]
    y = convolution.convolve(inputs[0], inputs[1], p.pattern, p.case.geometry, inputs[2])
    with Recorded() as recorded:
        y.backward(p.g)
    assert recorded.names == expected
    for t, need, name in zip(inputs, needs, ("d_x", "d_values", "d_bias"), strict=True):
        assert (t.grad is not None) == need
        if t.grad is not None:
            p.check(name, t.grad)


@pytest.mark.parametrize("samples", [3, 17])
@pytest.mark.parametrize("inner", [False, True])
def test_convolve_result_can_be_changed_in_place(samples: int, inner: bool) -> None:
    p = problem_once(Case(samples, dtype=torch.float64))
    values = p.values.detach().requires_grad_()
    y = convolution.convolve(p.x, values, p.pattern, p.case.geometry, p.bias, inner)
    y.relu_().backward(p.g)
    assert values.grad is not None
    expected = convolution.conv2d_sddmm(p.g * (p.exact.y > 0), p.x, p.pattern, p.case.geometry)
    assert torch.equal(values.grad, expected)
    with torch.no_grad():
        y = convolution.convolve(p.x, values, p.pattern, p.case.geometry, p.bias, inner)
    assert not y.requires_grad
    p.check("y", y)
    positive = y.relu()
    assert torch.equal(y.relu_(), positive)


def test_convolve_under_autocast_computes_in_its_dtype() -> None:
    p = problem_once(Case())
    x = p.x.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = convolution.convolve(x, p.values, p.pattern, p.case.geometry, p.bias)
    narrow = [None if t is None else t.bfloat16() for t in (x, p.values, p.bias)]
    assert torch.equal(y, convolution.conv2d(*narrow[:2], p.pattern, p.case.geometry, narrow[2]))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_convolve_compiles_into_one_graph() -> None:
    p = problem_once(Case(layout="batch_inner", dtype=torch.float64))
    x, values, bias = (t.detach().requires_grad_() for t in (p.x, p.values, p.bias))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def layer(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return convolution.convolve(x, values, p.pattern, p.case.geometry, bias) * 2

    y = layer(x, values, bias)
    p.check("y", y / 2)  # doubling is exact
    check_layout(y, True)
    names = ("d_x", "d_values", "d_bias")
    for name, actual in zip(names, torch.autograd.grad(y, (x, values, bias), p.g), strict=True):
        p.check(name, actual / 2)
