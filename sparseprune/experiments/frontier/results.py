"""Finished runs of a frontier and the file that holds them, a line each."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from sparseprune.experiments.frontier.points import Point
from sparseprune.format import files

FILE = "runs.jsonl"
# Runs of several lengths are in one file; all other settings must agree.
LENGTH = "epochs"
# What of the machine must agree, or times could not be compared.
SAME_MACHINE = ("cpu", "isa", "threads", "torch", "sparseprune")


@dataclass(frozen=True)
class Layer:
    """A layer that was pruned: weights, those that it keeps, and how it computes, and why."""

    name: str
    weights: int
    kept: int
    computes: str


@dataclass(frozen=True)
class Measured:
    """What one run gave; times in seconds.

    Attributes:
        accuracy: fraction of the test samples that are right at the end.
        curve: (passes over the data, seconds of training so far, accuracy) after each pass.
        epochs, steps: passes over the data and optimizer steps.
        score_seconds: time of scoring, done once for all points of a method and seed, and charged to each.
        select_seconds: time of selecting masks.
        sparsify_seconds: time of building the sparse layers, and of timing them where no earlier run has.
        train_seconds: time of training, data included, evaluation excluded.
        total_seconds: time of pruning (the three above) and training.
        wall_seconds: time of all that was done here, and of scoring if it was done here.
        step_seconds: median time of one training step.
        flops: operations of a step of a full batch, kept weights only.
        flops_vs_dense: these operations over those of the dense network.
        weights: number of kept weights of linear and convolutional layers.
        width: factor of the model's width.
        channels_last: whether a dense network has this memory format of images, the faster one of two.
        bytes: bytes of parameters, gradients, optimizer and buffers.
        layers: layers that were pruned.
        lr: learning rate at the start; None in older files, where the settings have it.
        trials: (rate, accuracy on the validation split) of each trial, if the rate was tuned, rates rising.
    """

    accuracy: float
    curve: tuple[tuple[float, float, float], ...]
    epochs: float
    steps: int
    score_seconds: float
    select_seconds: float
    sparsify_seconds: float
    train_seconds: float
    total_seconds: float
    wall_seconds: float
    step_seconds: float
    flops: int
    flops_vs_dense: float
    weights: int
    width: float
    channels_last: bool
    bytes: dict[str, int]
    layers: tuple[Layer, ...]
    lr: float | None = None
    trials: tuple[tuple[float, float], ...] = ()

    @property
    def lr_at_edge(self) -> bool:
        """Whether the tuned rate is the lowest or the highest of the grid: one beyond may be better."""
        return len(self.trials) > 1 and self.lr in (self.trials[0][0], self.trials[-1][0])


@dataclass(frozen=True)
class Record:
    """A finished run: a line of the file."""

    point: Point
    settings: dict[str, Any]
    machine: dict[str, Any]
    measured: Measured

    @property
    def epochs(self) -> int:
        """Passes over the data that it was set to: a frontier may have runs of several lengths."""
        return self.settings[LENGTH]

    def to_line(self) -> str:
        """JSON without line breaks."""
        return json.dumps({**dataclasses.asdict(self), "point": self.point.to_dict()})

    @classmethod
    def from_line(cls, line: str | bytes) -> Record:
        """Undo `to_line`; ValueError, KeyError, TypeError or AttributeError for anything else."""
        content = json.loads(line)
        measured = content["measured"]
        for name in {"curve", "trials"} & measured.keys():
            measured[name] = tuple(tuple(point) for point in measured[name])
        measured["layers"] = tuple(Layer(**layer) for layer in measured["layers"])
        point = Point.from_dict(content["point"])
        settings = content["settings"]
        if not isinstance(settings[LENGTH], int):
            raise TypeError(f"{LENGTH} {settings[LENGTH]!r}")
        return cls(point, settings, content["machine"], Measured(**measured))


def passes(epochs: int) -> str:
    """1 as "1 epoch", 3 as "3 epochs"."""
    return f"{epochs} epoch{'' if epochs == 1 else 's'}"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def read(file: Path, warn: Callable[[str], None] = _warn) -> list[Record]:
    """The finished runs of a file, in its order.

    Args:
        file: path, where nothing need be.
        warn: function that is told of a last line that was cut off, which is left out.
    Returns:
        records; none if there is no file.
    Raises:
        ValueError: a line is not a record, two records are of one run, or they have different settings other
            than their epochs.
    """
    if not file.exists():
        return []
    if not file.is_file():
        raise ValueError(f"frontier: expected a file of runs, got {file}, which is none; give another --out")
    *lines, rest = file.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(Record.from_line(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"frontier: expected a run in line {number} of {file}, got something else ({error}); "
                "delete the line to do its run again"
            ) from error
    if rest:
        warn(f"frontier: the last line of {file} was cut off; its run is not counted")
    for record in records[1:]:
        check_alike(records[0], record.settings, record.machine, file)
    _check_once(records, file)
    return records


def _check_once(records: list[Record], file: Path) -> None:
    first: dict[tuple[Point, int], int] = {}
    again = [
        (number, first[record.point, record.epochs], record.point.label)
        for number, record in enumerate(records, 1)
        if first.setdefault((record.point, record.epochs), number) != number
    ]
    if again:
        number, before, label = again[0]
        raise ValueError(
            f"frontier: expected each run once in {file}, got {label} in lines {before} and {number}; "
            f"delete what is there again, lines {', '.join(str(line) for line, _, _ in again)}"
        )


def append(file: Path, record: Record) -> None:
    """Add a line that is on the disk when this returns, in place of a last line that was cut off.

    A kill or a full disk leaves all lines before it, and at worst one more that is cut off.

    Args:
        file: JSON lines; made if missing. Its folder must exist, and `alone` guard it.
        record: a run that is not in the file.
    Raises:
        OSError: it cannot be written.
    """
    try:
        files.add_line(file, record.to_line())
    except OSError as error:
        raise OSError(
            f"frontier: cannot add {record.point.label} to {file} ({error.strerror or error}); finished runs "
            "are kept: make room, and the same command goes on"
        ) from error


@contextlib.contextmanager
def alone(file: Path) -> Iterator[None]:
    """Keep other processes from training for the same file; a kill ends that as well.

    Raises:
        BlockingIOError: another process does.
        OSError: the file that says so, .lock, cannot be written.
    """
    lock = filelock.FileLock(f"{file}.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        # Both would store the runs of both, and take time from what the other measures.
        raise BlockingIOError(
            f"frontier: expected no other process to train for {file}, but one does; "
            "wait until it has finished, or give another --out"
        ) from None
    except OSError as error:
        raise OSError(
            f"frontier: cannot write {file}.lock ({error.strerror or error}); "
            "give another --out, a folder that can be written to"
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_alike(record: Record, settings: dict[str, Any], machine: dict[str, Any], file: Path) -> None:
    """Raise ValueError, which names the differences, unless a record has these settings and machine.

    The number of epochs may differ.
    """
    names = [name for name in record.settings | settings if name != LENGTH]
    there = {name: record.settings.get(name) for name in names}
    there |= {name: record.machine.get(name) for name in SAME_MACHINE}
    here = {name: settings.get(name) for name in names} | {name: machine.get(name) for name in SAME_MACHINE}
    if different := [
        f"{name} {there[name]!r} there, {here[name]!r} now" for name in there if there[name] != here[name]
    ]:
        raise ValueError(
            f"frontier: expected the settings of the runs in {file}, got others: {'; '.join(different)}; "
            "give another --out, or the same settings"
        )
