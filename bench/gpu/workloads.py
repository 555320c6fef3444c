"""What is measured on a GPU: workloads as data."""

from __future__ import annotations

import dataclasses

from bench.workloads import (
    ARTICLE_SCORES,
    CONV_STEP,
    FORWARD,
    HALF,
    STEP,
    TWO_OF_FOUR,
    Workload,
    convolutions,
    layers,
)

SQUARES = ((1024, 1024), (4096, 4096), (8192, 8192))
LARGE = (4096, 4096)
# At half of the weights masks are 2:4, so that 2:4 kernels compute what everybody else does.
DENSITIES = (HALF, 0.20, 0.10, 0.05, 0.02)
BLOCKS = (1, 4, 8, 16)
CONV_SHAPES = ((64, 64, 32), (64, 64, 8), (256, 256, 32), (256, 256, 8))


def _workloads() -> tuple[Workload, ...]:
    linear = (
        *layers((FORWARD, STEP), SQUARES, DENSITIES, batches=(8, 256), blocks=BLOCKS),
        *layers((FORWARD,), (LARGE,), DENSITIES, batches=(1, 4096), blocks=BLOCKS),
    )
    return (
        *(dataclasses.replace(w, mask=TWO_OF_FOUR) if w.density == HALF else w for w in linear),
        *convolutions((CONV_STEP,), (0.10, 0.05), CONV_SHAPES, batches=(64,), blocks=(1, 4)),
        Workload("topk", ARTICLE_SCORES, 0.02),
    )


QUICK = {
    "linear-forward/4096x4096/density=0.50/n=256/2:4",
    "linear-forward/4096x4096/density=0.10/n=1",
    "linear-forward/4096x4096/density=0.10/n=256",
    "linear-forward/4096x4096/density=0.10/n=256/block=8",
    "linear-step/1024x1024/density=0.10/n=256",
    "linear-step/4096x4096/density=0.05/n=256",
    "linear-step/4096x4096/density=0.05/n=256/block=8",
    "conv-step/256x256@8x8-3x3/density=0.10/n=64",
    "topk/42.1M/density=0.02",
}


def case_id(workload: Workload) -> str:
    """The workload's id without a dtype: contenders of all precisions compute it."""
    return workload.id.replace(f"/{workload.dtype}", "")


WORKLOADS = tuple(dataclasses.replace(w, quick=case_id(w) in QUICK) for w in _workloads())
