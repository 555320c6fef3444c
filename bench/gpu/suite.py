"""Verify, then time, on a GPU: from workloads and contenders to rows of results."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator

import torch

from bench import problems
from bench.contenders import Contender
from bench.contenders.gpu import TF32, torch_dtype
from bench.gpu.timing import in_rounds
from bench.gpu.workloads import case_id
from bench.problems import LayerProblem, Problem, ScoresProblem
from bench.rows import FAILED, Row, best_dense, set_speedups, speedup_over
from bench.timing import Clock, Step
from bench.verify import message, prepare
from bench.workloads import CONV_STEP, FORWARD, STEP, STEPS, Workload

# Largest accepted relative error (Frobenius norm) against float64, by precision. Float32 that is TF32 after
# all errs by 3e-4: it does not pass.
TOLERANCES = {"float32": 3e-5, TF32: 2e-3, "float16": 5e-3, "bfloat16": 3e-2}

# What a layer in float32 does unless told otherwise: torch leaves matrix products in true float32, and lets
# cuDNN take TF32.
DEFAULTS = {FORWARD: "dense-float32", STEP: "dense-float32", CONV_STEP: "dense-tf32", "topk": "torch-topk"}


class DeviceLostError(RuntimeError):
    """A kernel has left the device in a state in which this process can do no more with it."""


def run(
    chosen: Iterable[Workload],
    contenders: Iterable[Contender],
    device: torch.device,
    clock: Clock,
    rounds: int,
) -> Iterator[list[Row]]:
    """Run the suite, one workload after the other.

    Args:
        chosen: workloads.
        contenders: those that do not apply to a workload are left out of it.
        device: the one that all tensors are on.
        clock: the device's.
        rounds: number of timed calls of each contender.
    Yields:
        the rows of a workload, one for each contender that applies.
    Raises:
        DeviceLostError: after the rows of the workload in which it happened.
    """
    contenders = list(contenders)
    for workload in chosen:
        fitting = [contender for contender in contenders if contender.applies(workload)]
        if fitting:
            yield _run_case(workload, fitting, device, clock, rounds)
            if lost := _release(device):
                raise DeviceLostError(lost)


def _release(device: torch.device) -> str:
    """Give memory back that nobody uses; returns why the device does not answer, or ""."""
    gc.collect()
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
    # Such as an illegal access to memory: every call raises it from then on.
    except Exception as error:
        return message(error)
    return ""


def _run_case(
    workload: Workload, contenders: list[Contender], device: torch.device, clock: Clock, rounds: int
) -> list[Row]:
    rows = {contender.name: _row(contender, workload) for contender in contenders}
    try:
        problem = problems.build(workload, device)
    # Memory may not suffice: the suite goes on with the next workload.
    except Exception as error:
        for row in rows.values():
            row.status, row.reason = FAILED, f"making the workload: {message(error)}"
        return list(rows.values())
    ready = {}
    for contender in contenders:
        row = rows[contender.name]
        row.kept_flops, row.dense_flops = problem.kept_flops, problem.dense_flops
        runnable = prepare(contender, problem, row)
        if runnable is None:
            _release(device)
        else:
            ready[contender.name] = runnable
    steps = {name: Step(runnable.call, runnable.around) for name, runnable in ready.items()}
    timed, failed = in_rounds(steps, clock, rounds)
    for name, reason in failed.items():
        rows[name].status, rows[name].reason = FAILED, reason
    for name, found in timed.items():
        row = rows[name]
        row.set_times(found.seconds)
        row.host_seconds = found.host_seconds
        row.facts = ready[name].facts()
        row.least_bytes = least_bytes(problem, row)
    rival = "peer" if workload.kind == "topk" else "dense"
    set_speedups(list(rows.values()), lambda row: row.family == rival)
    return list(rows.values())


def _row(contender: Contender, workload: Workload) -> Row:
    case = case_id(workload)
    return Row(
        id=f"{case}/{contender.name}",
        case=case,
        workload=workload,
        contender=contender.name,
        family=contender.family,
        note=contender.note,
        precision=contender.dtype,
        tolerance=0.0 if workload.kind == "topk" else TOLERANCES[contender.dtype],
    )


def least_bytes(problem: Problem, row: Row) -> int:
    """See `Row`."""
    if isinstance(problem, ScoresProblem):
        return problem.kept_bytes
    assert isinstance(problem, LayerProblem)
    numbers = row.facts["weights"] + problem.x.numel() + problem.g.numel()
    times = 2 if row.workload.kind in STEPS else 1
    return int(times * numbers * torch_dtype(row.precision).itemsize + row.facts["index_bytes"])


def over_best(row: Row) -> float | None:
    """Speed-up over the strongest dense contender of the same precision (topk: over torch's)."""
    if row.workload.kind == "topk":
        return min(row.speedup.values(), default=None)
    return speedup_over(row, best_dense(row.precision))


def over_tf32(row: Row) -> float | None:
    """Speed-up of a float32 contender over the strongest dense one in TF32."""
    return speedup_over(row, best_dense(TF32)) if row.precision == "float32" else None


def over_default(row: Row) -> float | None:
    """Speed-up over what torch does unless told otherwise, `DEFAULTS`."""
    return row.speedup.get(DEFAULTS[row.workload.kind])
