"""Batch normalisation with residual and ReLU beside ``nn.BatchNorm2d``."""

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from bounds import Rounded, assert_half_the_digits, of_batch_norm
from layers import LAYOUTS, laid_out
from torch import Tensor, nn

from sparseprune.format.memory import in_layout, is_batch_inner_images
from sparseprune.nn import BatchNormAct2d

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
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def norm_of(channels: int, dtype: torch.dtype, **arguments: Any) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, dtype=dtype, **arguments)
    with torch.no_grad():
        for tensor in itertools.chain(norm.parameters(), norm.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return norm


def results(norm: BatchNormAct2d, x: Tensor, residual: Tensor | None, g: Tensor) -> dict[str, Tensor | None]:
    """Output, gradients and statistics of a step."""
    x = x.detach().requires_grad_()
    residual = None if residual is None else residual.detach().requires_grad_()
    y = norm(x, residual)
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


def expected_results(
    norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, g: Tensor
) -> dict[str, Rounded | None]:
    """Those of a step without ReLU, with their errors; of torch's layer in float64 the same."""
    given = not norm.training and norm.running_mean is not None
    statistics = (norm.running_mean, norm.running_var) if given else None
    found = of_batch_norm(x, g, norm.weight, norm.bias, residual, norm.eps, statistics)
    expected: dict[str, Rounded | None] = {name: found[name] for name in ("y", "x")}
    for name, parameter in (("weight", norm.weight), ("bias", norm.bias)):
        expected[name] = None if parameter is None else found[name].stored(parameter.dtype)
    expected["mean"] = expected["var"] = None
    if norm.running_mean is not None:
        n = x.numel() // x.shape[1]
        seen = int(norm.num_batches_tracked) + 1
        part = 0.0 if not norm.training else 1 / seen if norm.momentum is None else norm.momentum
        unbiased = n / (n - 1) if norm.training else 1.0
        for name, before, factor in (("mean", norm.running_mean, 1.0), ("var", norm.running_var, unbiased)):
            dtype = before.dtype  # in which statistics are mixed
            old = Rounded.given(before.reshape(1, -1, 1, 1), dtype)
            new = found[name]
            mixed = Rounded(
                (1 - part) * old.exact + part * factor * new.exact, part * factor * new.error, dtype
            ).rounded(4, old.exact.abs() + factor * (new.exact.abs() + new.error))
            expected[name] = mixed if norm.training else old
    return expected


def assert_like_torch(
    norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, g: Tensor, relu: bool
) -> None:
    """A step of ``BatchNormAct2d`` within its error bounds, and those around torch's layer in float64."""
    ours = results(BatchNormAct2d.from_batch_norm(copy.deepcopy(norm), relu), x, residual, g)
    assert ours["y"] is not None
    gate = ours["y"] > 0 if relu else torch.ones_like(ours["y"], dtype=torch.bool)
    expected = expected_results(norm, x, residual, g * gate)
    assert expected["y"] is not None
    if residual is not None:
        assert torch.equal(ours["residual"], g * gate)
    y = copy.deepcopy(norm).double()(x.double()) + (0 if residual is None else residual.double())
    assert_half_the_digits(expected["y"].exact, y.detach(), "the reference")
    if relu:
        # The gate is that of an output within the bounds of the exact one.
        expected["y"] = expected["y"]._replace(exact=expected["y"].exact.relu())
    for name, bounded in expected.items():
        got = ours[name]
        assert (got is None) == (bounded is None), name
        if got is not None and bounded is not None:
            bounded.check(got, name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
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
        fused(x)
        norm(x)
    assert list(fused.state_dict()) == list(norm.state_dict())
    for ours, theirs in zip(fused.state_dict().values(), norm.state_dict().values(), strict=True):
        assert_half_the_digits(ours, theirs)  # after three steps


def test_step_takes_float32_parameters_for_bfloat16() -> None:
    torch.manual_seed(0)
    x, residual, g = torch.randn(3, 17, 3, 4, 5).bfloat16()
    norm = norm_of(3, torch.float32)
    assert_like_torch(norm, x, residual, g, True)
    y = BatchNormAct2d.from_batch_norm(norm)(x)
    assert y.dtype == torch.bfloat16


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
        found.append(results(BatchNormAct2d.from_batch_norm(copy.deepcopy(norm), True), x, residual, g))
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
    x.requires_grad_()
    y = fused(x)
    y += shortcut
    y.relu_().backward(g)
    statistics = None if training else (norm.running_mean, norm.running_var)
    gated = g * (y.detach() > 0)
    expected = of_batch_norm(x, gated, norm.weight, norm.bias, shortcut, norm.eps, statistics)
    expected["y"]._replace(exact=expected["y"].exact.relu()).check(y, "y")
    expected["x"].check(x.grad, "x")
    expected["weight"].check(fused.weight.grad, "weight")


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
            torch.manual_seed(1)
            x, residual = (in_layout(torch.randn(17, 3, 4, 5), True).requires_grad_() for _ in range(2))
            y = module(x, residual)
            y.square().sum().backward()
            found.append((y, x.grad, residual.grad))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    torch.testing.assert_close(plain.state_dict(), compiled.state_dict(), rtol=0, atol=0)
