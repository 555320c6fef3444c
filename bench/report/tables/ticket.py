"""The lottery ticket against its mask elsewhere, from committed results of ``sparseprune ticket``."""

from __future__ import annotations

import json

import pandas

from bench.report.machine import machine_text
from bench.report.markdown import pipe, spread
from bench.report.tables.registry import RESULTS, table

FILES = sorted((RESULTS / "ticket").glob("seed-*/results.json"))
COLUMNS = {"ticket": "ticket", "re-initialised": "other weights", "shuffled": "shuffled mask"}


def ticket(searches: list[dict]) -> str:
    """Accuracy of each round over the seeds, how much faster a step is, and what it depends on.

    Args:
        searches: contents of results.json that differ in their seed alone.
    """
    runs = pandas.concat(
        [
            pandas.json_normalize(one["runs"]).assign(seed=one["settings"]["seed"], number=i)
            for i, one in enumerate(searches)
        ]
    )
    dense = runs[runs["round"] == 0].set_index("number")["result.step_seconds"]
    lines = []
    for number, found in runs.groupby("round"):
        of_kind = {kind: found[found["kind"] == kind] for kind in COLUMNS}
        own = of_kind["ticket"].set_index("number")
        faster = (dense / own["result.step_seconds"]).mean()
        lines.append(
            [
                str(number),
                f"{100 * own['sparsity'].mean():.1f} %",
                f"{round(own['weights'].mean()):,}",
                *(spread(of["result.accuracy"], 100) if len(of) else "" for of in of_kind.values()),
                f"{1e3 * own['result.step_seconds'].mean():.2f}",
                f"{faster:.2f}×",
            ]
        )
    heads = ["round", "sparsity", "weights", *(f"{name}, accuracy %" for name in COLUMNS.values())]
    first = searches[0]
    data, settings, machine = first["data"], first["settings"], first["machine"]
    seeds = ", ".join(str(one["settings"]["seed"]) for one in searches)
    return (
        f"{pipe([*heads, 'ms/step', 'over dense'], lines)}\n\n"
        f"{first['model']['name']} on {data['name']}: {data['train']:,} training and {data['test']:,} test "
        f"samples, {settings['epochs']} epochs, batch {settings['batch_size']}, {settings['optimizer']}, lr "
        f"{settings['lr']:g}, rewound to step {settings['rewind']}, seeds {seeds}. After ± stands one "
        f"standard deviation over the seeds. {machine_text(machine)}, {machine['date']}."
    )


if FILES:
    table("ticket")(lambda: ticket([json.loads(file.read_text(encoding="utf-8")) for file in FILES]))
