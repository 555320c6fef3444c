import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import assert_sums, of_function
from conv_problems import Case, arguments_of, call, operands_of, problem_once
from torch import Tensor

from sparseprune import ops
from sparseprune.format.bsr import bsr_from_mask
from sparseprune.ops import plain


@pytest.mark.parametrize("function", plain.SCHEMAS)
def test_schemas_are_those_of_the_operators(function: Any) -> None:
    operator = getattr(torch.ops.sparseprune, function.__name__).default
    assert torch._C.parse_schema(f"sparseprune::{plain.SCHEMAS[function]}") == operator._schema


def test_schemas_are_complete(needs_extension: None) -> None:
    compiled = (Path(__file__).parents[2] / "csrc" / "ops.cpp").read_text()
    for schema in plain.SCHEMAS.values():
        assert f"{schema.partition('(')[0]}(" in compiled
    assert compiled.count("m.def(") == len(plain.SCHEMAS)


def operands(
    rows: int,
    cols: int,
    batch: int,
    density: float,
    seed: int,
    block_rows: int = 1,
    dtype: torch.dtype = torch.float64,
) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows // block_rows, cols, generator=generator) < density
    crow, col = bsr_from_mask(mask.repeat_interleave(block_rows, 0), block_rows)
    x, g = (torch.randn(batch, n, generator=generator).to(dtype).t() for n in (cols, rows))
    values = torch.randn(len(col), block_rows, generator=generator).to(dtype)
    bias = torch.randn(rows, generator=generator).to(dtype)
    return x, g, values, ops.plans(crow, col, cols, block_rows), bias


@pytest.mark.parametrize("batch_inner", [False, True])
@pytest.mark.parametrize(
    ("rows", "cols", "batch", "density", "block_rows", "dtype"),
    [
        (1, 1, 1, 1.0, 1, torch.float64),
        (7, 33, 17, 0.3, 1, torch.float64),
        (32, 33, 17, 0.3, 4, torch.float64),
        (24, 33, 17, 0.3, 8, torch.bfloat16),
        (33, 7, 1, 0.3, 1, torch.float64),
        (5, 9, 0, 0.5, 1, torch.float64),
        (9, 5, 3, 0.0, 1, torch.float64),
        (0, 5, 3, 1.0, 1, torch.float64),
        (40, 1, 3, 1.0, 2, torch.float64),
    ],
)
def test_functions_agree_with_the_operators(
    rows: int,
    cols: int,
    batch: int,
    density: float,
    block_rows: int,
    dtype: torch.dtype,
    batch_inner: bool,
    needs_extension: None,
) -> None:
    for seed in range(3):
        x, g, values, pattern, bias = operands(rows, cols, batch, density, seed, block_rows, dtype)
        if batch_inner:
            x, g = x.contiguous(), g.contiguous()
        calls: dict[str, tuple[Any, ...]] = {
            "spmm": (x, values, *pattern, bias, (None, False, True)[seed], seed == 1),
            "spmm_t": (g, values, *pattern, cols),
            "sddmm": (g, x, *pattern, block_rows),
            "spmm_backward": (g, x, values, *pattern, g.flip(1) if seed == 1 else None),
        }
        for name, arguments in calls.items():
            check_agreement(getattr(plain.products, name), name, arguments)


def check_agreement(function: Callable[..., Any], name: str, arguments: tuple[Any, ...]) -> None:
    """Plain torch's function and the operator: one layout, and both within bounds of the exact results."""
    # Numbers that products are made of; behind the pattern of spmm_backward is the gate of a ReLU.
    floating = [k for k, t in enumerate(arguments) if isinstance(t, Tensor) and t.is_floating_point()]
    factors = [k for k in floating if name != "spmm_backward" or k < 3]

    def exactly(*tensors: Tensor) -> Any:
        wide = [t.double() if k in floating else t for k, t in enumerate(arguments)]
        for k, t in zip(factors, tensors, strict=True):
            wide[k] = t
        return function(*wide)

    expected = of_function(exactly, *(arguments[k] for k in factors))
    found = [f(*arguments) for f in (function, getattr(torch.ops.sparseprune, name).default)]
    results = [[f] if isinstance(f, Tensor) else f for f in found]
    for ours, theirs, sums in zip(*results, expected, strict=True):
        assert (ours.stride(), ours.dtype) == (theirs.stride(), theirs.dtype)
        assert_sums(ours, sums, f"{name} in plain torch")
        assert_sums(theirs, sums, name)


@pytest.mark.parametrize(
    "case",
    [
        Case(3, dtype=torch.float64),
        Case(17, layout="batch_inner", stride=(2, 1), pad=(0, 2, 1, 0), dtype=torch.float64),
        Case(17, 2, 1, groups=3, block_rows=4, dtype=torch.bfloat16),
        Case(0, layout="channels_last"),
        Case(2, pattern="no_weight"),
    ],
)
def test_convolutions_agree_with_the_operators(case: Case, needs_extension: None) -> None:
    for name, arguments in arguments_of(problem_once(case)).items():
        with torch.no_grad():
            check_agreement(getattr(plain.convolution, name), name, arguments)


@pytest.mark.parametrize(
    ("name", "what", "change"),
    [
        ("conv2d", "x", lambda t: t[:, 1:]),
        ("conv2d", "x", lambda t: t[0]),
        ("conv2d", "x", lambda t: t[:, :, :0]),
        ("conv2d", "x", lambda t: t[..., :0]),
        ("conv2d", "bias", lambda t: t[1:]),
        ("conv2d", "values", lambda t: t[1:]),
        ("conv2d", "values", lambda t: t.double()),
        ("conv2d", "bias", lambda t: t.bfloat16()),
        ("conv2d_sddmm", "x", lambda t: t.double()),
        ("conv2d_t", "values", lambda t: t.double()),
        ("conv2d_t", "values", lambda t: t[:, 0]),
        ("conv2d_t", "g", lambda t: t[:, :, 1:]),
        ("conv2d_t", "g", lambda t: t[:, 1:]),
        ("conv2d_sddmm", "x", lambda t: t[1:]),
        ("conv2d_sddmm", "g", lambda t: t[..., 1:]),
        ("conv2d_backward", "x", lambda t: t[:, 1:]),
        ("conv2d_backward", "values", lambda t: t[1:]),
    ],
)
def test_convolution_errors_are_those_of_the_operator(
    name: str, what: str, change: Any, needs_extension: None
) -> None:
    operands = operands_of(problem_once(Case()))
    operands[what] = change(operands[what])
    with pytest.raises(ValueError, match=f"^{name}: expected") as ours:
        call(name, operands, getattr(plain.convolution, name))
    with pytest.raises(ValueError, match=f"^{name}: expected") as theirs:
        call(name, operands)
    assert str(ours.value) == str(theirs.value)


def test_topk_masks_agrees_with_the_operator(needs_extension: None) -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        scores = [torch.randn(7, 5, generator=generator).to(dtype), torch.zeros(4, dtype=dtype)]
        scores += [-scores[1], (scores[0] * 2).round().t(), torch.empty(0, dtype=dtype)]
        n = sum(score.numel() for score in scores)
        for k in range(n + 1):
            ours, theirs = plain.topk.topk_masks(scores, k), ops.topk_masks(scores, k)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("scores", "k"),
    [
        ([torch.zeros(2), torch.zeros(1)], 4),
        ([torch.zeros(2)], -1),
        ([torch.zeros(2), torch.tensor([0.0, float("nan")])], 1),
        ([torch.tensor([0.0, float("-inf")])], 1),
    ],
)
def test_topk_masks_errors_are_those_of_the_operator(
    scores: list[Tensor], k: int, needs_extension: None
) -> None:
    with pytest.raises(ValueError, match=r"^topk_masks: expected") as ours:
        plain.topk.topk_masks(scores, k)
    with pytest.raises(ValueError, match=r"^topk_masks: expected") as theirs:
        ops.topk_masks(scores, k)
    assert str(ours.value) == str(theirs.value)


def test_topk_masks_sees_denormals_when_arithmetic_flushes_them() -> None:
    single = torch.tensor([0.0, 1e-40, 3e-40, -1e-40, 2e-40])
    double = torch.tensor([-3e-310, 1e-310, -1e-310], dtype=torch.float64)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        masks = [plain.topk.topk_masks([scores], 2)[0].tolist() for scores in (single, double)]
    finally:
        torch.set_flush_denormal(False)
    assert masks == [[False, False, True, False, True], [False, True, True]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, v, p: plain.products.spmm(x[0], v, *p), "x.shape == [features, batch], got 1 dimensions"),
        (
            lambda x, v, p: plain.products.spmm(x, v[1:], *p),
            " (blocks of the pattern), rows of a block], got [",
        ),
        (lambda x, v, p: plain.products.spmm(x, v, *p, x[0]), "bias.shape == [7 (weight rows)], got [17]"),
    ],
)
def test_spmm_refuses_bad_shapes(call: Any, message: str) -> None:
    x, _, values, pattern, _ = operands(7, 33, 17, 0.3, 0)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call(x, values, pattern)
    assert message in str(error.value)


def test_suite_passes_in_plain_torch() -> None:
    if ops.extension is None:
        pytest.skip("this is plain torch already")
    tests = Path(__file__).parents[1]
    chosen = "shapes or layouts or patterns or opcheck or gradients or drop_in or round_trip or densify"
    chosen += " or float32 or products"
    files = [
        "ops/test_linear_ops.py",
        "ops/test_linear_autograd.py",
        "ops/test_conv_ops.py",
        "ops/test_conv_autograd.py",
        "ops/test_functorch.py",
        "ops/test_tracing.py",
        "ops/test_sizes.py",
        "nn/test_linear.py",
        "nn/test_linear_state.py",
        "test_sparsify.py",
        "test_sparse_models.py",
    ]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen]
        + [str(tests / name) for name in files],
        env={**os.environ, "SPARSEPRUNE_FALLBACK": "1"},
        cwd=tests.parent,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-3000:]
