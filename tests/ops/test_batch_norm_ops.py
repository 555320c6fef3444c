"""The operators of batch normalisation within their error bounds, and exact where nothing is rounded."""

from typing import Any

import pytest
import torch
from bounds import Rounded, assert_within, gamma, integers, of_batch_norm
from layers import LAYOUTS, laid_out
from torch import Tensor

from sparseprune import ops
from sparseprune.ops import plain

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def operands(
    dtype: torch.dtype, layout: str, size: tuple[int, ...] = (3, 2, 4, 5)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, residual = (
        laid_out(torch.randn(size, generator=generator).to(dtype), layout).requires_grad_() for _ in range(2)
    )
    weight, bias = (torch.randn(size[1], generator=generator).to(dtype).requires_grad_() for _ in range(2))
    return x, residual, weight, bias


@pytest.mark.parametrize("layout", ["contiguous", "batch-inner"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_act_passes_gradcheck_in_float64(layout: str, relu: bool, training: bool) -> None:
    x, residual, weight, bias = operands(torch.float64, layout)
    mean, var = torch.tensor([[0.3, -0.2], [0.5, 2.0]], dtype=torch.float64)

    def step(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        if training:
            return ops.batch_norm.batch_norm_act(x, weight, bias, residual, relu=relu)[0]
        return ops.batch_norm.batch_norm_act_eval(x, mean, var, weight, bias, residual, relu=relu)

    for added in (residual, None):
        assert torch.autograd.gradcheck(step, (x, weight, bias, added))
        assert torch.autograd.gradgradcheck(step, (x, weight, bias, added))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_norm_act_passes_opcheck(layout: str, dtype: torch.dtype) -> None:
    x, residual, weight, bias = operands(dtype, layout)
    mean, var = torch.zeros(2), torch.ones(2)
    cases = ((residual, True, None), (None, False, True), (None, True, False))
    for added, relu, inner in cases if dtype == torch.float32 else cases[:1]:
        torch.library.opcheck(
            torch.ops.sparseprune.batch_norm_act.default, (x, weight, bias, added, 1e-5, relu, inner)
        )
        torch.library.opcheck(
            torch.ops.sparseprune.batch_norm_act_eval.default,
            (x, weight, None, mean, var, added, 1e-5, relu, inner),
        )
        y = None if added is None else residual.detach()
        arguments = [t.detach() for t in (residual, x, weight, bias, mean, var)]
        torch.library.opcheck(
            torch.ops.sparseprune.batch_norm_act_backward.default,
            (*arguments, y, 1e-5, relu, relu, added is not None),
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_functions_agree_with_the_operators(layout: str, dtype: torch.dtype, needs_extension: None) -> None:
    x, residual, weight, bias = (t.detach() for t in operands(dtype, layout, (17, 2, 4, 5)))
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    mean, var = torch.tensor([0.1, -0.2], dtype=sums), torch.tensor([0.5, 2.0], dtype=sums)
    calls: list[tuple[str, tuple[Any, ...], list[Rounded | Tensor]]] = []
    for added, relu, inner in ((residual, True, None), (None, False, True), (None, True, False)):
        for name, given in (("batch_norm_act", None), ("batch_norm_act_eval", (mean, var))):
            of = of_batch_norm(x, x, weight, bias, added, 1e-5, given)
            of["y"] = of["y"]._replace(exact=of["y"].exact.relu()) if relu else of["y"]
            expected = [of["y"]] if given else [of["y"], of["mean"], of["var"]]
            calls.append((name, (x, weight, bias, *(given or ()), added, 1e-5, relu, inner), expected))
        y = x if added is not None else None
        normalized = of_batch_norm(x, x, weight, bias, None, 1e-5, (mean, var))["y"]
        assert (normalized.exact.abs() > normalized.error).all()  # no gate is in doubt
        g = residual * ((normalized.exact if y is None else y) > 0) if relu else residual
        for training in (True, False):
            of = of_batch_norm(x, g, weight, bias, None, 1e-5, (mean, var), training)
            arguments = (residual, x, weight, bias, mean, var, y, 1e-5, relu, training, relu)
            d_residual = g if relu else x.new_empty(0)
            calls.append(
                ("batch_norm_act_backward", arguments, [of["x"], d_residual, of["weight"], of["bias"]])
            )
    for name, arguments, expected in calls:
        ours = getattr(plain.batch_norm, name)(*arguments)
        theirs = getattr(torch.ops.sparseprune, name).default(*arguments)
        results = [[found] if isinstance(found, Tensor) else found for found in (ours, theirs)]
        for a, b, of in zip(*results, expected, strict=True):
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
            for found in (a, b):
                if isinstance(of, Rounded):
                    of.check(found, name)
                else:
                    assert torch.equal(found, of)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, "x.shape == [samples, channels, height, width], got 2 dimensions"),
        ({"weight": torch.zeros(4)}, "expected weight.shape == [3 (channels)], got [4]"),
        (
            {"residual": torch.zeros(2, 3, 1, 1)},
            "expected residual.shape == [2, 3, 4, 5] (that of x), got [2, 3, 1, 1]",
        ),
    ],
)
def test_batch_norm_act_refuses_bad_shapes(change: dict[str, Tensor], message: str) -> None:
    arguments: dict[str, Any] = {"x": torch.zeros(2, 3, 4, 5), **change}
    for operator in (ops.batch_norm.batch_norm_act, plain.batch_norm.batch_norm_act):
        given = {"weight": None, "bias": None, "residual": None, "eps": 1e-5, "relu": False, **arguments}
        with pytest.raises(ValueError) as error:  # noqa: PT011
            operator(**given)  # type: ignore[operator]
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "tensor"), [("x", torch.zeros(2, 3, 4, 5).half()), ("weight", torch.zeros(3).double())]
)
def test_batch_norm_act_refuses_other_dtypes(name: str, tensor: Tensor, needs_extension: None) -> None:
    arguments = {"x": torch.zeros(2, 3, 4, 5), name: tensor}
    with pytest.raises(ValueError, match=f"^batch_norm_act: expected {name} to be float32"):
        ops.batch_norm.batch_norm_act(**arguments)


# ---- numbers that are not rounded ----


def balanced(deviations: Tensor, mean: float) -> Tensor:
    """Numbers of this mean, in all blocks of even size: neighbours deviate from it to both sides."""
    n, _, _, w = deviations.shape
    sign = 1 - 2 * ((torch.arange(n)[:, None, None, None] + torch.arange(w)) % 2)
    size = deviations.abs()[: n // 2].repeat_interleave(2, 0)
    return mean + sign * size[..., : w // 2].repeat_interleave(2, 3)


@pytest.mark.parametrize("layout", ["contiguous", "batch-inner"])
def test_variance_of_numbers_far_from_zero_is_exact(layout: str, isa: str, needs_extension: None) -> None:
    x = balanced(integers(64, 2, 16, 16), 1000)
    exact = x.var((0, 2, 3), correction=0)
    _, mean, var = ops.batch_norm.batch_norm_act(laid_out(x.float(), layout))
    assert torch.equal(mean.double(), torch.full((2,), 1000.0, dtype=torch.float64))
    assert torch.equal(var.double(), exact)
    x[:2, :, :2, :2] = balanced(torch.full((2, 2, 2, 2), 2.0**14), 1000).double()
    exact = x.var((0, 2, 3), correction=0)
    _, mean, var = ops.batch_norm.batch_norm_act(laid_out(x.float(), layout))
    assert torch.equal(mean.double(), torch.full((2,), 1000.0, dtype=torch.float64))
    # Deviations are exact, their squares are not.
    assert_within(var, exact, gamma(64 * 16 * 16, torch.float32) * exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(16, 3, 8, 8), (64, 3, 8, 16)])
def test_steps_of_exact_numbers_are_exact(
    size: tuple[int, ...], layout: str, dtype: torch.dtype, isa: str, needs_extension: None
) -> None:
    """Sums and quotients without a rounding: one number that is lost or read twice shows."""
    x = balanced(torch.full(size, 2.0), 3).double()  # of variance 4
    g, residual = integers(*size), integers(*size, seed=1)
    weight, bias = integers(size[1], seed=2), integers(size[1], seed=3)
    exact = plain.batch_norm.batch_norm_act(x, weight, bias, residual, 0.0, False)
    assert torch.equal(exact[2], torch.full_like(bias, 4))
    gradients = plain.batch_norm.batch_norm_act_backward(
        g, x, weight, bias, *exact[1:], None, 0.0, False, True, False
    )
    narrow = [laid_out(t.to(dtype), layout) for t in (x, g, residual)]
    parameters = [t.to(dtype) for t in (weight, bias)]
    y, mean, var = ops.batch_norm.batch_norm_act(narrow[0], *parameters, narrow[2], 0.0)
    d_x, _, d_weight, d_bias = torch.ops.sparseprune.batch_norm_act_backward(
        narrow[1], narrow[0], *parameters, mean, var, None, 0.0, False, True, False
    )
    found = (y, mean, var, d_x, d_weight, d_bias)
    for ours, expected in zip(found, (*exact, gradients[0], *gradients[2:]), strict=True):
        assert torch.equal(ours, expected.to(ours.dtype))
