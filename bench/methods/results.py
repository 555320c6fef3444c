"""Finished runs of an experiment on methods, and the file that holds them, a line each."""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.methods.points import Point, Run
from sparseprune.experiments.frontier.results import SAME_MACHINE

# Model, data, seed and point.
Key = tuple[str, str, int, Point]


@dataclass(frozen=True)
class Measured:
    """What one run gave; times in seconds, evaluation excluded.

    Attributes:
        accuracy: fraction of the test samples that are right at the end.
        curve: (passes over the data, seconds of training so far, accuracy) after each pass.
        epochs, steps: passes over the data and optimizer steps.
        scored: samples that were scored; fewer than asked for where the data has fewer.
        spent_seconds: time of training before the last pruning, and of earlier prunings.
        prune_seconds: time of scoring, selecting and building the sparse layers.
        sparsify_seconds: the part of it of building them, and of timing them where no earlier run has.
        train_seconds: time of the last training.
        total_seconds: spent, prune and train.
        wall_seconds: time of all that was done for this run.
        step_seconds: median time of one training step.
        flops_vs_dense: operations of a training step, kept weights only, over the dense network's.
        weights: number of kept weights of linear and convolutional layers.
        sparsity: fraction of the dense network's weights that they lack.
        width: factor of the network's width; 1 unless it is small.
        channels_last: whether a dense network has this memory format of images, the faster one of two.
        layers: (weights, kept weights, how it computes and why) by the name of each pruned layer.
    """

    accuracy: float
    curve: tuple[tuple[float, float, float], ...]
    epochs: float
    steps: int
    scored: int
    spent_seconds: float
    prune_seconds: float
    sparsify_seconds: float
    train_seconds: float
    total_seconds: float
    wall_seconds: float
    step_seconds: float
    flops_vs_dense: float
    weights: int
    sparsity: float
    width: float
    channels_last: bool
    layers: dict[str, tuple[int, int, str]]


@dataclass(frozen=True)
class Record:
    """A finished run, a line of the file: measured, or failed for a reason."""

    model: str
    data: str
    seed: int
    point: Point
    settings: dict[str, Any]
    machine: dict[str, Any]
    measured: Measured | None
    failed: str | None = None

    @property
    def key(self) -> Key:
        """What no two records of a file have in common."""
        return self.model, self.data, self.seed, self.point

    def to_line(self) -> str:
        """JSON without line breaks."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_line(cls, line: str | bytes) -> Record:
        """Undo `to_line`; ValueError, KeyError, TypeError or AttributeError for anything else."""
        content = json.loads(line)
        content["point"] = Point(**content["point"])
        if (measured := content["measured"]) is not None:
            measured["curve"] = tuple(tuple(point) for point in measured["curve"])
            measured["layers"] = {name: tuple(layer) for name, layer in measured["layers"].items()}
            content["measured"] = Measured(**measured)
        return cls(**content)


def key_of(run: Run) -> Key:
    """The `Record.key` that a run will have."""
    return run.training.model, run.training.data, run.seed, run.point


def read(file: Path) -> list[Record]:
    """The finished runs of a file, in its order; none if there is no file.

    A last line that was cut off is left out, with a warning.

    Raises:
        ValueError: a line is not a record, or two records are of one run.
    """
    if not file.exists():
        return []
    *lines, rest = file.read_bytes().split(b"\n")
    first: dict[Key, int] = {}
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = Record.from_line(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"bench.methods: expected a run in line {number} of {file}, got something else ({error}); "
                "delete the line to do its run again"
            ) from error
        if first.setdefault(record.key, number) != number:
            raise ValueError(
                f"bench.methods: expected each run once in {file}, got {record.point.label} in lines "
                f"{first[record.key]} and {number}; delete line {number}"
            )
        records.append(record)
    if rest:
        warnings.warn(
            f"bench.methods: the last line of {file} was cut off; its run is not counted", stacklevel=2
        )
    return records


def check_alike(record: Record, settings: dict[str, Any], machine: dict[str, Any], file: Path) -> None:
    """Raise ValueError, which names the differences, unless a record has these settings and machine."""
    there = record.settings | {name: record.machine.get(name) for name in SAME_MACHINE}
    here = settings | {name: machine.get(name) for name in SAME_MACHINE}
    if different := [
        f"{name} {there.get(name)!r} there, {here.get(name)!r} now"
        for name in there | here
        if there.get(name) != here.get(name)
    ]:
        raise ValueError(
            f"bench.methods: expected the settings of the runs in {file}, got others for {record.model} on "
            f"{record.data}: {'; '.join(different)}; give another --out, or the same settings"
        )
