"""``python -m bench.seeds FILE ...``: a table of the results of ``sparseprune compare`` with several seeds.

Prints Markdown: mean and standard deviation of the test accuracy, mean times.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Runs = list[dict[str, Any]]


def main(
    files: Annotated[list[Path], typer.Argument(help="A results.json of each seed.")],
) -> None:
    """Print a Markdown table of the runs, one line for each network."""
    print(table([json.loads(file.read_text(encoding="utf-8")) for file in files]))


def table(comparisons: Sequence[dict[str, Any]]) -> str:
    """Comparisons that differ in their seed alone as a Markdown table.

    Accuracy at equal epochs, and its difference to that of dense; time of pruning and training; where there
    was a second view, the accuracy at equal time and the passes over the data that fitted into it. After ±
    stands one standard deviation over the seeds.
    """
    views: dict[str, dict[str, Runs]] = {"epochs": {}, "time": {}}
    for comparison in comparisons:
        for run in comparison["runs"]:
            views[run["view"]].setdefault(run["label"], []).append(run)
    heads = ["network", "weights", "seeds", "accuracy %", "− dense", "total s", "÷ dense", "ms/step"]
    heads += ["accuracy % in dense's time" if _as_long_as_dense(comparisons) else "accuracy % in equal time"]
    heads += ["epochs in it", "MFLOP/step"]
    second = bool(views["time"])
    rows = []
    for label, runs in views["epochs"].items():
        timed = views["time"].get(label, [])
        cells = [
            label,
            f"{round(_mean(run['weights'] for run in runs)):,}",
            str(len(runs)),
            _accuracy(runs),
            f"{100 * (_mean(map(accuracy, runs)) - _mean(map(accuracy, views['epochs']['dense']))):+.2f}",
            f"{_mean(run['total_seconds'] for run in runs):.1f}",
            f"{_mean(run['time_vs_dense'] for run in runs):.2f}",
            f"{_mean(run['result']['step_seconds'] for run in runs) * 1e3:.2f}",
            _accuracy(timed) if timed else "",
            f"{_mean(run['result']['epochs'] for run in timed):.1f}" if timed else "",
            f"{_mean(run['flops_per_step'] for run in runs) / 1e6:,.0f}",
        ]
        rows.append(cells)
    kept = [i for i in range(len(heads)) if second or i not in (8, 9)]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line[i] for i in kept) + " |" for line in lines)


def accuracy(run: dict[str, Any]) -> float:
    """Test accuracy at the end of a run, 0 ... 1."""
    return float(run["result"]["accuracy"])


def _accuracy(runs: Runs) -> str:
    percent = [100 * accuracy(run) for run in runs]
    spread = f" ± {statistics.stdev(percent):.2f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.2f}{spread}"


def _as_long_as_dense(comparisons: Sequence[dict[str, Any]]) -> bool:
    return all(comparison["settings"]["budget"] == "dense" for comparison in comparisons)


def _mean(numbers: Iterable[float]) -> float:
    return statistics.mean(numbers)


if __name__ == "__main__":
    typer.run(main)
