"""Tables of what `make demo` shows, from the committed results of one run of it."""

from __future__ import annotations

import json
from typing import Any

import pandas

from bench.report.markdown import pipe
from bench.report.tables.registry import RESULTS, table

MEGA = 1e6
HEADS = (
    *("network", "acc. %", "epochs", "ms/step", "prune s", "total s", "÷ dense"),
    *("weights", "MB", "index MB", "MFLOP/step"),
)


def _results() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / "demo" / "results.json").read_text(encoding="utf-8"))
    return content


def _runs(view: str) -> pandas.DataFrame:
    """A row for each network, trained for equal epochs ("epochs") or equal seconds ("time")."""
    runs = pandas.json_normalize(_results()["runs"])
    return runs[runs["view"] == view].set_index("label")


def _table(view: str) -> str:
    lines = []
    for label, run in _runs(view).iterrows():
        held = sum(run[f"result.bytes.{part}"] for part in ("parameters", "gradients", "optimizer"))
        lines.append(
            [
                str(label),
                f"{100 * run['result.accuracy']:.2f}",
                f"{run['result.epochs']:.1f}",
                f"{1e3 * run['result.step_seconds']:.2f}",
                f"{run['prune_seconds']:.2f}" if run["kind"] == "sparse" else "",
                f"{run['total_seconds']:.1f}",
                f"{run['time_vs_dense']:.2f}",
                f"{run['weights']:,}",
                f"{held / MEGA:.2f}",
                f"{run['result.bytes.buffers'] / MEGA:.2f}",
                f"{run['flops_per_step'] / MEGA:,.0f}",
            ]
        )
    return pipe(HEADS, lines)


@table("demo")
def demo() -> str:
    """Both views, and what they depend on."""
    content = _results()
    settings, machine, data = content["settings"], content["machine"], content["data"]
    return "\n\n".join(
        [
            f"**Equal epochs ({settings['epochs']})**",
            _table("epochs"),
            f"**Equal wall-clock time ({settings['budget_seconds']:.1f} s, pruning included)**",
            _table("time"),
            f"{content['model']['name']} on {data['name']}, batch {settings['batch_size']}, "
            f"{machine['threads']} threads; {data['train']:,} training and {data['test']:,} test samples; "
            f"{settings['optimizer']}, lr {settings['lr']:g}, seed {settings['seed']}, "
            f"{settings['prune_batches']} batches scored, scope {settings['scope']}; {machine['cpu']}, "
            f"{machine['isa']}, torch {machine['torch']}, sparseprune {machine['sparseprune']}, "
            f"{machine['date']}.",
        ]
    )


@table("demo-short")
def demo_short() -> str:
    """Seconds and accuracy of both views, a line for each network."""
    content = _results()
    epochs, equal_time = _runs("epochs"), _runs("time")
    lines = [
        [
            str(label),
            f"{run['weights']:,}",
            f"{run['total_seconds']:.1f}",
            f"{100 * run['result.accuracy']:.1f}",
            f"{100 * equal_time.loc[label, 'result.accuracy']:.1f}",
        ]
        for label, run in epochs.iterrows()
    ]
    settings = content["settings"]
    heads = [
        *("network", "weights", "seconds", f"accuracy %, {settings['epochs']} epochs"),
        f"accuracy %, {settings['budget_seconds']:.0f} s",
    ]
    return pipe(heads, lines)
