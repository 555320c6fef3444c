"""Statistics and table of a frontier: means over seeds, and accuracy beside others of the same time."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy

from sparseprune.experiments.frontier.results import Point, Record
from sparseprune.experiments.frontier.rules import RULES
from sparseprune.scores import METHODS


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
        vs_small: accuracy above that of small dense networks, dense being the largest, of the same seed in
            the same seconds; None where they are all slower.
        vs_random: alike, above uniform random masks of single weights.
        prune_seconds, flops_vs_dense, weights: means.
        best: no other network is as accurate in as little time, by the means.
    """

    point: Point
    seeds: tuple[int, ...]
    accuracy: Spread
    seconds: Spread
    vs_dense: float | None
    vs_small: Spread | None
    vs_random: Spread | None
    prune_seconds: float
    flops_vs_dense: float
    weights: float
    best: bool


def rows(records: Sequence[Record]) -> list[Row]:
    """Statistics over seeds: dense, small dense, then sparse, by method and rule, shuffled masks last.

    Args:
        records: of one frontier; some seeds may be missing.
    Returns:
        a row for each network, within a family the largest budget first.
    """
    groups: dict[Point, list[Record]] = {}
    for record in records:
        groups.setdefault(dataclasses.replace(record.point, seed=0), []).append(record)
    order = sorted(groups, key=_place)
    small, random = _curves(records, _is_small_dense), _curves(records, _is_random)
    made = [_row(groups[point], small, random) for point in order]
    dense = next((row.seconds.mean for row in made if row.point.kind == "dense"), None)
    return [
        dataclasses.replace(
            row,
            vs_dense=None if not dense else row.seconds.mean / dense,
            best=not any(_beats(other, row) for other in made),
        )
        for row in made
    ]


def _place(point: Point) -> tuple[float, ...]:
    """What rows are sorted by."""
    if point.kind != "sparse":
        return (point.kind != "dense", -point.budget)
    assert point.method is not None
    assert point.rule is not None
    return (
        2 + point.shuffled,
        list(METHODS).index(point.method),
        RULES.index(point.rule),
        point.exponent or 0.0,
        point.block_rows or 1,
        -point.budget,
    )


def _is_small_dense(point: Point) -> bool:
    return point.kind in ("dense", "small dense")


def _is_random(point: Point) -> bool:
    return point.kind == "dense" or (point.method, point.rule, point.block_rows) == ("random", "uniform", 1)


Curve = tuple[Sequence[float], Sequence[float]]  # log of seconds, ascending, and accuracies


def _curves(records: Sequence[Record], belongs: Callable[[Point], bool]) -> dict[int, Curve]:
    """For each seed the best accuracy of those networks in at most so much time."""
    runs: dict[int, list[tuple[float, float]]] = {}
    for record in records:
        if belongs(record.point):
            run = math.log(record.measured.total_seconds), record.measured.accuracy
            runs.setdefault(record.point.seed, []).append(run)
    curves: dict[int, Curve] = {}
    for seed, points in runs.items():
        times, accuracies = zip(*sorted(points), strict=True)
        curves[seed] = times, tuple(itertools.accumulate(accuracies, max))
    return curves


def _above(group: Sequence[Record], curves: dict[int, Curve]) -> Spread | None:
    """Accuracy above that of a curve at the same time, straight between the curve's points.

    Args:
        group: runs of one network.
        curves: by seed.
    Returns:
        statistics over the seeds; None where a run is more than a tenth faster than its curve, or has none.
    """
    differences = []
    for record in group:
        times, accuracies = curves.get(record.point.seed, ((), ()))
        time = math.log(record.measured.total_seconds)
        if not times or time < times[0] - math.log(1.1):
            return None
        differences.append(record.measured.accuracy - float(numpy.interp(time, times, accuracies)))
    return Spread.of(differences)


def _row(group: Sequence[Record], small: dict[int, Curve], random: dict[int, Curve]) -> Row:
    point, runs = group[0].point, [record.measured for record in group]
    return Row(
        point=point,
        seeds=tuple(record.point.seed for record in group),
        accuracy=Spread.of([run.accuracy for run in runs]),
        seconds=Spread.of([run.total_seconds for run in runs]),
        vs_dense=None,
        vs_small=None if _is_small_dense(point) else _above(group, small),
        vs_random=None if _is_random(point) else _above(group, random),
        prune_seconds=statistics.mean(run.total_seconds - run.train_seconds for run in runs),
        flops_vs_dense=statistics.mean(run.flops_vs_dense for run in runs),
        weights=statistics.mean(run.weights for run in runs),
        best=False,
    )


def _beats(one: Row, other: Row) -> bool:
    faster, slower = one.seconds.mean, other.seconds.mean
    better, worse = one.accuracy.mean, other.accuracy.mean
    return faster <= slower and better >= worse and (faster, better) != (slower, worse)


HEADS = (
    *("network", "rule", "V", "budget %", "seeds", "accuracy %", "vs small", "vs random"),
    *("total s", "÷ dense", "prune s", "FLOPs %", "weights"),
)
TEXTS = 2  # columns of text, the first ones; the others are numbers
LEGEND = (
    "After ± stands one standard deviation over the seeds. **Bold**: no other network is as accurate in as "
    "little time (by the means). budget: of the dense training FLOPs. vs small, vs random: percentage points "
    "above small dense networks, and above uniform random masks of single weights, of the same seed in the "
    "same total time (interpolated between their budgets, dense being the largest; empty where they are all "
    "slower). total s: pruning and training, evaluation excluded; ÷ dense: over that of dense; prune s: the "
    "part of pruning. FLOPs %: products of a training step, kept weights only, of dense."
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
        "" if row.vs_small is None else _plus_minus(row.vs_small, 100, 2, sign="+"),
        "" if row.vs_random is None else _plus_minus(row.vs_random, 100, 2, sign="+"),
        _plus_minus(row.seconds, 1, 1),
        "" if row.vs_dense is None else f"{row.vs_dense:.2f}",
        f"{row.prune_seconds:.2f}" if point.kind == "sparse" else "",
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


def _plus_minus(spread: Spread, factor: float, digits: int, sign: str = "") -> str:
    deviation = "" if spread.std is None else f" ± {factor * spread.std:.{digits}f}"
    return f"{factor * spread.mean:{sign}.{digits}f}{deviation}"
