"""What a contender is.

A contender takes a problem and returns a `Runnable`, or the reasons why it cannot run here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.workloads import (
    BATCH_INNER,
    CONVOLUTIONS,
    FORWARD,
    FORWARDS,
    NETWORK_FORWARD,
    NETWORK_STEP,
    STEP,
    TRANSFORMERS,
    Workload,
)

LINEAR = (STEP, FORWARD)
CONV = CONVOLUTIONS
NETWORKS = ("model-step", NETWORK_STEP, NETWORK_FORWARD, *TRANSFORMERS)

# Notes on contenders.
ALL_BFLOAT16 = "all of it in bfloat16"
COMPILED = "torch.compile with its defaults"

Answer = dict[str, Tensor]
Reasons = list[str]
Around = Callable[[], AbstractContextManager[None]]


@dataclass
class Runnable:
    """A contender that is ready.

    Attributes:
        call: one step; what is timed.
        answer: ``{name: tensor}`` from the result of the latest call: some of the expected answers.
        facts: JSON-able facts to report, asked for after the last call.
        around: makes the context that a block of calls runs in.
    """

    call: Callable[[], Any]
    answer: Callable[[Any], Answer]
    facts: Callable[[], dict[str, Any]] = dict
    around: Around = contextlib.nullcontext


Make = Callable[[Any], Runnable | Reasons]


def anything(workload: Workload) -> bool:
    return True


def in_float32(workload: Workload) -> bool:
    return workload.dtype == "float32"


def in_batch_inner(workload: Workload) -> bool:
    return workload.layout == BATCH_INNER


def worth_compiling(workload: Workload) -> bool:
    """More than one block of a transformer: compiling takes half a minute."""
    return workload.kind in TRANSFORMERS and workload.sizes[0] > 1


def worth_serving(workload: Workload) -> bool:
    """Evaluation of a network that is deep enough to be served: engines take a minute to take one in."""
    return workload.kind in FORWARDS and (workload.kind == NETWORK_FORWARD or workload.sizes[0] > 3)


def no_bfloat16() -> Reasons:
    """Why dense bfloat16 is not measured here: without such products it is ten times slower than float32."""
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return []
    return ["oneDNN has no bfloat16 on this processor"]


@dataclass(frozen=True)
class Contender:
    """A way to compute workloads of some kinds.

    Attributes:
        name: unique.
        kinds: kinds of the workloads that it applies to.
        make: problem to Runnable, or reasons why not.
        family: "dense" contenders multiply with all weights, the pruned ones included, and are what
            speed-ups are over; they may return any layout. "peer" is other software; "own" is sparseprune.
        dtype: precision, which sets the accepted error; "": that of the workload.
        only: further, which workloads it applies to.
        note: words for the reader of the results.
    """

    name: str
    kinds: tuple[str, ...]
    make: Make
    family: str
    dtype: str = ""
    only: Callable[[Workload], bool] = anything
    note: str = ""

    def applies(self, workload: Workload) -> bool:
        return workload.kind in self.kinds and self.only(workload)


CONTENDERS: dict[str, Contender] = {}


def contender(name: str, kinds: Iterable[str], family: str, **more: Any) -> Callable[[Make], Make]:
    """Register the function below under a name, for workloads of these kinds."""

    def register(make: Make) -> Make:
        assert name not in CONTENDERS, f"contender {name} is registered twice"
        CONTENDERS[name] = Contender(name, tuple(kinds), make, family, **more)
        return make

    return register
