"""Right answers first: a contender is made and verified against float64 before it is timed."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contenders import Contender, Runnable
from bench.problems import Problem
from bench.rows import FAILED, UNAVAILABLE, WRONG, Row
from bench.workloads import BATCH_INNER


def prepare(contender: Contender, problem: Problem, row: Row, layout: str = "") -> Runnable | None:
    """Make a contender and verify it.

    Args:
        contender: who.
        problem: what it computes.
        row: holds the tolerance, and gets errors, status and reason.
        layout: which one the answers have to be in, see `verify`; "": the one that the contender names among
            its facts, or any.
    Returns:
        it, ready to be timed; None with the reason in the row.
    """
    try:
        runnable = contender.make(problem)
        if not isinstance(runnable, Runnable):
            row.status, row.reason = UNAVAILABLE, "; ".join(runnable)
            return None
        with runnable.around():
            answer = runnable.answer(runnable.call())
        layout = layout or runnable.facts().get("layout", "")
        row.errors, row.reason = verify(answer, problem.expected, row.tolerance, layout)
    # Whatever other people's software raises is a result, not the suite's end.
    except Exception as error:
        row.status, row.reason = FAILED, message(error)
        return None
    if row.reason:
        row.status = WRONG
        return None
    return runnable


def verify(
    answer: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, layout: str = ""
) -> tuple[dict[str, float], str]:
    """Compare a contender's answers with the known ones.

    Args:
        answer: some of the expected answers, by name.
        expected: all of them.
        tolerance: largest accepted relative error.
        layout: the one that matrices have to be in, "row-major" or "batch-inner"; "": any.
    Returns:
        ``{name: relative error}``, and what is wrong ("" if nothing is).
    """
    errors: dict[str, float] = {}
    wrong = [] if answer else ["no answer"]
    for name, actual in answer.items():
        if actual.shape != expected[name].shape:
            wrong.append(f"{name}: expected shape {list(expected[name].shape)}, got {list(actual.shape)}")
            continue
        if layout and not _has_layout(actual, layout):
            wrong.append(f"{name}: expected a {layout} tensor, got strides {list(actual.stride())}")
        errors[name] = relative_error(actual, expected[name])
        # NaN is wrong too.
        if not errors[name] <= tolerance:
            wrong.append(f"{name}: relative error {errors[name]:.1e}, accepted are {tolerance:.0e}")
    return errors, "; ".join(wrong)


def relative_error(answer: Tensor, expected: Tensor) -> float:
    """||answer - expected|| / ||expected||, Frobenius norms in float64."""
    difference = (answer.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(torch.finfo(torch.float64).tiny))


def _has_layout(answer: Tensor, layout: str) -> bool:
    if answer.dim() > 1 and layout == BATCH_INNER:
        answer = answer.movedim(0, -1)
    return answer.is_contiguous()


def message(error: Exception) -> str:
    """The kind of an error, and what it says."""
    return f"{type(error).__name__}: {error}"
