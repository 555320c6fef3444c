"""Selecting the best of many scores."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.problems.base import Problem, best, generator
from bench.workloads import Workload


@dataclass
class ScoresProblem(Problem):
    """Scores of which k are to be kept.

    Attributes:
        scores: float32, one tensor for each layer.
        joined: the same in one tensor, for contenders that take no list: joining is not part of their time.
        k: number to keep.
    """

    scores: list[Tensor]
    joined: Tensor
    k: int


def build_topk(workload: Workload, device: torch.device) -> ScoresProblem:
    """Scores of a network's shapes, the threshold, and the exact masks, ties to the earlier position."""
    shapes = [(rows, cols) for cols, rows in itertools.pairwise(workload.sizes)]
    sizes = [rows * cols for rows, cols in shapes]
    joined = torch.randn(sum(sizes), generator=generator(device), device=device).abs_()
    k = round(len(joined) * workload.density)
    scores = [part.clone().reshape(shape) for part, shape in zip(joined.split(sizes), shapes, strict=True)]
    threshold, mask = best(joined, k)
    expected = {"count": torch.tensor(float(k)), "threshold": threshold, "mask": mask}
    # Every score is read once, every byte of the masks written once.
    moved = joined.nbytes + mask.nbytes
    return ScoresProblem(workload, expected, 0, 0, moved, scores=scores, joined=joined, k=k)
