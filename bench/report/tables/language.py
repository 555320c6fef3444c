"""The language model at equal time, from committed results of ``python -m bench.language``."""

from __future__ import annotations

from typing import Any

import pandas

from bench import ledger
from bench.language.run import RUNS
from bench.ledger import Row
from bench.report.machine import machine_text
from bench.report.markdown import pipe, spread
from bench.report.tables.registry import RESULTS, table

FILE = RESULTS / "language" / RUNS
SMALL = "small dense"


def frame(rows: list[Row]) -> pandas.DataFrame:
    """A line for each run: contender, budget (s), seed, bits and what else was measured."""
    return pandas.DataFrame([{**row["key"], **row["result"]} for row in rows])


def best_small(runs: pandas.DataFrame) -> dict[float, str]:
    """The small dense network with the fewest bits at each budget: {budget: contender}."""
    small = runs[runs["contender"].str.startswith(SMALL)]
    means = small.groupby(["budget", "contender"])["bits"].mean()
    return {budget: of["bits"].idxmin()[1] for budget, of in means.to_frame().groupby(level=0)}


def language(rows: list[Row]) -> str:
    """Bits a character of each model at each time, and how far it is from the best small dense one."""
    runs = frame(rows)
    budgets, small = sorted(runs["budget"].unique()), best_small(runs)
    heads, lines = ["model", "weights", "ms/step", "precision", "lr"], []
    for budget in budgets:
        heads += [f"{budget / 60:g} min: steps", "bits/character", "− best small dense"]
    for name, found in runs.groupby("contender", sort=False):
        first = found.iloc[0]
        line = [
            str(name),
            f"{first['weights']:,}",
            f"{1e3 * first['step_seconds']:.0f}",
            first["precision"],
            f"{first['lr']:g}",
        ]
        for budget in budgets:
            of = found[found["budget"] == budget].set_index("seed")
            if len(of) == 0:
                line += ["", "", ""]
                continue
            rival = runs[(runs["budget"] == budget) & (runs["contender"] == small.get(budget))]
            apart = (of["bits"] - rival.set_index("seed")["bits"]).dropna()
            line += [
                f"{of['steps'].iloc[0]:,}",
                spread(of["bits"], digits=3),
                "" if len(apart) == 0 or name == small[budget] else spread(apart, digits=3, sign="+"),
            ]
        lines.append(line)
    return f"{pipe(heads, lines)}\n\n{_facts(rows[0], runs)}"


def _facts(row: Row, runs: pandas.DataFrame) -> str:
    settings, machine = row["result"]["settings"], row["machine"]
    seeds = runs.groupby("budget")["seed"].nunique()
    counts = ", ".join(f"{count} at {budget / 60:g} min" for budget, count in seeds.items())
    rates = ", ".join(row["result"]["rates"])
    return (
        f"{settings['layers']} layers, steps of {settings['batch']} pieces of {settings['length']} "
        f"characters. Seeds: {counts}; after ± stands one standard deviation, of differences of pairs of "
        f"one seed. Rates: the best of {rates} in {row['result']['tuning_seconds']:g} s on validation text. "
        f"{machine_text(machine)}, {machine['date']}."
    )


def _registered(rows: list[dict[str, Any]]) -> None:
    if rows:
        table("language")(lambda: language(rows))


_registered(ledger.read(FILE))
