"""``python -m bench.seeds FILE ...``: a table of the results of ``sparseprune compare`` with several seeds.

Prints Markdown: mean and standard deviation of the test accuracy, mean times.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas
import typer

from bench.report.markdown import pipe, spread


def main(files: Annotated[list[Path], typer.Argument(help="A results.json of each seed.")]) -> None:
    """Print a Markdown table of the runs, one line for each network."""
    print(table([json.loads(file.read_text(encoding="utf-8")) for file in files]))


def frame(comparisons: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    """All runs of comparisons that differ in their seed alone: a row each, columns like "result.accuracy"."""
    return pandas.json_normalize([run for comparison in comparisons for run in comparison["runs"]])


def table(comparisons: Sequence[dict[str, Any]]) -> str:
    """Comparisons that differ in their seed alone as a Markdown table.

    Accuracy at equal epochs, and its difference to that of dense; time of pruning and training; where there
    was a second view, the accuracy at equal time and the passes over the data that fitted into it. After ±
    stands one standard deviation over the seeds.
    """
    runs = frame(comparisons)
    equal_epochs = runs[runs["view"] == "epochs"]
    equal_time = dict(list(runs[runs["view"] == "time"].groupby("label")))
    dense = equal_epochs.loc[equal_epochs["label"] == "dense", "result.accuracy"].mean()
    budget = "dense's" if all(one["settings"]["budget"] == "dense" for one in comparisons) else "equal"
    heads = ["network", "weights", "seeds", "accuracy %", "− dense", "total s", "÷ dense", "ms/step"]
    heads += [f"accuracy % in {budget} time", "epochs in it"] if equal_time else []
    heads += ["MFLOP/step"]
    lines = []
    for label, found in equal_epochs.groupby("label", sort=False):
        mean = found.mean(numeric_only=True)
        cells = [
            str(label),
            f"{round(mean['weights']):,}",
            str(len(found)),
            spread(found["result.accuracy"], 100),
            f"{100 * (mean['result.accuracy'] - dense):+.2f}",
            f"{mean['total_seconds']:.1f}",
            f"{mean['time_vs_dense']:.2f}",
            f"{1e3 * mean['result.step_seconds']:.2f}",
        ]
        if equal_time:
            timed = equal_time.get(label)
            cells += (
                ["", ""]
                if timed is None
                else [spread(timed["result.accuracy"], 100), f"{timed['result.epochs'].mean():.1f}"]
            )
        lines.append([*cells, f"{mean['flops_per_step'] / 1e6:,.0f}"])
    return pipe(heads, lines)


if __name__ == "__main__":
    typer.run(main)
