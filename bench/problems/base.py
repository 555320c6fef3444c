"""What all problems have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.workloads import Workload

SEED = 0
CPU = torch.device("cpu")


@dataclass
class Problem:
    """A workload's tensors and answers.

    Attributes:
        workload: what this is.
        expected: ``{name: answer}``, computed in float64, or exactly.
        kept_flops: operations of the matrix products of a call with the kept weights alone; 0: not counted.
        dense_flops: the same with all weights.
        kept_bytes: bytes of values, indices and activations (gradients of them, where computed), each once;
            0: not counted.
    """

    workload: Workload
    expected: dict[str, Tensor]
    kept_flops: int
    dense_flops: int
    kept_bytes: int


def generator(device: torch.device = CPU) -> torch.Generator:
    return torch.Generator(device).manual_seed(SEED)


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores by torch alone: the least of them, and a bool mask, ties to the earlier place."""
    joined = scores.flatten()
    threshold = joined.kthvalue(len(joined) - k + 1).values
    mask = joined > threshold
    ties = (joined == threshold).nonzero()[:, 0]
    mask[ties[: k - int(mask.sum())]] = True
    return threshold, mask.reshape(scores.shape)
