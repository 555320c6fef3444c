"""Sparse or dense, layer by layer: decided by measuring both on this machine."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparseprune import ops
from sparseprune.nn import SparseLinear
from sparseprune.nn.masked import masked_from_dense

REPEATS = 6  # the first one warms up
ENOUGH_SECONDS = 0.03  # per contender: larger layers are measured fewer times
DENSE_SIDE = 1024  # dense is timed on at most 1024 x 1024 of the weights and scaled up: its work is uniform


class Choice(NamedTuple):
    """Seconds of one training step of a layer, sparse and dense, and what they decide."""

    sparse: float
    dense: float

    @property
    def use_sparse(self) -> bool:
        return self.sparse < self.dense

    def __str__(self) -> str:
        faster, slower = ("sparse", "dense") if self.use_sparse else ("dense", "sparse")
        return (
            f"{faster} {min(self) * 1e3:.3g} ms, {slower} {max(self) * 1e3:.3g} ms a step"
            if ops.extension is not None
            else "plain torch, no sparse kernels"
        )


def measure_linear(layer: SparseLinear, batch_size: int) -> Choice:
    """Time one training step (forward and all gradients) of a sparse layer and of its masked dense twin.

    Args:
        layer: the sparse layer; not changed.
        batch_size: samples in a step.
    """
    rows, cols = layer.out_features, layer.in_features
    sparse = _seconds(layer, _ramp(layer.values, batch_size, cols), rows)
    few_rows, few_cols = min(rows, DENSE_SIDE), min(cols, DENSE_SIDE)
    dtype, device = layer.values.dtype, layer.values.device
    dense = _dense_seconds(few_rows, few_cols, batch_size, dtype, device, torch.get_num_threads())
    return Choice(sparse, dense * (rows * cols) / max(few_rows * few_cols, 1))


@functools.cache
def _dense_seconds(
    rows: int, cols: int, batch_size: int, dtype: torch.dtype, device: torch.device, threads: int
) -> float:
    with torch.random.fork_rng(devices=[]):  # measuring must not disturb the user's random numbers
        linear = nn.Linear(cols, rows, device=device, dtype=dtype)
    masked = masked_from_dense(linear, torch.ones(rows, cols, dtype=torch.bool))
    return _seconds(masked, _ramp(linear.weight, batch_size, cols), rows)


def _ramp(like: Tensor, batch_size: int, features: int) -> Tensor:
    x = torch.linspace(-1, 1, batch_size * features, device=like.device, dtype=like.dtype)
    return x.reshape(batch_size, features).requires_grad_()


def _seconds(layer: nn.Module, x: Tensor, rows: int) -> float:
    g = _ramp(x, x.shape[0], rows).detach()
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]

    def step() -> None:
        torch.autograd.grad(layer(x), wanted, g)

    with torch.enable_grad():
        return best_seconds(step)


def best_seconds(step: Callable[[], None]) -> float:
    """Time of the fastest of REPEATS calls, or of as many as fit in ENOUGH_SECONDS (two at least)."""
    times: list[float] = []
    while len(times) < 2 or (len(times) < REPEATS and sum(times) < ENOUGH_SECONDS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times)
