"""Verify, then time: from workloads and contenders to rows."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

import sparseprune as sp
from bench.contenders import Contender, Runnable
from bench.gpu import problems
from bench.gpu.contenders import TF32, torch_dtype
from bench.gpu.problems import case_id
from bench.gpu.timing import Clock, interleaved, message
from bench.problems import LayerProblem, ScoresProblem
from bench.rows import FAILED, OK, UNAVAILABLE, WRONG, verify
from bench.timing import Step, quartiles
from bench.workloads import CONV_STEP, FORWARD, STEP, STEPS, Workload
from sparseprune.cost import machine

# Largest accepted relative error (Frobenius norm) against float64, by precision. Float32 that is TF32 after
# all errs by 3e-4: it does not pass.
TOLERANCES = {"float32": 3e-5, TF32: 2e-3, "float16": 5e-3, "bfloat16": 3e-2}

# What a layer in float32 does unless told otherwise: torch leaves matrix products in true float32, and lets
# cuDNN take TF32.
DEFAULTS = {FORWARD: "dense-float32", STEP: "dense-float32", CONV_STEP: "dense-tf32", "topk": "torch-topk"}


@dataclass
class Row:
    """One contender on one workload.

    Attributes:
        id: case and contender; unique.
        case: the workload's id: rows of one case are compared.
        workload: what was computed.
        contender, family, note: see `bench.contenders.Contender`.
        precision: "float32", "tf32", "float16" or "bfloat16".
        status: OK, UNAVAILABLE, WRONG or FAILED.
        reason: why there is no time.
        tolerance: largest accepted relative error.
        errors: ``{answer: relative error against float64}``.
        seconds: median of a call on the device; q1, q3: quartiles.
        calls: number of timed calls.
        host_seconds: see `bench.gpu.timing.Timed`.
        kept_flops: operations of the matrix products with the kept weights alone, whoever computes; 0: not
            counted.
        dense_flops: the same with all weights.
        least_bytes: what this contender cannot help moving: weights as it stores them, indices, input and
            output, and in a step their gradients, each once.
        tflops, gbs: of kept_flops and least_bytes, per second, in 10^12 and 10^9.
        over_best: speed-up over the strongest dense contender of the same precision (topk: of torch's).
        over_tf32: speed-up of a float32 one over the strongest dense contender in TF32.
        over_default: speed-up over `DEFAULTS`.
        facts: whatever the contender has to say.
    """

    id: str
    case: str
    workload: Workload
    contender: str
    family: str
    note: str
    precision: str
    tolerance: float
    status: str = OK
    reason: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    calls: int = 0
    seconds: float | None = None
    q1: float | None = None
    q3: float | None = None
    host_seconds: float | None = None
    kept_flops: int = 0
    dense_flops: int = 0
    least_bytes: int = 0
    tflops: float | None = None
    gbs: float | None = None
    over_best: float | None = None
    over_tf32: float | None = None
    over_default: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


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
        device: where all tensors are.
        clock: that of the device.
        rounds: timed calls of each contender.
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
    except Exception as error:  # such as an illegal access to memory: every call raises it from then on
        return message(error)
    return ""


def _run_case(
    workload: Workload, contenders: list[Contender], device: torch.device, clock: Clock, rounds: int
) -> list[Row]:
    case = case_id(workload)
    rows = {}
    for contender in contenders:
        rows[contender.name] = Row(
            f"{case}/{contender.name}",
            case,
            workload,
            contender.name,
            contender.family,
            contender.note,
            contender.dtype,
            0.0 if workload.kind == "topk" else TOLERANCES[contender.dtype],
        )
    try:
        problem = problems.build(workload, device)
    except Exception as error:  # memory may not suffice: the suite goes on with the next workload
        for row in rows.values():
            row.status, row.reason = FAILED, f"making the workload: {message(error)}"
        return list(rows.values())
    ready: dict[str, Runnable] = {}
    for contender in contenders:
        row = rows[contender.name]
        row.kept_flops, row.dense_flops = problem.kept_flops, problem.dense_flops
        runnable = _prepare(contender, problem, row)
        if runnable is None:
            _release(device)
        else:
            ready[contender.name] = runnable
    steps = {name: Step(runnable.call, runnable.around) for name, runnable in ready.items()}
    timed, failed = interleaved(steps, clock, rounds)
    for name, reason in failed.items():
        rows[name].status, rows[name].reason = FAILED, reason
    for name, found in timed.items():
        row = rows[name]
        row.q1, row.seconds, row.q3 = quartiles(found.seconds)
        row.calls, row.host_seconds = len(found.seconds), found.host_seconds
        row.facts = ready[name].facts()
        row.least_bytes = least_bytes(problem, row)
        row.tflops = row.kept_flops / row.seconds / 1e12 if row.kept_flops else None
        row.gbs = row.least_bytes / row.seconds / 1e9
    compare(list(rows.values()))
    return list(rows.values())


def _prepare(contender: Contender, problem: LayerProblem | ScoresProblem, row: Row) -> Runnable | None:
    """The contender made and verified, or None with the reason in the row."""
    try:
        runnable = contender.make(problem)
        if not isinstance(runnable, Runnable):
            row.status, row.reason = UNAVAILABLE, "; ".join(runnable)
            return None
        with runnable.around():
            answer = runnable.answer(runnable.call())
        layout = runnable.facts().get("layout", "")
        row.errors, row.reason = verify(answer, problem.expected, row.tolerance, layout)
    except Exception as error:  # whatever other people's software raises is a result, not the suite's end
        row.status, row.reason = FAILED, message(error)
        return None
    if row.reason:
        row.status = WRONG
        return None
    return runnable


def least_bytes(problem: LayerProblem | ScoresProblem, row: Row) -> int:
    """See `Row`."""
    if isinstance(problem, ScoresProblem):
        return problem.kept_bytes
    numbers = row.facts["weights"] + problem.x.numel() + problem.g.numel()
    times = 2 if row.workload.kind in STEPS else 1
    return int(times * numbers * torch_dtype(row.precision).itemsize + row.facts["index_bytes"])


def compare(rows: Sequence[Row]) -> None:
    """Set the speed-ups within a case."""
    times = {row.contender: row.seconds for row in rows if row.seconds is not None}
    for row in rows:
        if row.seconds is None:
            continue
        best, tf32 = strongest(rows, row.precision), strongest(rows, TF32)
        default = times.get(DEFAULTS[row.workload.kind])
        row.over_best = None if best is None else best / row.seconds
        row.over_tf32 = None if tf32 is None or row.precision != "float32" else tf32 / row.seconds
        row.over_default = None if default is None else default / row.seconds


def strongest(rows: Sequence[Row], precision: str) -> float | None:
    """Seconds of the fastest of those that are to be beaten, in a precision; None if there is none."""
    times = [
        row.seconds
        for row in rows
        if row.seconds is not None
        and row.precision == precision
        and row.family == ("peer" if row.workload.kind == "topk" else "dense")
    ]
    return min(times, default=None)


# ---- the device --------------------------------------------------------------------------------------------


def why_not() -> str:
    """Why nothing can be measured here; "" if it can."""
    info = sp.ops.info()
    if not info["cuda_available"]:
        return f"torch {torch.__version__} finds no CUDA device"
    if not info["cuda_compiled"]:
        return f"sparseprune's kernels ({info['backend']}) are compiled without CUDA"
    return ""


def header(device: torch.device, settings: dict[str, Any]) -> dict[str, Any]:
    """What all figures of a run depend on, for JSON."""
    return {
        "machine": machine.facts(),
        "device": device_facts(device),
        "tolerances": TOLERANCES,
        "defaults": DEFAULTS,
        "settings": settings,
    }


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name, compute capability, versions, and sizes in bytes; of the CPU the name alone."""
    if device.type != "cuda":
        return {"type": device.type, "name": machine.cpu_name()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": device.type,
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "torch": torch.__version__,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()[
            0
        ]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "not known"
