"""Plans that are not those of their patterns: operators refuse them, and never crash."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from conv_problems import Case, problem_once
from hypothesis import given
from hypothesis import strategies as st
from linear_problems import problem
from torch import Tensor

from sparseprune import ops
from sparseprune.ops import convolution

pytestmark = pytest.mark.usefixtures("needs_extension")

INT32 = st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(-3, 3000))


class Call(NamedTuple):
    """A call of an operator, as a function of a pattern, and the name of the plan that it uses."""

    run: Callable[[Any], Any]
    pattern: ops.Pattern | convolution.ConvPattern
    plan: str


@functools.cache
def calls() -> dict[str, Call]:
    found = {}
    for cols, block_rows in ((96, 1), (2100, 4)):
        p = problem("third", 64, cols, 17, block_rows=block_rows)
        spmm = functools.partial(ops.spmm, p.x, p.values)
        one = functools.partial(ops.spmm, p.x[:, :1], p.values)
        spmm_t = functools.partial(ops.spmm_t, p.g, p.values, cols=cols)
        sddmm = functools.partial(ops.sddmm, p.g, p.x, block_rows=block_rows)
        backward = functools.partial(ops.spmm_backward, p.g, p.x, p.values)
        of = f", {block_rows} x 1"
        found[f"spmm{of}"] = Call(spmm, p.pattern, "plan")
        found[f"spmm of one{of}"] = Call(one, p.pattern, "plan")
        found[f"spmm_t{of}"] = Call(spmm_t, p.pattern, "plan_t")
        found[f"sddmm{of}"] = Call(sddmm, p.pattern, "plan_t")
        found[f"spmm_backward{of}"] = Call(backward, p.pattern, "plan_t")
    for samples in (17, 3):
        c = problem_once(Case(samples, 4, 6, (7, 6), groups=2, stride=(2, 1), block_rows=2))
        geometry, size = c.case.geometry, c.case.size
        conv_t = functools.partial(convolution.conv2d_t, c.g, c.values, geometry=geometry, input_size=size)
        conv_sddmm = functools.partial(convolution.conv2d_sddmm, c.g, c.x, geometry=geometry, block_rows=2)
        conv_backward = functools.partial(convolution.conv2d_backward, c.g, c.x, c.values, geometry=geometry)
        found[f"conv2d_t, {samples}"] = Call(conv_t, c.pattern, "plan_t")
        found[f"conv2d_sddmm, {samples}"] = Call(conv_sddmm, c.pattern, "plan_t")
        found[f"conv2d_backward, {samples}"] = Call(conv_backward, c.pattern, "plan_t")
    return found


def refuses(call: Call, **changed: Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        call.run(pattern=call.pattern._replace(**changed))


@pytest.mark.parametrize("name", calls())
def test_forged_plans_are_refused_whichever_number_it_is(name: str) -> None:
    call = calls()[name]
    plan = getattr(call.pattern, call.plan)
    expected = call.run(pattern=call.pattern)
    for at in {*range(min(24, len(plan))), *torch.linspace(0, len(plan) - 1, 100).int().tolist()}:
        for number in (-1, 2**31 - 1, int(plan[at]) ^ 1, int(plan[at]) ^ 1 << 30):
            forged = plan.clone()
            forged[at] = number
            if not torch.equal(forged, plan):
                refuses(call, **{call.plan: forged})
    # A copy of the plan is as good as the plan.
    torch.testing.assert_close(
        call.run(pattern=call.pattern._replace(**{call.plan: plan.clone()})), expected, rtol=0, atol=0
    )


@given(st.data())
def test_forged_numbers_of_patterns_never_crash(data: st.DataObject) -> None:
    call = calls()[data.draw(st.sampled_from(sorted(calls())))]
    name = data.draw(st.sampled_from(call.pattern._fields))
    forged = getattr(call.pattern, name).clone()
    for _ in range(data.draw(st.integers(1, 3))):
        forged[data.draw(st.integers(0, len(forged) - 1))] = data.draw(INT32)
    if name in ("crow", "col", call.plan) and not torch.equal(forged, getattr(call.pattern, name)):
        refuses(call, **{name: forged})
    else:
        call.run(pattern=call.pattern._replace(**{name: forged}))


@given(st.data())
def test_forged_patterns_of_forward_convolutions_never_crash(data: st.DataObject) -> None:
    # Which has no plan: it follows crow and col, whatever they are, or refuses them.
    c = problem_once(Case(data.draw(st.sampled_from([3, 17])), 4, 6, (7, 6), groups=2))
    name = data.draw(st.sampled_from(["crow", "col"]))
    forged = getattr(c.pattern, name).clone()
    forged[data.draw(st.integers(0, len(forged) - 1))] = data.draw(INT32)
    with contextlib.suppress(ValueError):
        convolution.conv2d(c.x, c.values, c.pattern._replace(**{name: forged}), c.case.geometry)


@pytest.mark.parametrize("name", calls())
@pytest.mark.parametrize("what", ["plan", "crow", "col"])
def test_what_is_written_to_a_plan_or_its_pattern_is_noticed(name: str, what: str) -> None:
    call = calls()[name]
    own = call.pattern._replace(**{n: t.clone() for n, t in call.pattern._asdict().items()})
    call = call._replace(pattern=own)
    for _ in range(3):
        call.run(pattern=own)
    numbers = getattr(own, call.plan if what == "plan" else what)
    before = numbers.clone()
    numbers[len(numbers) // 2] += 1
    refuses(call)
    numbers.copy_(before)
    call.run(pattern=own)


def test_another_plan_at_the_same_place_is_noticed() -> None:
    # Memory that is freed is soon given out again, with the same address and as few writes.
    call = calls()["spmm_t, 1 x 1"]
    plan = call.pattern.plan_t
    for number in range(200):
        made = plan.numpy().copy()
        if number % 2:
            made[number % len(made)] ^= 3
        given = torch.from_numpy(made)  # version 0
        if number % 2:
            refuses(call, plan_t=given)
        else:
            call.run(pattern=call.pattern._replace(plan_t=given))
        del given, made


def test_plans_of_inference_mode_are_checked_too() -> None:
    call = calls()["spmm, 1 x 1"]
    with torch.inference_mode():
        own = call.pattern._replace(**{n: t.clone() for n, t in call.pattern._asdict().items()})
        call.run(pattern=own)
        own.plan[-1] += 1
        refuses(call, plan=own.plan)
