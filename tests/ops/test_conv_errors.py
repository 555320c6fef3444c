"""What the operators of sparse convolution refuse, and what they say."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_problems import NAMES, Case, call, operands_of, problem_once

from sparseprune.ops import convolution
from sparseprune.ops.convolution import Geometry

# ---- errors ----

REFUSED = Case(17, 3, 6, (7, 6), groups=2)  # x (17, 6, 7, 6), g (17, 12, 7, 6)


def bad(name: str, what: str, change: Callable[[Any], Any], message: str) -> Any:
    return pytest.param(name, what, change, message, id=f"{name}-{what}-{message[:40]}")


def with_number(at: int, number: int) -> Callable[[list[int]], list[int]]:
    return lambda geometry: [*geometry[:at], number, *geometry[at + 1 :]]


@pytest.mark.parametrize(
    ("name", "what", "change", "message"),
    [
        *(
            bad(name, what, change, f"{what}.shape == [samples, {n} ({of}), height, width], got {got}")
            for name, what, n, of in [
                ("conv2d", "x", 6, "in_channels"),
                ("conv2d_sddmm", "x", 6, "in_channels"),
                ("conv2d_backward", "x", 6, "in_channels"),
                ("conv2d_t", "g", 12, "out_channels"),
                ("conv2d_sddmm", "g", 12, "out_channels"),
                ("conv2d_backward", "g", 12, "out_channels"),
            ]
            for change, got in [(lambda t: t[:, 1:], f"[17, {n - 1}, 7, 6]")]
        ),
        bad(
            "conv2d",
            "x",
            lambda t: t[0],
            "x.shape == [samples, 6 (in_channels), height, width], got [6, 7, 6]",
        ),
        bad("conv2d_t", "g", lambda t: t[0], "(out_channels), height, width], got [12, 7, 6]"),
        bad("conv2d_sddmm", "x", lambda t: t[1:], "of as many samples, got [16, 6, 7, 6] and [17, 12, 7, 6]"),
        bad(
            "conv2d_backward",
            "g",
            lambda t: t[1:],
            "of as many samples, got [17, 6, 7, 6] and [16, 12, 7, 6]",
        ),
        bad("conv2d_t", "g", lambda t: t[:, :, 1:], "g of height and width 7 x 6 (the output's), got 6 x 6"),
        bad("conv2d_backward", "x", lambda t: t[..., 1:], "width 7 x 5 (the output's), got 7 x 6"),
        bad("conv2d_t", "input_size", lambda s: [7, 7], "width 7 x 7 (the output's), got 7 x 6"),
        bad("conv2d_t", "input_size", lambda s: [7], "input_size to be [height, width], got 1 numbers"),
        bad("conv2d", "x", lambda t: t[:, :, :0], "at least 3 (the kernel's reach) in height, got 2"),
        bad("conv2d", "x", lambda t: t[..., :0], "at least 3 (the kernel's reach) in width, got 2"),
        bad("conv2d", "bias", lambda t: t[1:], "bias.shape == [12 (out_channels)], got [11]"),
        bad("conv2d", "bias", lambda t: t.double(), "bias to be float32, got float64"),
        bad(
            "conv2d_act",
            "x",
            lambda t: t[:, 1:],
            "x.shape == [samples, 6 (in_channels), height, width], got [",
        ),
        bad("conv2d_act", "bias", lambda t: t[1:], "bias.shape == [12 (out_channels)], got [11]"),
        bad(
            "conv2d_act",
            "residual",
            lambda t: t[..., 1:],
            "residual.shape == [17, 12, 7, 6] (the output's), got",
        ),
        bad(
            "conv2d_act", "residual", lambda t: t[1:], "residual.shape == [17, 12, 7, 6] (the output's), got"
        ),
        bad("conv2d_act", "residual", lambda t: t.double(), "residual to be float32, got float64"),
        *(
            bad(name, "values", change, message)
            for name in ("conv2d", "conv2d_t", "conv2d_backward")
            for change, message in [
                (lambda t: t[1:], "(nonzero blocks of the pattern), rows of a block], got ["),
                (lambda t: t[:, 0], "(nonzero blocks of the pattern), rows of a block], got ["),
                (lambda t: t.double(), "values to be float32, got float64"),
            ]
        ),
        bad("conv2d", "values", lambda t: t.expand(-1, 3), "block_rows to be 1, 2, 4, 8 or 16, got 3"),
        bad("conv2d_t", "values", lambda t: t.expand(-1, 2), "== 1 (rows of a block of the plan), got 2"),
        bad("conv2d_sddmm", "block_rows", lambda n: 2, "block_rows == 1 (the plan's), got 2"),
        bad("conv2d", "x", lambda t: t.half(), "(or float64, slow, for checking gradients), got float16"),
        bad("conv2d_t", "g", lambda t: t.int(), "got int32; convert with .float()"),
        bad("conv2d_sddmm", "x", lambda t: t.bfloat16(), "x to be float32, got bfloat16"),
        *(
            bad(name, what, lambda t: t.long(), f"{what} to be int32, got int64")
            for name in NAMES
            for what in ("crow", "col")
        ),
        *(
            bad(name, "geometry", lambda g: g[1:], "geometry to hold 12 numbers (in_channels, ")
            for name in NAMES
        ),
        bad("conv2d", "geometry", with_number(0, 5), "in_channels divisible by groups, got 5 and 2"),
        bad("conv2d", "geometry", with_number(3, 0), "stride of at least 1 and below 2^31, got 0"),
        bad("conv2d", "geometry", with_number(5, -1), "padding of at least 0 and below 2^31, got -1"),
        bad("conv2d", "geometry", with_number(1, 1), "col within 0 .. 8 (weight columns), got another index"),
        bad("conv2d", "crow", lambda t: t[1:], "rows of blocks divisible by groups (2)"),
    ],
)
def test_convolution_refuses_bad_arguments(
    name: str, what: str, change: Callable[[Any], Any], message: str, needs_extension: None
) -> None:
    operands = operands_of(problem_once(REFUSED))
    call(name, operands)
    operands[what] = change(operands[what])
    with pytest.raises(ValueError, match=f"{name}: expected .*{re.escape(message)}"):
        call(name, operands)


@pytest.mark.parametrize("name", NAMES[2:])
def test_convolution_refuses_wrong_plans(name: str, needs_extension: None) -> None:
    p = problem_once(REFUSED)
    operands, plan_t = operands_of(p), p.pattern.plan_t
    message = (
        f"{name}: expected a plan made by sparseprune::conv2d_plan, got another tensor; build it from crow"
    )
    for wrong in (torch.zeros_like(plan_t), plan_t[:5], plan_t[None], plan_t[:0], plan_t.repeat(2)[::2]):
        with pytest.raises(ValueError, match=message):
            call(name, {**operands, "plan_t": wrong})
    with pytest.raises(ValueError, match=f"{name}: expected plan_t to be int32, got int64"):
        call(name, {**operands, "plan_t": plan_t.long()})
    # Plans of another geometry, of too few weights, cut off.
    stale = problem_once(REFUSED._replace(pattern="tiny")).pattern.plan_t
    elsewhere = problem_once(REFUSED._replace(pad=(0, 2, 1, 1))).pattern.plan_t
    for wrong in (stale, elsewhere, plan_t[:-1]):
        with pytest.raises(
            ValueError, match=r"the plan of this pattern and geometry .*; build it again after"
        ):
            call(name, {**operands, "plan_t": wrong})


@pytest.mark.parametrize("name", NAMES)
def test_convolution_refuses_tensors_on_several_devices(name: str) -> None:
    operands = operands_of(problem_once(REFUSED))
    of_input = ("x", "values")
    for what in {"conv2d": of_input, "conv2d_act": of_input, "conv2d_t": ("g", "values")}.get(
        name, ("g", "x")
    ):
        message = f"{name}: expected all tensors on one device, got cpu and meta; move them with .to()"
        with pytest.raises(ValueError, match=re.escape(message)):
            call(name, {**operands, what: operands[what].to("meta")})


@pytest.mark.parametrize(
    ("crow", "col", "block_rows", "message"),
    [
        ([0, 2, 1, 1, 1], [0], 1, "crow to ascend, but row 0 goes from 0 to 2"),
        ([0, 1, 1, 1, 1], [9], 1, "columns of a row to ascend within 0 .. 8, got 9 in row 0"),
        ([0, 2, 2, 2, 2], [1, 1], 1, "columns of a row to ascend within 0 .. 8, got 1 in row 0"),
        ([0, 1, 1, 1], [0], 1, "rows of blocks divisible by groups (2), got 3; use smaller blocks"),
        ([0, 1, 1], [0], 3, "block_rows to be 1, 2, 4, 8 or 16, got 3"),
    ],
)
def test_conv_pattern_refuses_malformed_patterns(
    crow: list[int], col: list[int], block_rows: int, message: str, needs_extension: None
) -> None:
    starts, columns = torch.tensor(crow, dtype=torch.int32), torch.tensor(col, dtype=torch.int32)
    with pytest.raises(ValueError, match=f"conv2d_plan: expected .*{re.escape(message)}"):
        convolution.conv_pattern(starts, columns, Geometry(2, 3, 3, groups=2), block_rows)


def test_output_size_refuses_small_inputs() -> None:
    geometry = Geometry(3, 3, 2, pad_left=1, dilation_h=2, dilation_w=3)
    assert geometry.output_size(5, 3) == (1, 1)
    with pytest.raises(ValueError, match=r"at least 5 \(the kernel's reach\) in height, got 4"):
        geometry.output_size(4, 3)
    with pytest.raises(ValueError, match=r"at least 4 \(the kernel's reach\) in width, got 3"):
        geometry.output_size(5, 2)
