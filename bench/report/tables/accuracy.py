"""Tables of accuracy, from the committed results of several seeds."""

from __future__ import annotations

import json
from typing import Any

import pandas

from bench import seeds
from bench.accuracy import section
from bench.report.markdown import pipe, spread
from bench.report.tables.registry import RESULTS, table

SPARSITY = 0.9


def comparisons(pattern: str) -> list[dict[str, Any]]:
    """Results of `sparseprune compare` of several seeds."""
    files = sorted(RESULTS.glob(pattern))
    assert files, pattern
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@table("accuracy")
def accuracy() -> str:
    """Dense, SNIP and small dense at 90 %, after equal epochs and in dense's time."""
    lines = []
    for words, pattern in {
        "LeNet-5, 60,000 images, 2 epochs": "accuracy/lenet5_caffe-seed-*.json",
        "LeNet-5, 60,000 images, 8 epochs": "accuracy/8-epochs/lenet5_caffe-seed-*.json",
        "ResNet-8, 20,000 images, 4 epochs": "accuracy/resnet8-seed-*.json",
    }.items():
        runs = seeds.frame(comparisons(pattern))
        small = runs[(runs["kind"] == "small dense") & (runs["sparsity"] == SPARSITY)]
        snip = runs[(runs["method"] == "snip") & (runs["sparsity"] == SPARSITY)]
        cells = [_accuracy(runs[(runs["kind"] == "dense") & (runs["view"] == "epochs")])]
        for chosen in (snip, small):
            epochs = chosen[chosen["view"] == "epochs"]
            cells += [
                f"{_accuracy(epochs)}, {epochs['time_vs_dense'].mean():.2f}×",
                _accuracy(chosen[chosen["view"] == "time"]),
            ]
        lines.append([words, *cells])
    heads = [
        *("90 % pruned, accuracy", "dense", "SNIP, equal epochs, time ÷ dense", "SNIP, in dense's time"),
        *("small dense, equal epochs, time ÷ dense", "small dense, in dense's time"),
    ]
    return pipe(heads, lines)


def _accuracy(runs: pandas.DataFrame) -> str:
    return f"{spread(runs['result.accuracy'], 100, 1)} %"


# As `bench.accuracy` writes them, with what they depend on and the command.


@table("accuracy lenet5_caffe")
def lenet() -> str:
    return section(comparisons("accuracy/lenet5_caffe-seed-*.json"))


@table("accuracy resnet8")
def resnet() -> str:
    return section(comparisons("accuracy/resnet8-seed-*.json"))


@table("8-epochs lenet5_caffe")
def lenet_8_epochs() -> str:
    return section(comparisons("accuracy/8-epochs/lenet5_caffe-seed-*.json"))


@table("blocks")
def blocks() -> str:
    return seeds.table(comparisons("blocks/seed-*.json"))
