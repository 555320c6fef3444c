"""Verify, then time: from workloads and contenders to rows of results."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench import problems, timing, workloads
from bench.contenders import Contender, Runnable
from bench.problems import Problem
from bench.workloads import BATCH_INNER, Workload

# What became of a contender: timed; cannot run here, with reasons; ran and answered wrongly; raised an error.
OK, UNAVAILABLE, WRONG, FAILED = "ok", "unavailable", "wrong", "failed"


@dataclass
class Row:
    """One contender on one workload with one number of threads.

    Attributes:
        id: workload, threads and contender; unique.
        case: id without the contender: rows of one case are compared.
        workload: what was computed.
        threads: how many.
        contender, family, note: see `Contender`.
        status: OK, UNAVAILABLE, WRONG or FAILED.
        reason: why there is no time.
        errors: ``{answer: relative error against float64}``.
        calls: number of timed calls.
        seconds: median of a call; q1, q3: quartiles.
        others: processors that other processes kept busy during the case; None: not known.
        kept_flops, dense_flops, kept_bytes: see `Problem`.
        speedup: ``{contender: its median over this one's}`` over the dense contenders and the baseline;
            below 1 this one is slower.
        facts: whatever the contender has to say, such as the bytes that training holds.
    """

    id: str
    case: str
    workload: Workload
    threads: int
    contender: str
    family: str
    note: str
    status: str = OK
    reason: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    calls: int = 0
    seconds: float | None = None
    q1: float | None = None
    q3: float | None = None
    others: float | None = None
    kept_flops: int = 0
    dense_flops: int = 0
    kept_bytes: int = 0
    speedup: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Row:
        """What `to_dict` made, back from JSON."""
        workload = content["workload"]
        sizes = tuple(workload["sizes"])
        return cls(**{**content, "workload": Workload(**{**workload, "sizes": sizes})})


def thread_counts(workload: Workload, threads: Sequence[int]) -> Sequence[int]:
    """Those of these numbers of threads that a workload runs with: of the slow ones, the largest alone."""
    return [max(threads)] if workload.slow else threads


def case_id(workload: Workload, threads: int) -> str:
    return f"{workload.id}/threads={threads}"


def relative_error(answer: Tensor, expected: Tensor) -> float:
    """||answer - expected|| / ||expected||, Frobenius norms in float64."""
    difference = (answer.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(torch.finfo(torch.float64).tiny))


def verify(
    answer: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, layout: str = ""
) -> tuple[dict[str, float], str]:
    """Compare a contender's answers with the known ones.

    Args:
        answer: some of the expected answers, by name.
        expected: all of them.
        tolerance: largest accepted relative error.
        layout: that matrices have to be in, "row-major" or "batch-inner"; "": any.
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
        if not errors[name] <= tolerance:  # NaN is wrong too
            wrong.append(f"{name}: relative error {errors[name]:.1e}, accepted are {tolerance:.0e}")
    return errors, "; ".join(wrong)


def _has_layout(answer: Tensor, layout: str) -> bool:
    if answer.dim() > 1 and layout == BATCH_INNER:
        answer = answer.movedim(0, -1)
    return answer.is_contiguous()


def run(
    chosen: Iterable[Workload],
    contenders: Iterable[Contender],
    threads: Sequence[int],
    seconds: float,
    *,
    fewest_blocks: int = 3,
    clock: timing.Clock = time.perf_counter,
) -> Iterator[list[Row]]:
    """Run the suite, one case (workload and number of threads) after the other.

    Args:
        chosen: workloads.
        contenders: those that do not apply to a workload are left out of it.
        threads: numbers of threads to run each workload with; see `thread_counts`.
        seconds: time budget of a case, for the timed part.
        fewest_blocks: of timed calls of each contender, whatever the budget.
        clock: returns seconds; replaced in tests.
    Yields:
        the rows of a case, one for each contender that applies.
    """
    contenders = list(contenders)
    before = torch.get_num_threads()
    try:
        for workload in chosen:
            fitting = [c for c in contenders if c.applies(workload)]
            if not fitting:
                continue
            problem = problems.build(workload)
            for count in thread_counts(workload, threads):
                torch.set_num_threads(count)
                yield _run_case(problem, fitting, count, seconds, fewest_blocks, clock)
                gc.collect()  # a network with its optimizer is large: gone before the next one comes
            del problem
    finally:
        torch.set_num_threads(before)


def _run_case(
    problem: Problem,
    contenders: list[Contender],
    threads: int,
    seconds: float,
    fewest_blocks: int,
    clock: timing.Clock,
) -> list[Row]:
    case = case_id(problem.workload, threads)
    rows: dict[str, Row] = {}
    ready: dict[str, Runnable] = {}
    for contender in contenders:
        row = Row(
            id=f"{case}/{contender.name}",
            case=case,
            workload=problem.workload,
            threads=threads,
            contender=contender.name,
            family=contender.family,
            note=contender.note,
            kept_flops=problem.kept_flops,
            dense_flops=problem.dense_flops,
            kept_bytes=problem.kept_bytes,
        )
        rows[contender.name] = row
        runnable = _prepare(contender, problem, row)
        if runnable is not None:
            ready[contender.name] = runnable
    steps = {name: timing.Step(runnable.call, runnable.around) for name, runnable in ready.items()}
    timed = timing.interleaved(steps, seconds, fewest_blocks=fewest_blocks, clock=clock)
    for name, runnable in ready.items():
        row = rows[name]
        row.q1, row.seconds, row.q3 = timing.quartiles(timed.seconds[name])
        row.calls = len(timed.seconds[name])
        row.facts = runnable.facts()
        row.others = timed.others
    _set_speedups(list(rows.values()))
    return list(rows.values())


def _prepare(contender: Contender, problem: Problem, row: Row) -> Runnable | None:
    """The contender made and verified, or None with the reason in the row."""
    try:
        runnable = contender.make(problem)
        if not isinstance(runnable, Runnable):
            row.status, row.reason = UNAVAILABLE, "; ".join(runnable)
            return None
        with runnable.around():
            answer = runnable.answer(runnable.call())
        workload = problem.workload
        tolerance = workloads.TOLERANCES[workload.kind][contender.dtype or workload.dtype]
        layout = "" if contender.family == "dense" else workload.layout
        row.errors, row.reason = verify(answer, problem.expected, tolerance, layout)
    except Exception as error:  # whatever other people's software raises is a result, not the suite's end
        row.status, row.reason = FAILED, f"{type(error).__name__}: {error}"
        return None
    if row.reason:
        row.status = WRONG
        return None
    return runnable


def _set_speedups(rows: list[Row]) -> None:
    timed = [(row, row.seconds) for row in rows if row.seconds is not None]
    for row, mine in timed:
        baseline = workloads.BASELINES.get(row.workload.kind, workloads.DEFAULT_BASELINE)
        for other, theirs in timed:
            if other.family == "dense" or other.contender == baseline:
                row.speedup[other.contender] = theirs / mine


def best_dense(dtype: str) -> str:
    """Names the fastest dense contender of a precision, for `speedup_over`."""
    return f"best dense {dtype}"


def speedup_over(row: Row, over: str) -> float | None:
    """Speed-up of a row over a contender, or over the fastest dense one of a precision (`best_dense`)."""
    for dtype in ("float32", "bfloat16"):
        if over == best_dense(dtype):
            dense = [factor for name, factor in row.speedup.items() if name.startswith(f"dense-{dtype}")]
            return min(dense, default=None)
    return row.speedup.get(over)


def speedup(row: Row) -> float | None:
    """Speed-up over the fastest dense contender of the workload's precision, or over the kind's baseline."""
    if row.workload.kind in workloads.BASELINES:
        return row.speedup.get(workloads.BASELINES[row.workload.kind])
    return speedup_over(row, best_dense(row.workload.dtype))
