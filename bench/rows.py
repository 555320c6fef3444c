"""Verify, then time: from workloads and contenders to rows of results."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench import timing, workloads
from bench.contenders import Contender, Runnable
from bench.workloads import Problem, Workload

# What became of a contender: timed; cannot run here, with reasons; ran and answered wrongly; raised an error.
OK, UNAVAILABLE, WRONG, FAILED = "ok", "unavailable", "wrong", "failed"


@dataclass
class Row:
    """One contender on one workload with one number of threads.

    Attributes:
        id: workload, threads and contender; unique.
        case: id without the contender: rows of one case are compared.
        kind, threads, contender, family, note: see `Workload` and `Contender`.
        status: OK, UNAVAILABLE, WRONG or FAILED.
        reason: why there is no time.
        errors: ``{answer: relative error against float64}``.
        calls: number of timed calls.
        seconds: median of a call; q1, q3: quartiles.
        others: processors that other processes kept busy during the case; None: not known.
        kept_flops, dense_flops: see `Problem`.
        speedup: ``{contender: its median over this one's}`` over the dense contenders and the baseline;
            below 1 this one is slower.
        facts: whatever the contender has to say, such as the bytes that training holds.
    """

    id: str
    case: str
    kind: str
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
    speedup: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def case_id(workload: Workload, threads: int) -> str:
    return f"{workload.id}/threads={threads}"


def relative_error(answer: Tensor, expected: Tensor) -> float:
    """||answer - expected|| / ||expected||, Frobenius norms in float64."""
    difference = (answer.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(torch.finfo(torch.float64).tiny))


def verify(
    answer: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float
) -> tuple[dict[str, float], str]:
    """Compare a contender's answers with the known ones.

    Args:
        answer: some of the expected answers, by name.
        expected: all of them.
        tolerance: largest accepted relative error.
    Returns:
        ``{name: relative error}``, and what is wrong ("" if nothing is).
    """
    errors: dict[str, float] = {}
    wrong = [] if answer else ["no answer"]
    for name, actual in answer.items():
        if actual.shape != expected[name].shape:
            wrong.append(f"{name}: expected shape {list(expected[name].shape)}, got {list(actual.shape)}")
            continue
        if not actual.is_contiguous():
            wrong.append(f"{name}: expected a row-major tensor, got strides {list(actual.stride())}")
        errors[name] = relative_error(actual, expected[name])
        if not errors[name] <= tolerance:  # NaN is wrong too
            wrong.append(f"{name}: relative error {errors[name]:.1e}, accepted are {tolerance:.0e}")
    return errors, "; ".join(wrong)


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
        threads: numbers of threads to run each workload with.
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
            fitting = [c for c in contenders if workload.kind in c.kinds]
            if not fitting:
                continue
            problem = workloads.build(workload)
            for count in threads:
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
            kind=problem.workload.kind,
            threads=threads,
            contender=contender.name,
            family=contender.family,
            note=contender.note,
            kept_flops=problem.kept_flops,
            dense_flops=problem.dense_flops,
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
        tolerance = workloads.TOLERANCES[problem.workload.kind][contender.dtype]
        row.errors, row.reason = verify(answer, problem.expected, tolerance)
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
        baseline = workloads.BASELINES.get(row.kind, workloads.DEFAULT_BASELINE)
        for other, theirs in timed:
            if other.family == "dense" or other.contender == baseline:
                row.speedup[other.contender] = theirs / mine


BEST_DENSE = "best dense float32"


def speedup_over(row: Row, over: str) -> float | None:
    """Speed-up of a row over a contender, or over the fastest dense float32 one (`BEST_DENSE`)."""
    if over != BEST_DENSE:
        return row.speedup.get(over)
    dense = [factor for name, factor in row.speedup.items() if name.startswith("dense-float32")]
    return min(dense, default=None)
