"""The names of the tables, and where the results lie that they are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from bench import results_file
from bench.results_file import Results

RESULTS = Path(__file__).parents[2] / "results"
LINEAR_RUN = "2026-11-23-intel-2-cores.jsonl"
CONV_RUN = "2026-11-23-convolutions.jsonl"
PEERS_RUN = "2026-11-23-peers.jsonl"
SERVING_RUN = "serving.jsonl"

Make = Callable[[], str]
TABLES: dict[str, Make] = {}


def table(name: str) -> Callable[[Make], Make]:
    """Register the function below, which returns Markdown, under a name."""

    def register(make: Make) -> Make:
        assert name not in TABLES, f"table {name} is registered twice"
        TABLES[name] = make
        return make

    return register


def transformer_run(model: str) -> str:
    """The file of the run of a transformer's blocks."""
    return f"transformers-{model}.jsonl"


@functools.cache
def run(file: str) -> Results:
    """A committed run of `bench.run`."""
    return results_file.read(RESULTS / file)
