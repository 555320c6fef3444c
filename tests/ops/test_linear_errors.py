"""What the operators of sparse matrix products refuse, and what they say."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from linear_problems import Problem, problem, random_mask
from torch import Tensor

from sparseprune import ops
from sparseprune.format.bsr import bsr_from_mask

# ---- errors ----


def case(p: Problem, **changes: Tensor) -> dict[str, Any]:
    names = {
        "x": p.x,
        "g": p.g,
        "y": p.exact.y.to(p.x.dtype),
        "values": p.values,
        "bias": p.bias,
        **p.pattern._asdict(),
    }
    return {**names, **changes}


def call(name: str, tensors: dict[str, Any], cols: int = 96) -> Any:
    pattern = [tensors[k] for k in ops.Pattern._fields]
    first, last = {
        "spmm": (("x", "values"), [tensors["bias"]]),
        "spmm_t": (("g", "values"), [cols]),
        "sddmm": (("g", "x"), [1]),
        "spmm_backward": (("g", "x", "values"), [tensors["y"]]),
    }[name]
    operator = getattr(torch.ops.sparseprune, name).default
    return operator(*(tensors[k] for k in first), *pattern, *last)


NAMES = ["spmm", "spmm_t", "sddmm", "spmm_backward"]


def bad(name: str, what: str, change: Callable[[Tensor], Tensor], message: str) -> Any:
    return pytest.param(name, what, change, message, id=f"{name}-{what}-{message[:40]}")


@pytest.mark.parametrize(
    ("name", "what", "change", "message"),
    [
        bad("spmm", "x", lambda t: t[1:], "x.shape == [96 (weight columns), batch], got [95, 17]"),
        bad("spmm", "x", lambda t: t[0], "x.shape == [96 (weight columns), batch], got [17]"),
        bad("spmm_t", "g", lambda t: t[1:], "g.shape == [33 (weight rows), batch], got [32, 17]"),
        bad("sddmm", "x", lambda t: t[1:], "x.shape == [96 (weight columns), batch], got [95, 17]"),
        bad("sddmm", "g", lambda t: t[None], "g.shape == [33 (weight rows), batch], got [1, 33, 17]"),
        bad("spmm_backward", "g", lambda t: t.t(), "g.shape == [33 (weight rows), batch], got [17, 33]"),
        bad("spmm_backward", "x", lambda t: t.t(), "x.shape == [96 (weight columns), batch], got [17, 96]"),
        bad("sddmm", "x", lambda t: t[:, 1:], "x and g of one batch size, got 16 and 17"),
        bad("spmm_backward", "g", lambda t: t[:, 2:], "x and g of one batch size, got 17 and 15"),
        bad("spmm_backward", "y", lambda t: t[1:], "y.shape == [33 (weight rows), 17 (batch)], got [32, 17]"),
        bad("spmm_backward", "y", lambda t: t.t(), "y.shape == [33 (weight rows), 17 (batch)], got [17, 33]"),
        bad("spmm_backward", "y", lambda t: t.double(), "y to be float32, got float64"),
        bad("spmm", "bias", lambda t: t[1:], "bias.shape == [33 (weight rows)], got [32]"),
        bad("spmm", "bias", lambda t: t[None], "bias.shape == [33 (weight rows)], got [1, 33]"),
        bad("spmm", "bias", lambda t: t.double(), "bias to be float32, got float64"),
        *(
            bad(name, "values", change, message)
            for name in ("spmm", "spmm_t", "spmm_backward")
            for change, message in [
                (lambda t: t[1:], "[964 (nonzero blocks of the pattern), 1 (rows of a block)], got [963, 1]"),
                (lambda t: t[:, 0], "(nonzero blocks of the pattern), 1 (rows of a block)], got [964]"),
                (lambda t: t.expand(-1, 2), "1 (rows of a block)], got [964, 2]"),
                (lambda t: t.double(), "values to be float32, got float64"),
            ]
        ),
        *(
            bad(
                name,
                what,
                lambda t: t.half(),
                f"{what} to be float32 or bfloat16 (or float64, slow, for checking gradients), got float16",
            )
            for name, what in [("spmm", "x"), ("spmm_t", "g"), ("sddmm", "g"), ("spmm_backward", "g")]
        ),
        bad("sddmm", "x", lambda t: t.bfloat16(), "x to be float32, got bfloat16"),
        bad("spmm_backward", "x", lambda t: t.double(), "x to be float32, got float64"),
        bad("spmm", "x", lambda t: t.int(), "got int32; convert with .float()"),
        *(
            bad(name, what, lambda t: t.long(), f"{what} to be int32, got int64")
            for name in NAMES
            for what in ("crow", "col")
        ),
    ],
)
def test_operators_refuse_bad_tensors(
    name: str, what: str, change: Callable[[Tensor], Tensor], message: str, needs_extension: None
) -> None:
    p = problem("third", 33, 96, 17)
    tensors = case(p)
    call(name, tensors)
    tensors[what] = change(tensors[what])
    with pytest.raises(ValueError, match=f"{name}: expected .*{re.escape(message)}"):
        call(name, tensors)


@pytest.mark.parametrize("name", NAMES)
def test_operators_refuse_wrong_plans(name: str, needs_extension: None) -> None:
    p = problem("third", 33, 96, 17)
    used = "plan" if name == "spmm" else "plan_t"
    of_what = "" if name == "spmm" else " of the transpose"
    no_plan = (
        f"{name}: expected a plan made by sparseprune::plan{of_what}, got another tensor; "
        "build it from crow and col"
    )
    plan = p.pattern._asdict()[used]
    swapped = p.pattern._asdict()["plan_t" if name == "spmm" else "plan"]
    too_long = torch.cat([plan, plan])
    for wrong in (torch.zeros_like(plan), plan[:-1], plan[:5], too_long, plan[None], plan[:0], swapped):
        with pytest.raises(ValueError, match=no_plan):
            call(name, case(p, **{used: wrong}))
    with pytest.raises(ValueError, match=f"{name}: expected plan to be int32, got int64"):
        call(name, case(p, **{used: plan.long()}))
    # A stale plan: the pattern has lost a weight since.
    mask = p.mask.clone()
    mask[tuple(mask.nonzero()[0])] = False
    crow, col = bsr_from_mask(mask)
    stale = case(p, crow=crow, col=col, values=p.values[1:])
    remedy = f"got one of 33 and {len(p.values)}; build it again after changing the pattern"
    with pytest.raises(ValueError, match=re.escape(remedy)):
        call(name, stale)


def test_spmm_t_refuses_other_columns(needs_extension: None) -> None:
    p = problem("third", 33, 96, 17)
    with pytest.raises(ValueError, match=re.escape("spmm_t: expected cols == 96 (the plan's), got 95")):
        call("spmm_t", case(p), cols=95)


@pytest.mark.parametrize("name", NAMES)
def test_operators_refuse_tensors_on_several_devices(name: str) -> None:
    p = problem("third", 33, 96, 17)
    for what in {"spmm": ("x", "values"), "spmm_t": ("g", "values")}.get(name, ("g", "x")):
        tensors = case(p)
        tensors[what] = tensors[what].to("meta")
        message = f"{name}: expected all tensors on one device, got cpu and meta; move them with .to()"
        with pytest.raises(ValueError, match=re.escape(message)):
            call(name, tensors)


@pytest.mark.parametrize(
    ("crow", "col", "cols", "message"),
    [
        ([0, 2, 1], [0], 3, "crow to ascend, but row 0 goes from 0 to 2"),
        ([0, 2, 1, 2], [0, 1], 3, "crow to ascend, but row 1 goes from 2 to 1"),
        ([0, 9, 2], [0, 1], 3, "crow to ascend, but row 0 goes from 0 to 9"),
        ([0, -1, 2], [0, 1], 3, "crow to ascend, but row 0 goes from 0 to -1"),
        ([1, 1, 2], [0, 1], 3, "crow to run from 0 to col.shape[0] == 2, got 1 to 2"),
        ([0, 1, 3], [0, 1], 3, "crow to run from 0 to col.shape[0] == 2, got 0 to 3"),
        ([0, 2], [1, 0], 3, "columns of a row to ascend within 0 .. 2, got 0 in row 0"),
        ([0, 2], [1, 1], 3, "columns of a row to ascend within 0 .. 2, got 1 in row 0"),
        ([0, 0, 1], [3], 3, "columns of a row to ascend within 0 .. 2, got 3 in row 1"),
        ([0, 1], [-1], 3, "columns of a row to ascend within 0 .. 2, got -1 in row 0"),
        ([], [], 3, "crow to hold rows / block_rows + 1 numbers, got none"),
        ([[0, 1]], [1], 3, "crow to be a 1-D int32 CPU tensor, got 2 dimensions of int32"),
        ([0, 1], [[1]], 3, "col to be a 1-D int32 CPU tensor, got 2 dimensions"),
        ([0, 0], [], -1, "rows and columns (int32 indices), got 1 x -1"),
        ([0, 0], [], 2**31, "rows and columns (int32 indices), got 1 x 2147483648"),
    ],
)
def test_plan_refuses_malformed_patterns(
    crow: list[Any], col: list[Any], cols: int, message: str, needs_extension: None
) -> None:
    with pytest.raises(ValueError, match=f"plan: expected .*{re.escape(message)}"):
        ops.plans(torch.tensor(crow, dtype=torch.int32), torch.tensor(col, dtype=torch.int32), cols)


@pytest.mark.parametrize("block_rows", [0, -1, 3, 5, 32])
def test_plan_refuses_other_blocks(block_rows: int, needs_extension: None) -> None:
    crow, col = bsr_from_mask(random_mask(7, 33, 0.3))
    message = f"plan: expected block_rows to be 1, 2, 4, 8 or 16, got {block_rows}"
    with pytest.raises(ValueError, match=message):
        ops.plans(crow, col, 33, block_rows)


def test_sddmm_refuses_other_blocks(needs_extension: None) -> None:
    p = problem("third", 32, 96, 17, block_rows=4)
    with pytest.raises(ValueError, match=re.escape("sddmm: expected block_rows == 4 (the plan's), got 2")):
        ops.sddmm(p.g, p.x, p.pattern, 2)


def test_plan_refuses_int64(needs_extension: None) -> None:
    crow, col = bsr_from_mask(random_mask(7, 33, 0.3))
    with pytest.raises(
        ValueError, match="plan: expected crow to be a 1-D int32 CPU tensor, got 1 dimensions of int64"
    ):
        ops.plans(crow.long(), col, 33)
    with pytest.raises(
        ValueError, match="plan: expected col to be a 1-D int32 CPU tensor, got 1 dimensions of int64"
    ):
        ops.plans(crow, col.long(), 33)
