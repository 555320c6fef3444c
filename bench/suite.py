"""Verify, then time, on the processor: from workloads and contenders to rows of results."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence

import torch

from bench import problems, workloads
from bench.contenders import Contender
from bench.problems import Problem
from bench.rows import Row, set_speedups
from bench.timing import Clock, HostClock, Step, interleaved
from bench.verify import prepare
from bench.workloads import Workload


def thread_counts(workload: Workload, threads: Sequence[int]) -> Sequence[int]:
    """Those of these numbers of threads that a workload runs with: of the slow ones, the largest alone."""
    return [max(threads)] if workload.slow else threads


def case_id(workload: Workload, threads: int) -> str:
    return f"{workload.id}/threads={threads}"


def run(
    chosen: Iterable[Workload],
    contenders: Iterable[Contender],
    threads: Sequence[int],
    seconds: float,
    *,
    fewest_blocks: int = 3,
    clock: Clock | None = None,
) -> Iterator[list[Row]]:
    """Run the suite, one case (workload and number of threads) after the other.

    Args:
        chosen: workloads.
        contenders: those that do not apply to a workload are left out of it.
        threads: numbers of threads to run each workload with; see `thread_counts`.
        seconds: time budget of a case, for the timed part.
        fewest_blocks: number of blocks of timed calls that each contender gets, whatever the budget.
        clock: the processor's by default; replaced in tests.
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
                yield _run_case(problem, fitting, count, seconds, fewest_blocks, clock or HostClock())
                # A network with its optimizer is large: gone before the next one comes.
                gc.collect()
            del problem
    finally:
        torch.set_num_threads(before)


def _run_case(
    problem: Problem,
    contenders: list[Contender],
    threads: int,
    seconds: float,
    fewest_blocks: int,
    clock: Clock,
) -> list[Row]:
    workload = problem.workload
    rows = {c.name: _row(c, problem, threads) for c in contenders}
    ready = {}
    for contender in contenders:
        # Dense contenders return whichever layout they like.
        layout = "" if contender.family == "dense" else workload.layout
        runnable = prepare(contender, problem, rows[contender.name], layout)
        if runnable is not None:
            ready[contender.name] = runnable
    steps = {name: Step(runnable.call, runnable.around) for name, runnable in ready.items()}
    timed = interleaved(steps, seconds, fewest_blocks=fewest_blocks, clock=clock)
    for name, runnable in ready.items():
        rows[name].set_times(timed.seconds[name])
        rows[name].facts = runnable.facts()
        rows[name].others = timed.others
    baseline = workloads.BASELINES.get(workload.kind, workloads.DEFAULT_BASELINE)
    set_speedups(list(rows.values()), lambda row: row.family == "dense" or row.contender == baseline)
    return list(rows.values())


def _row(contender: Contender, problem: Problem, threads: int) -> Row:
    workload = problem.workload
    precision = contender.dtype or workload.dtype
    case = case_id(workload, threads)
    return Row(
        id=f"{case}/{contender.name}",
        case=case,
        workload=workload,
        contender=contender.name,
        family=contender.family,
        note=contender.note,
        threads=threads,
        precision=precision,
        tolerance=workloads.TOLERANCES[workload.kind][precision],
        kept_flops=problem.kept_flops,
        dense_flops=problem.dense_flops,
        kept_bytes=problem.kept_bytes,
    )
