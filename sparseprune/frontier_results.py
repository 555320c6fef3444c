"""Runs of a frontier: a file of them, and their means, deviations and the most accurate for their time."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "runs.jsonl"
# What of the machine must agree, or times could not be compared.
SAME_MACHINE = ("cpu", "isa", "threads", "torch", "sparseprune")


@dataclass(frozen=True)
class Point:
    """One training run of a frontier.

    Attributes:
        kind: "dense", "small dense" or "sparse".
        seed: of initial weights, random masks, scored batches and order of samples.
        budget: fraction of the dense network's training FLOPs.
        method: how weights are scored, for "sparse"; see `sparseprune.prune`.
        rule: how the budget is divided among layers; see `sparseprune.frontier_masks.masks_within`.
        exponent: of the rules "cost" and "time".
        block_rows: V of the blocks of V x 1 that are kept or removed.
        shuffled: whether each layer keeps as many blocks as the scores say, but of chance.
    """

    kind: str
    seed: int
    budget: float = 1.0
    method: str | None = None
    rule: str | None = None
    exponent: float | None = None
    block_rows: int | None = None
    shuffled: bool = False

    @property
    def family(self) -> str:
        """What a line of the plot joins: runs that differ in budget and seed alone."""
        if self.kind != "sparse":
            return self.kind
        return f"{self.method_text} {self.rule_text} V={self.block_rows}"

    @property
    def method_text(self) -> str:
        """The method, "snip" or "snip shuffled"; else the kind."""
        return f"{self.method or self.kind}{' shuffled' if self.shuffled else ''}"

    @property
    def rule_text(self) -> str:
        """The rule, with its exponent if it has one: "cost^0.5"."""
        return f"{self.rule or ''}" if self.exponent is None else f"{self.rule}^{self.exponent:g}"

    @property
    def label(self) -> str:
        """Name in reports of progress."""
        budget = "" if self.kind == "dense" else f" {100 * self.budget:.4g} % FLOPs"
        return f"{self.family}{budget}, seed {self.seed}"


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
        epochs, steps: of training.
        score_seconds: of scoring, done once for all points of a method and seed, and charged to each.
        select_seconds: of selecting masks.
        sparsify_seconds: of building the sparse layers, timing them first where no earlier run has.
        train_seconds: of training, data included, evaluation excluded.
        total_seconds: of pruning (the three above) and training.
        wall_seconds: of all that the run took here, but for scoring.
        step_seconds: median of one training step.
        flops: of a step of a full batch, kept weights only.
        flops_vs_dense: over those of the dense network.
        weights: kept, of linear and convolutional layers.
        width: of the network; 1 unless it is small.
        channels_last: whether a dense network has this layout of images, the faster one of two for it.
        bytes: of parameters, gradients, optimizer and buffers.
        layers: those that were pruned.
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


@dataclass(frozen=True)
class Record:
    """A finished run: a line of the file."""

    point: Point
    settings: dict[str, Any]
    machine: dict[str, Any]
    measured: Measured

    def to_line(self) -> str:
        """JSON without line breaks."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_line(cls, line: str | bytes) -> Record:
        """Undo `to_line`; ValueError, KeyError or TypeError for anything else."""
        content = json.loads(line)
        measured = content["measured"]
        measured["curve"] = tuple(tuple(point) for point in measured["curve"])
        measured["layers"] = tuple(Layer(**layer) for layer in measured["layers"])
        return cls(Point(**content["point"]), content["settings"], content["machine"], Measured(**measured))


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def read(file: Path, warn: Callable[[str], None] = _warn) -> list[Record]:
    """The finished runs of a file, in its order.

    Args:
        file: need not be there.
        warn: is told of a last line that was cut off, which is left out.
    Returns:
        records; none if there is no file.
    Raises:
        ValueError: a line is not a record, or two records have different settings.
    """
    if not file.is_file():
        return []
    *lines, rest = file.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(Record.from_line(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"frontier: expected a run in line {number} of {file}, got something else ({error}); "
                "delete the line to do its run again"
            ) from error
    if rest:
        warn(f"frontier: the last line of {file} was cut off; its run is not counted")
    for record in records[1:]:
        check_alike(records[0], record.settings, record.machine, file)
    return records


def append(file: Path, record: Record) -> None:
    """Add a line that is on the disk when this returns, in place of a last line that was cut off."""
    with file.open("ab") as stream:
        written = file.read_bytes()
        stream.truncate(written.rfind(b"\n") + 1)
        stream.write(record.to_line().encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def check_alike(record: Record, settings: dict[str, Any], machine: dict[str, Any], file: Path) -> None:
    """Raise ValueError, which names the differences, unless a record has these settings and machine."""
    names = list(record.settings | settings)
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


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1 in the denominator; None for a single number)."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        return cls(statistics.mean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)


@dataclass(frozen=True)
class Row:
    """All seeds of one network.

    Attributes:
        point: of the first seed.
        seeds: in the order in which they were run.
        accuracy: 0 ... 1.
        seconds: of pruning and training.
        vs_dense: mean seconds over those of dense; None where dense was not run.
        prune_seconds, step_seconds, flops_vs_dense, weights: means.
        best: no other network is as accurate in as little time, by the means.
    """

    point: Point
    seeds: tuple[int, ...]
    accuracy: Spread
    seconds: Spread
    vs_dense: float | None
    prune_seconds: float
    step_seconds: float
    flops_vs_dense: float
    weights: float
    best: bool


def rows(records: Sequence[Record]) -> list[Row]:
    """Statistics over seeds: dense, small dense, then sparse; families in the order of the runs.

    Args:
        records: of one frontier; some seeds may be missing.
    Returns:
        a row for each network, within a family the largest budget first.
    """
    groups: dict[Point, list[Record]] = {}
    for record in records:
        groups.setdefault(dataclasses.replace(record.point, seed=0), []).append(record)
    families = list(dict.fromkeys(point.family for point in groups))
    kinds = ("dense", "small dense", "sparse")
    order = sorted(groups, key=lambda p: (kinds.index(p.kind), families.index(p.family), -p.budget))
    made = [_row(groups[point]) for point in order]
    dense = next((row.seconds.mean for row in made if row.point.kind == "dense"), None)
    return [
        dataclasses.replace(
            row,
            vs_dense=None if not dense else row.seconds.mean / dense,
            best=not any(_beats(other, row) for other in made),
        )
        for row in made
    ]


def _row(records: Sequence[Record]) -> Row:
    runs = [record.measured for record in records]
    return Row(
        point=records[0].point,
        seeds=tuple(record.point.seed for record in records),
        accuracy=Spread.of([run.accuracy for run in runs]),
        seconds=Spread.of([run.total_seconds for run in runs]),
        vs_dense=None,
        prune_seconds=statistics.mean(run.total_seconds - run.train_seconds for run in runs),
        step_seconds=statistics.mean(run.step_seconds for run in runs),
        flops_vs_dense=statistics.mean(run.flops_vs_dense for run in runs),
        weights=statistics.mean(run.weights for run in runs),
        best=False,
    )


def _beats(one: Row, other: Row) -> bool:
    faster, slower = one.seconds.mean, other.seconds.mean
    better, worse = one.accuracy.mean, other.accuracy.mean
    return faster <= slower and better >= worse and (faster, better) != (slower, worse)


HEADS = (
    *("network", "rule", "V", "budget %", "seeds", "accuracy %"),
    *("total s", "÷ dense", "prune s", "ms/step", "FLOPs %", "weights"),
)
TEXTS = 2  # columns of text, the first ones; the others are numbers
LEGEND = (
    "After ± stands one standard deviation over the seeds. **Bold**: no other network is as accurate in as "
    "little time (by the means). budget: of the dense training FLOPs. total s: pruning and training, "
    "evaluation excluded; ÷ dense: over that of dense; prune s: the part of pruning. ms/step: median, data "
    "included. FLOPs %: products of a training step, kept weights only, of dense."
)


def cells(row: Row) -> list[str]:
    """A row as texts under `HEADS`."""
    point = row.point
    return [
        point.method_text,
        point.rule_text,
        "" if point.block_rows is None else str(point.block_rows),
        f"{100 * point.budget:.4g}",
        str(len(row.seeds)),
        _plus_minus(row.accuracy, 100, 2),
        _plus_minus(row.seconds, 1, 1),
        "" if row.vs_dense is None else f"{row.vs_dense:.2f}",
        f"{row.prune_seconds:.2f}" if point.kind == "sparse" else "",
        f"{1000 * row.step_seconds:.2f}",
        f"{100 * row.flops_vs_dense:.2f}",
        f"{row.weights:,.0f}",
    ]


def markdown(records: Sequence[Record]) -> str:
    """The table in GitHub's Markdown, and what it depends on."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---" * TEXTS + "|---:" * (len(HEADS) - TEXTS) + "|"]
    for row in rows(records):
        texts = [f"**{text}**" if row.best and text else text for text in cells(row)]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join([f"**{headline(records[0])}**", "", *lines, "", facts(records[0]), "", LEGEND, ""])


def headline(record: Record) -> str:
    """Model, data and settings in a few words."""
    settings, threads = record.settings, record.machine["threads"]
    epochs = settings["epochs"]
    return (
        f"{settings['model']} on {settings['data']}, {epochs} epoch{'s' if epochs > 1 else ''}, "
        f"batch {settings['batch_size']}, {threads} thread{'s' if threads > 1 else ''}"
    )


def facts(record: Record) -> str:
    """One line of what the figures depend on."""
    settings, machine = record.settings, record.machine
    return (
        f"{settings['train']:,} training and {settings['test']:,} test samples, {settings['optimizer']}, "
        f"lr {settings['lr']:g} with cosine decay to 0, {settings['prune_batches']} batches scored"
        f"{', weights that stay rescaled' if settings['rescale'] else ''}; "
        f"{machine['cpu']}, {machine['isa']}, torch {machine['torch']}, "
        f"sparseprune {machine['sparseprune']}, {machine['date']}."
    )


def _plus_minus(spread: Spread, factor: float, digits: int) -> str:
    deviation = "" if spread.std is None else f" ± {factor * spread.std:.{digits}f}"
    return f"{factor * spread.mean:.{digits}f}{deviation}"
