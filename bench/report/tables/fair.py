"""Tables of the fair frontiers: tuned rates, several lengths of training, differences paired by seed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas

from bench.report.markdown import pipe
from bench.report.tables.registry import RESULTS, table
from sparseprune.experiments.frontier import results
from sparseprune.experiments.frontier.report import difference
from sparseprune.experiments.frontier.statistics import statistics
from sparseprune.experiments.tables import plus_minus

FOLDER = RESULTS / "fair"
NETWORKS = {
    "784-1024-1024-10": "wide_mlp",
    "LeNet-5": "lenet5_caffe",
    "ResNet-8": "resnet8",
    "ResNet-8, twice as wide": "resnet8-2x",
}


class Line(NamedTuple):
    """The network of a line or a column: what of a `Point` it has."""

    kind: str = "sparse"
    flops: float = 1.0
    method: str | None = None
    rule: str | None = None
    block_rows: int | None = None
    width: float = 1.0


def random(rule: str, flops: float, block_rows: int = 1, width: float = 1.0) -> Line:
    return Line("sparse", flops, "random", rule, block_rows, width)


LINES = {
    "dense": Line("dense"),
    "small dense, 30 % of the FLOPs": Line("small dense", 0.3),
    "small dense, 10 %": Line("small dense", 0.1),
    "small dense, 3 %": Line("small dense", 0.03),
    "random masks, uniform, 30 %": random("uniform", 0.3),
    "random masks, uniform, 10 %": random("uniform", 0.1),
    "random masks, ERK, 30 %": random("erk", 0.3),
    "random masks, ERK, 10 %": random("erk", 0.1),
    "SNIP, `flops=0.3`": Line("sparse", 0.3, "snip", "cost", 1),
    "SNIP, `flops=0.1`": Line("sparse", 0.1, "snip", "cost", 1),
    "random 4×1 blocks, uniform, 10 %": random("uniform", 0.1, 4),
    "twice as wide, uniform, 30 %": random("uniform", 0.3, width=2.0),
    "twice as wide, uniform, 10 %": random("uniform", 0.1, width=2.0),
}


@functools.cache
def networks(folder: Path) -> pandas.DataFrame:
    """A row for each network and length of a frontier; see `statistics`."""
    return statistics(results.read(folder / results.FILE))


def row(found: pandas.DataFrame, line: Line, epochs: int) -> pandas.DataFrame:
    """The row of a network and length; none where it was not run."""
    fields = line._asdict().items()
    wanted = [all(getattr(point, name) == value for name, value in fields) for point in found.network]
    return found[(found.epochs == epochs) & np.array(wanted)]


def accuracies(folder: Path) -> str:
    """Accuracy and seconds of every network, two columns for each length."""
    found = networks(folder)
    lengths = sorted(set(found.epochs))
    heads = [head for epochs in lengths for head in (f"{results.passes(epochs)}, %", "time")]
    lines = []
    for words, line in LINES.items():
        cells = [words]
        for epochs in lengths:
            of = row(found, line, epochs)
            cells += [
                "".join(
                    plus_minus(100 * one.accuracy, 100 * one.accuracy_std, ".2f") for one in of.itertuples()
                ),
                "".join(f"{one.seconds:.1f} s" for one in of.itertuples()),
            ]
        if any(cells[1:]):
            lines.append(cells)
    return pipe(["", *heads], lines)


def differences(folders: dict[str, Path], figure: str) -> str:
    """A difference of every sparse network, with its interval; a line for each network and length."""
    columns = {words: line for words, line in LINES.items() if line.kind == "sparse"}
    lines = []
    for name, folder in folders.items():
        found = networks(folder)
        for epochs in sorted(set(found.epochs)):
            cells = [
                "".join(difference(one, figure) for one in row(found, line, epochs).itertuples())
                for line in columns.values()
            ]
            lines.append([f"{name}, {results.passes(epochs)}", *cells])
    return pipe(["percentage points", *columns], lines)


# Networks that have been run, longest lengths last: all of it takes hours.
DONE = {name: FOLDER / of for name, of in NETWORKS.items() if (FOLDER / of / results.FILE).exists()}
if DONE:
    # Small dense of the same time, whatever its length; dense of the same length.
    table("fair-small")(lambda: differences(DONE, "vs_small"))
    table("fair-dense")(lambda: differences(DONE, "above_dense"))
for _folder in DONE.values():
    table(f"fair-{_folder.name}")(functools.partial(accuracies, _folder))
