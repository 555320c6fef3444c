"""Selecting the best of many scores."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.problems.base import Problem, generator
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


def build_topk(workload: Workload) -> ScoresProblem:
    """Scores of a network's shapes, the threshold, and the exact masks, ties to the earlier position."""
    shapes = [(rows, cols) for cols, rows in itertools.pairwise(workload.sizes)]
    joined = torch.randn(sum(rows * cols for rows, cols in shapes), generator=generator()).abs_()
    k = round(len(joined) * workload.density)
    parts = joined.split([rows * cols for rows, cols in shapes])
    scores = [part.clone().reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    threshold = joined.kthvalue(len(joined) - k + 1).values
    mask = joined > threshold
    ties = (joined == threshold).nonzero()[:, 0]
    mask[ties[: k - int(mask.sum())]] = True
    expected = {"threshold": threshold, "mask": mask}
    return ScoresProblem(workload, expected, 0, 0, 0, scores=scores, joined=joined, k=k)
