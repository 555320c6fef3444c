"""Batch normalisation with residual and ReLU against ``nn.BatchNorm2d`` in float64: operators and module."""

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparseprune import ops
from sparseprune.format.memory import in_layout, is_batch_inner_images
from sparseprune.nn import BatchNormAct2d
from sparseprune.ops import plain

LAYOUTS = ("contiguous", "batch-inner", "channels-last", "sliced")
# Around a vector's length, around the block of numbers that kernels take at once, and single pixels.
SIZES = [
    (17, 3, 5, 9),
    (2, 1, 1, 1),
    (64, 4, 7, 5),
    (1, 2, 3, 1),
    (16, 2, 1, 1),
    (33, 2, 8, 8),
    (2, 3, 48, 47),
]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float64: 1e-11}


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "batch-inner":
        return in_layout(x, True)
    if layout == "channels-last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return torch.cat([x, x], 3)[..., : x.shape[3]]
    return x


def norm_of(channels: int, dtype: torch.dtype, **arguments: Any) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, dtype=dtype, **arguments)
    with torch.no_grad():
        for tensor in itertools.chain(norm.parameters(), norm.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return norm


def results(
    norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, g: Tensor, relu: bool
) -> dict[str, Tensor | None]:
    """Output, gradients and statistics of a step."""
    x = x.detach().requires_grad_()
    residual = None if residual is None else residual.detach().requires_grad_()
    if isinstance(norm, BatchNormAct2d):
        y = norm(x, residual)
    else:
        y = norm(x) if residual is None else norm(x) + residual
        y = y.relu() if relu else y
    y.backward(g)
    return {
        "y": y.detach(),
        "x": x.grad,
        "residual": None if residual is None else residual.grad,
        "weight": None if norm.weight is None else norm.weight.grad,
        "bias": None if norm.bias is None else norm.bias.grad,
        "mean": norm.running_mean,
        "var": norm.running_var,
    }


def assert_like_torch(
    norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, g: Tensor, relu: bool
) -> None:
    """A step of ``BatchNormAct2d`` against one of torch's layer in float64, with the same masks."""
    wide = [None if t is None else t.double() for t in (x, residual)]
    assert wide[0] is not None
    fused = BatchNormAct2d.from_batch_norm(copy.deepcopy(norm), relu)
    ours = results(fused, x, residual, g, relu)
    if relu and ours["y"] is not None:
        # Where an output is within rounding of 0, both masks are right: take ours.
        exact = copy.deepcopy(norm).double()(wide[0]).detach() + (0 if wide[1] is None else wide[1])
        doubtful = (exact > 0) != (ours["y"] > 0)
        assert exact[doubtful].abs().le(0.05 if x.dtype == torch.bfloat16 else 1e-4).all()
        g = g.masked_fill(doubtful, 0)
        fused = BatchNormAct2d.from_batch_norm(copy.deepcopy(norm), relu)
        ours = results(fused, x, residual, g, relu)
    theirs = results(copy.deepcopy(norm).double(), wide[0], wide[1], g.double(), relu)
    tolerance = TOLERANCE[x.dtype]
    for name, expected in theirs.items():
        got = ours[name]
        assert (got is None) == (expected is None), name
        if got is not None and expected is not None:
            # Sums over a channel lose in proportion to what was added up.
            scale = float(expected.abs().max().clamp_min(1)) if name in ("weight", "bias", "x") else 1.0
            torch.testing.assert_close(
                got.double(),
                expected,
                rtol=tolerance,
                atol=tolerance * scale,
                msg=lambda m, n=name: f"{n}: {m}",
            )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
def test_step_is_torchs_over_shapes(
    size: tuple[int, ...], dtype: torch.dtype, training: bool, isa: str
) -> None:
    torch.manual_seed(0)
    for layout, relu, added in itertools.product(LAYOUTS, (False, True), (False, True)):
        x = laid_out((torch.randn(size) * 2 + 3).to(dtype), layout)
        residual = torch.randn(size).to(dtype) if added else None
        norm = norm_of(size[1], dtype).train(training)
        assert_like_torch(norm, x, residual, torch.randn(size).to(dtype), relu)


@pytest.mark.parametrize(
    "arguments",
    [
        {"affine": False},
        {"track_running_stats": False},
        {"momentum": None},
        {"momentum": 0.3, "eps": 0.1},
        {"affine": False, "track_running_stats": False},
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_step_is_torchs_with_arguments(arguments: dict[str, Any], training: bool) -> None:
    torch.manual_seed(0)
    norm = norm_of(3, torch.float64, **arguments).train(training)
    fused = BatchNormAct2d.from_batch_norm(copy.deepcopy(norm))
    for _ in range(3):
        x, g = torch.randn(2, 16, 3, 4, 5, dtype=torch.float64)
        assert_like_torch(norm, x, None, g, False)
        torch.testing.assert_close(fused(x), norm(x))
    torch.testing.assert_close(fused.state_dict(), norm.state_dict())


def test_step_takes_float32_parameters_for_bfloat16() -> None:
    torch.manual_seed(0)
    x, residual, g = torch.randn(3, 17, 3, 4, 5).bfloat16()
    norm = norm_of(3, torch.float32)
    assert_like_torch(norm, x, residual, g, True)
    y = BatchNormAct2d.from_batch_norm(norm)(x)
    assert y.dtype == torch.bfloat16


def test_variance_of_numbers_far_from_zero_is_exact(isa: str) -> None:
    torch.manual_seed(0)
    for outlier in (0.0, 1e4):
        x = torch.randn(64, 2, 16, 16) + 1000
        x[0, :, 0, 0] += outlier
        _, mean, var = ops.batch_norm.batch_norm_act(in_layout(x, True))
        exact = x.double()
        torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=0)
        torch.testing.assert_close(var.double(), exact.var((0, 2, 3), correction=0), rtol=1e-5, atol=0)


def test_gradient_mask_is_the_outputs_sign(isa: str) -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        x = in_layout(torch.randint(-2, 3, (33, 2, 5, 5)).to(dtype), True)  # many outputs of exactly 0
        norm = BatchNormAct2d(2, dtype=dtype, relu=True).eval()
        with torch.no_grad():
            norm.weight.fill_(1 / 3)
            norm.bias.copy_(-norm.weight * torch.tensor([1.0, 0.0], dtype=dtype))
        x.requires_grad_()
        y = norm(x)
        y.backward(torch.ones_like(y))
        assert torch.equal(x.grad != 0, y > 0)


def test_nan_reaches_output_and_gradient(isa: str) -> None:
    x = torch.randn(16, 2, 3, 3)
    x[0, 0, 0, 0] = float("nan")
    x = in_layout(x, True).requires_grad_()
    y = BatchNormAct2d(2, relu=True)(x)
    y.sum().backward()
    assert y[:, 0].isnan().all()
    assert x.grad is not None
    assert x.grad[:, 0].isnan().all()
    assert y[:, 1].isfinite().all()
    assert x.grad[:, 1].isfinite().all()


def test_results_have_the_same_bits_at_any_number_of_threads(restored_threads: None) -> None:
    torch.manual_seed(0)
    x, residual, g = (in_layout(torch.randn(64, 5, 16, 16), True) for _ in range(3))
    norm = norm_of(5, torch.float32)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(results(BatchNormAct2d.from_batch_norm(copy.deepcopy(norm), True), x, residual, g, True))
    for other in found[1:]:
        for name, tensor in found[0].items():
            assert tensor is not None
            assert torch.equal(tensor, other[name]), name


# ---- layout ----


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inner", [None, True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_is_in_the_layout_asked_for(layout: str, inner: bool | None, training: bool) -> None:
    x = laid_out(torch.randn(17, 3, 5, 4), layout)
    norm = BatchNormAct2d(3).train(training)
    norm.batch_inner = inner
    for dtype in (torch.float32, torch.float16):  # kernels, torch's functions
        y = norm.to(dtype)(x.to(dtype))
        expected = is_batch_inner_images(x) if inner is None else inner
        assert is_batch_inner_images(y) == expected
        assert y.is_contiguous() == (not expected)


def test_few_samples_are_ordinary_in_memory() -> None:
    norm = BatchNormAct2d(3)
    norm.batch_inner = True
    assert norm(in_layout(torch.randn(15, 3, 5, 4), True)).is_contiguous()
    assert is_batch_inner_images(norm(torch.randn(16, 3, 5, 4)))


def test_gradients_are_batch_inner_where_the_input_is() -> None:
    x = in_layout(torch.randn(17, 3, 5, 4), True).requires_grad_()
    y = BatchNormAct2d(3, relu=True)(x)
    (d_x,) = torch.autograd.grad(y, x, torch.randn(17, 3, 5, 4))
    assert is_batch_inner_images(d_x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "batch-inner"])
def test_output_may_be_changed_in_place(layout: str, training: bool) -> None:
    torch.manual_seed(0)
    x, shortcut, g = (laid_out(torch.randn(17, 3, 5, 4), layout) for _ in range(3))
    norm = norm_of(3, torch.float32).train(training)
    fused = BatchNormAct2d.from_batch_norm(copy.deepcopy(norm))
    found = []
    for module in (norm, fused):
        x = x.detach().requires_grad_()
        y = module(x)
        y += shortcut
        y.relu_().backward(g)
        found.append((x.grad, module.weight.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


# ---- operators ----


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
    for added, relu, inner in ((residual, True, None), (None, False, True), (None, True, False)):
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


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_functions_agree_with_the_operators(layout: str, dtype: torch.dtype, needs_extension: None) -> None:
    x, residual, weight, bias = (t.detach() for t in operands(dtype, layout, (17, 2, 4, 5)))
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    mean, var = torch.tensor([0.1, -0.2], dtype=sums), torch.tensor([0.5, 2.0], dtype=sums)
    calls: list[tuple[str, tuple[Any, ...]]] = []
    for added, relu, inner in ((residual, True, None), (None, False, True), (None, True, False)):
        calls += [
            ("batch_norm_act", (x, weight, bias, added, 1e-5, relu, inner)),
            ("batch_norm_act_eval", (x, weight, bias, mean, var, added, 1e-5, relu, inner)),
        ]
        gradient = (residual, x, weight, bias, mean, var, x if added is not None else None, 1e-5)
        calls += [
            ("batch_norm_act_backward", (*gradient, relu, training, relu)) for training in (True, False)
        ]
    for name, arguments in calls:
        ours = getattr(plain.batch_norm, name)(*arguments)
        theirs = getattr(torch.ops.sparseprune, name).default(*arguments)
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=10 * tolerance, check_stride=True)


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


# ---- module ----


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("dtype", "residual_dtype"), [(torch.float16, torch.float16), (torch.float32, torch.float64)]
)
def test_module_without_kernels_computes_as_torch(
    dtype: torch.dtype, residual_dtype: torch.dtype, training: bool
) -> None:
    x, residual = torch.randn(16, 3, 4, 5).to(dtype), torch.randn(16, 3, 4, 1).to(residual_dtype)
    norm = norm_of(3, dtype).train(training)
    fused = BatchNormAct2d.from_batch_norm(copy.deepcopy(norm), relu=True)
    assert torch.equal(fused(x, residual), (norm(x) + residual).relu())
    torch.testing.assert_close(fused.state_dict(), norm.state_dict(), rtol=0, atol=0)


def test_module_refuses_what_torch_refuses() -> None:
    norm = BatchNormAct2d(3)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        norm(torch.randn(1, 3, 1, 1))
    with pytest.raises(ValueError, match="expected 4D input"):
        norm(torch.randn(16, 3, 1))
    with pytest.raises(RuntimeError):
        norm(torch.randn(16, 4, 2, 2))


def test_from_batch_norm_takes_the_same_tensors_over() -> None:
    norm = norm_of(3, torch.float32, momentum=0.2, eps=1e-3).eval()
    norm.weight.requires_grad_(False)
    fused = BatchNormAct2d.from_batch_norm(norm, relu=True)
    assert fused.weight is norm.weight
    assert fused.running_var is norm.running_var
    assert list(fused.state_dict()) == list(norm.state_dict())
    assert (fused.momentum, fused.eps, fused.training, fused.relu) == (0.2, 1e-3, False, True)
    assert "relu=True" in repr(fused)
    again = fused.to_batch_norm()
    assert type(again) is nn.BatchNorm2d
    assert again.weight is not norm.weight
    assert (again.momentum, again.eps, again.training) == (0.2, 1e-3, False)
    assert not again.weight.requires_grad
    torch.testing.assert_close(again.state_dict(), norm.state_dict(), rtol=0, atol=0)


def test_from_batch_norm_refuses_derived_classes() -> None:
    class Other(nn.BatchNorm2d):
        pass

    with pytest.raises(TypeError, match=r"expected an nn\.BatchNorm2d, got Other"):
        BatchNormAct2d.from_batch_norm(Other(3))


def test_module_survives_copies() -> None:
    norm = BatchNormAct2d.from_batch_norm(norm_of(3, torch.float32), relu=True)
    norm.batch_inner = True
    x = torch.randn(16, 3, 4, 5)
    expected = copy.deepcopy(norm)(x)
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert other.batch_inner
        assert torch.equal(other(x), expected)


def test_module_compiles() -> None:
    torch.manual_seed(0)
    norm = norm_of(3, torch.float32)
    plain, compiled = (BatchNormAct2d.from_batch_norm(copy.deepcopy(norm), True) for _ in range(2))
    step = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for training in (True, False):
        plain.train(training)
        compiled.train(training)
        found = []
        for module in (plain, step):
            x, residual = (
                t.detach().requires_grad_() for t in operands(torch.float32, "batch-inner", (17, 3, 4, 5))[:2]
            )
            y = module(x, residual)
            y.square().sum().backward()
            found.append((y, x.grad, residual.grad))
        torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(plain.state_dict(), compiled.state_dict())
