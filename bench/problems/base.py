"""What all problems have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.workloads import Workload

SEED = 0


@dataclass
class Problem:
    """A workload's tensors and answers.

    Attributes:
        workload: what this is.
        expected: ``{name: answer}``, computed in float64, or exactly.
        kept_flops: operations of the matrix products of a call with the kept weights alone; 0: not counted.
        dense_flops: the same with all weights.
        kept_bytes: of values, indices and activations (gradients of them, where computed), each once; 0: not
            counted.
    """

    workload: Workload
    expected: dict[str, Tensor]
    kept_flops: int
    dense_flops: int
    kept_bytes: int


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)
