"""A row of results: one contender on one workload, and its speed-ups over the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench import workloads
from bench.timing import quartiles
from bench.workloads import Workload

# What became of a contender: timed; cannot run here, with reasons; ran and answered wrongly; raised an error.
OK, UNAVAILABLE, WRONG, FAILED = "ok", "unavailable", "wrong", "failed"


@dataclass(kw_only=True)
class Row:
    """One contender on one workload, on the processor with one number of threads or on a GPU.

    Attributes:
        id: case and contender; unique.
        case: the workload and the number of threads: rows of one case are compared.
        workload: what was computed.
        threads: how many; 0 on a GPU.
        contender, family, note: see `bench.contenders.Contender`.
        precision: what the contender computes in; "" in results that are older than this field.
        status: OK, UNAVAILABLE, WRONG or FAILED.
        reason: why there is no time.
        tolerance: largest accepted relative error; 0 in older results, and where answers are exact.
        errors: ``{answer: relative error against float64}``.
        calls: number of timed calls.
        seconds: median of a call; q1, q3: quartiles.
        host_seconds: see `bench.gpu.timing.Timed`; on a GPU alone.
        others: processors that other processes kept busy during the case; None: not known.
        kept_flops, dense_flops, kept_bytes: see `bench.problems.Problem`.
        least_bytes: what this contender cannot help moving: weights as it stores them, indices, input and
            output, and in a step their gradients, each once; 0: not counted.
        speedup: ``{contender: its median over this one's}`` over those that are to be beaten (dense ones and
            the baseline); below 1 this one is slower.
        facts: whatever the contender has to say, such as the bytes that training holds.
    """

    id: str
    case: str
    workload: Workload
    contender: str
    family: str
    note: str
    threads: int = 0
    precision: str = ""
    status: str = OK
    reason: str = ""
    tolerance: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)
    calls: int = 0
    seconds: float | None = None
    q1: float | None = None
    q3: float | None = None
    host_seconds: float | None = None
    others: float | None = None
    kept_flops: int = 0
    dense_flops: int = 0
    kept_bytes: int = 0
    least_bytes: int = 0
    speedup: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def set_times(self, seconds: list[float]) -> None:
        """Median and quartiles of the timed calls."""
        self.q1, self.seconds, self.q3 = quartiles(seconds)
        self.calls = len(seconds)

    @property
    def flops_per_second(self) -> float | None:
        """Operations of the matrix products with the kept weights alone, whoever computes, per second."""
        return self.kept_flops / self.seconds if self.kept_flops and self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Row:
        """What `to_dict` made, back from JSON."""
        workload = content["workload"]
        sizes = tuple(workload["sizes"])
        return cls(**{**content, "workload": Workload(**{**workload, "sizes": sizes})})


def set_speedups(rows: Sequence[Row], to_beat: Callable[[Row], bool]) -> None:
    """Set the speed-ups within a case, over the rows that are to be beaten."""
    timed = [(row, row.seconds) for row in rows if row.seconds is not None]
    for row, mine in timed:
        row.speedup = {other.contender: theirs / mine for other, theirs in timed if to_beat(other)}


BEST_DENSE = "best dense "


def best_dense(precision: str) -> str:
    """Names the fastest dense contender of a precision, for `speedup_over`."""
    return f"{BEST_DENSE}{precision}"


def speedup_over(row: Row, over: str) -> float | None:
    """Speed-up of a row over a contender, or over the fastest dense one of a precision (`best_dense`)."""
    if over.startswith(BEST_DENSE):
        prefix = f"dense-{over.removeprefix(BEST_DENSE)}"
        return min((factor for name, factor in row.speedup.items() if name.startswith(prefix)), default=None)
    return row.speedup.get(over)


def speedup(row: Row) -> float | None:
    """Speed-up over the fastest dense contender of the workload's precision, or over the kind's baseline."""
    if row.workload.kind in workloads.BASELINES:
        return row.speedup.get(workloads.BASELINES[row.workload.kind])
    return speedup_over(row, best_dense(row.workload.dtype))
