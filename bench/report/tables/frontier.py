"""Tables of frontiers: accuracy and seconds of the same number of epochs."""

from __future__ import annotations

import functools
import json
from typing import Any, NamedTuple

import pandas

from bench.report.markdown import pipe, spread
from bench.report.tables.registry import RESULTS, table

NETWORKS = {"784-1024-1024-10": "wide_mlp", "LeNet-5": "lenet5_caffe", "ResNet-8": "resnet8"}


class Point(NamedTuple):
    """The runs of a line of a table: what of `sparseprune.experiments.frontier`'s points they have."""

    kind: str = "sparse"
    budget: float = 1.0
    method: str | None = None
    rule: str | None = None
    exponent: float | None = None
    shuffled: bool = False


def random(rule: str, budget: float) -> Point:
    return Point(budget=budget, method="random", rule=rule)


def snip(rule: str, budget: float, exponent: float | None = None, shuffled: bool = False) -> Point:
    return Point("sparse", budget, "snip", rule, exponent, shuffled)


SHORT = {
    "dense": Point("dense"),
    "small dense, 30 % of the FLOPs": Point("small dense", 0.3),
    "small dense, 10 %": Point("small dense", 0.1),
    "random masks, uniform, 30 %": random("uniform", 0.3),
    "random masks, uniform, 10 %": random("uniform", 0.1),
    "random masks, ERK, 10 %": random("erk", 0.1),
    "SNIP, `flops=0.1`": snip("cost", 0.1, 0.5),
    "SNIP, global, 10 %": snip("global", 0.1),
}
RULES = {
    "dense": Point("dense"),
    "small dense, 30 % of the FLOPs": Point("small dense", 0.3),
    "small dense, 10 %": Point("small dense", 0.1),
    "random, uniform density, 30 %": random("uniform", 0.3),
    "... 10 %": random("uniform", 0.1),
    "... 3 %": random("uniform", 0.03),
    "random, ERK densities, 10 %": random("erk", 0.1),
    "random, ERK densities, 3 %": random("erk", 0.03),
    "SNIP, uniform density, 10 %": snip("uniform", 0.1),
    "SNIP, global, 10 %": snip("global", 0.1),
    "SNIP / FLOPs^0.5, 10 %": snip("cost", 0.1, 0.5),
    "... shuffled within layers": snip("cost", 0.1, 0.5, shuffled=True),
}


@functools.cache
def runs(network: str) -> pandas.DataFrame:
    """A row for each run with single weights that stay where they are."""
    with (RESULTS / "frontier" / network / "runs.jsonl").open(encoding="utf-8") as lines:
        found = pandas.json_normalize([json.loads(line) for line in lines])
    block = found["point.block_rows"]
    if "point.rewire" in found:
        block = block.where(found["point.rewire"].isna(), 0)
    return found[block.isna() | (block == 1)]


def measured(network: str, point: Point, figure: str) -> pandas.Series:
    """A figure of the runs of a line, over the seeds."""
    found = runs(network)
    for name, value in point._asdict().items():
        column = found[f"point.{name}"]
        found = found[column.isna() if value is None else column == value]
    assert len(found) > 1, (network, point)
    return found[f"measured.{figure}"]


def _table(points: dict[str, Point], digits: int) -> str:
    lines: list[list[Any]] = []
    for words, point in points.items():
        cells = [words]
        for network in NETWORKS.values():
            cells.append(spread(measured(network, point, "accuracy"), 100, digits))
            cells.append(f"{measured(network, point, 'total_seconds').mean():.1f} s")
        lines.append(cells)
    heads = [head for name in NETWORKS for head in (f"{name}, accuracy %", "time")]
    return pipe(["the same epochs for all", *heads], lines)


@table("frontier")
def frontier() -> str:
    return _table(SHORT, 1)


@table("frontier-rules")
def rules() -> str:
    return _table(RULES, 2)


@table("frontier-exponents")
def exponents() -> str:
    """Accuracy of SNIP / FLOPs^e at 10 / 3 % of the FLOPs."""
    lines = []
    for name, network in NETWORKS.items():
        cells = [name]
        for exponent in (None, 0.25, 0.5, 0.75, 1.0):
            rule = "global" if exponent is None else "cost"
            found = [measured(network, snip(rule, budget, exponent), "accuracy") for budget in (0.1, 0.03)]
            cells.append(" / ".join(_mean(one) for one in found))
        lines.append(cells)
    return pipe(["e", "0 (global)", "0.25", "0.5", "0.75", "1"], lines)


def _mean(accuracies: pandas.Series) -> str:
    """Percent; with the deviation where the seeds disagree."""
    return spread(accuracies, 100, 0) if accuracies.std() > 0.1 else f"{100 * accuracies.mean():.2f}"
