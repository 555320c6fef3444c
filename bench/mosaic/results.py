"""Finished runs as a table, a row each, and the times that were measured on a quiet machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas

from bench import ledger
from bench.mosaic.points import BASE, Setting

RUNS = ("tuned", "region")
SETTING = tuple(field.name for field in dataclasses.fields(Setting))


def read(folder: Path) -> pandas.DataFrame:
    """The runs of "tuned" and "region", with the columns of key and result, and "threads" and so on."""
    rows = [row for name in RUNS for row in ledger.read(folder / f"{name}.jsonl")]
    return pandas.DataFrame([{**row["machine"], **row["key"], **row["result"]} for row in rows])


def of_setting(runs: pandas.DataFrame, setting: Setting = BASE) -> pandas.DataFrame:
    """The runs of one setting."""
    for name in SETTING:
        runs = runs[runs[name] == getattr(setting, name)]
    return runs


def accuracies(runs: pandas.DataFrame, network: str, setting: Setting = BASE) -> pandas.Series:
    """Test accuracy in % of a network on a setting, by seed; empty without runs."""
    found = of_setting(runs[runs["network"] == network], setting).set_index("seed")["accuracy"]
    return 100 * found.astype(float).sort_index()


def times(folder: Path) -> dict[str, Any] | None:
    """What "time" measured last, and the "machine" of it; None where there is nothing."""
    rows = ledger.read(folder / "time.jsonl")
    return {**rows[-1]["result"], "machine": rows[-1]["machine"]} if rows else None


def total_seconds(timed: dict[str, Any], network: str, steps: float) -> float:
    """Seconds of pruning and of so many steps, by what "time" measured."""
    found = timed["networks"][network]
    return found["prune_seconds"] + steps * found["step_seconds"]
