"""``python -m bench.seeds FILE ...``: a table of the results of ``sparseprune compare`` with several seeds.

Prints Markdown: mean and standard deviation of the test accuracy at equal epochs, and mean times.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import typer


def main(
    files: Annotated[list[Path], typer.Argument(help="A results.json of each seed.")],
) -> None:
    """Print a Markdown table of the runs at equal epochs."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        for run in json.loads(file.read_text(encoding="utf-8"))["runs"]:
            if run["view"] == "epochs":
                runs.setdefault(run["label"], []).append(run)
    print(table(runs))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """``{network: its run with each seed}`` as a Markdown table."""
    lines = [
        "| network | accuracy % | seeds | ms/step | total s | ÷ dense | weights |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for label, of_seeds in runs.items():
        accuracy = [100 * run["result"]["accuracy"] for run in of_seeds]
        spread = f" ± {statistics.stdev(accuracy):.2f}" if len(accuracy) > 1 else ""
        cells = (
            label,
            f"{statistics.mean(accuracy):.2f}{spread}",
            str(len(of_seeds)),
            f"{_mean(run['result']['step_seconds'] for run in of_seeds) * 1e3:.2f}",
            f"{_mean(run['total_seconds'] for run in of_seeds):.1f}",
            f"{_mean(run['time_vs_dense'] for run in of_seeds):.2f}",
            f"{round(_mean(run['weights'] for run in of_seeds)):,}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(numbers: Any) -> float:
    return statistics.mean(numbers)


if __name__ == "__main__":
    typer.run(main)
