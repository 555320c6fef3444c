"""What `bench_small.py` is, for the tests of the GPU's benchmark on the CPU."""

import dataclasses
import types

import torch

from bench.contenders import Contender, one_layer
from bench.gpu import suite
from bench.gpu.workloads import case_id
from bench.rows import Row
from bench.timing import HostClock
from bench.workloads import TWO_OF_FOUR, Workload

CPU = torch.device("cpu")

FORWARD = Workload("linear-forward", (64, 32), 0.25, 8)

STEP = Workload("linear-step", (64, 32), 0.25, 16)

CONV = Workload("conv-step", (8, 16, 5), 0.25, 16, kernel=3)

TOPK = Workload("topk", (40, 24, 16, 4), 0.25)

TINY = (
    FORWARD,
    STEP,
    CONV,
    TOPK,
    Workload("linear-forward", (64, 32), 0.5, 8, mask=TWO_OF_FOUR),
    Workload("linear-forward", (64, 32), 0.5, 8, block=4, mask=TWO_OF_FOUR),
    Workload("linear-forward", (64, 32), 0.25, 1, block=16),
    Workload("linear-step", (64, 32), 0.25, 16, block=8),
    Workload("conv-step", (8, 16, 5), 0.25, 16, block=4, kernel=3),
)


def contender(name, make, family="peer", precision="float32", kinds=("linear-forward", "linear-step")):
    return Contender(name, kinds, make, family, precision)


def honest(problem):
    runnable = one_layer(problem, problem.layer)
    return dataclasses.replace(runnable, facts=lambda: {"weights": 512, "index_bytes": 0})


def run_one(contenders, workload=FORWARD, rounds=2, clock=None):
    (found,) = suite.run([workload], contenders, CPU, clock or HostClock(), rounds)
    return {row.contender: row for row in found}


def row_of(name, workload=FORWARD, family="own", precision="float32", **more):
    case = case_id(workload)
    more = {"family": family, "note": "", "precision": precision, "tolerance": 1e-5, **more}
    return Row(id=f"{case}/{name}", case=case, workload=workload, contender=name, **more)


def cuda_properties():
    return types.SimpleNamespace(
        name="A GPU", major=9, minor=0, L2_cache_size=1000, total_memory=2000, multi_processor_count=3
    )
