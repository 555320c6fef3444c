"""What a comparison found: one run for each network and view, and what a reader needs to judge them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from sparseprune.experiments.train import TrainResult

View = Literal["epochs", "time"]


@dataclass(frozen=True)
class Run:
    """One contender trained in one view; fields of `Contender` and `TrainResult`, and what follows from them.

    Attributes:
        view: "epochs" (as many epochs as all others) or "time" (as many seconds as all others).
        total_seconds: time of pruning and training; evaluation excluded.
        time_vs_dense: total_seconds over those of the dense contender in the same view.
        flops_per_step: operations of a full batch, kept weights only; see `flops_per_step`.
        layers: how each layer computes, and why; see `sparseprune.summary`.
        lr: learning rate at the start.
    """

    view: View
    label: str
    kind: str
    method: str | None
    sparsity: float | None
    block: str | None
    weights: int
    prune_seconds: float
    total_seconds: float
    time_vs_dense: float
    flops_per_step: int
    layers: tuple[str, ...]
    lr: float
    result: TrainResult
    prune_cpu_seconds: float | None = None
    prune_joules: float | None = None


@dataclass(frozen=True)
class Comparison:
    """All runs and what a reader needs to judge them: data, model, settings and machine."""

    data: dict[str, Any]
    model: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    runs: tuple[Run, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists for JSON: seconds, bytes, accuracies 0 ... 1."""
        return dataclasses.asdict(self)
