"""``sparseprune info``: what this installation is and can do."""

from __future__ import annotations

import json

import typer
from rich.console import Console
from rich.table import Table

import sparseprune as sp
from sparseprune.cost import cache, machine
from sparseprune.experiments.cli import options


def info(threads: options.Threads = None, as_json: options.Json = False) -> None:
    """Print versions, instruction set, threads, CUDA, which operators are in use, where choices are kept."""
    facts = {**sp.ops.info(), **machine.facts()}
    # Stands under the package's name.
    facts.pop("version", None)
    file = cache.choices_file()
    measured = sum(len(layers) for layers in cache.load(file).values())
    facts["choices"] = {"file": None if file is None else str(file), "entries": measured}
    if as_json:
        typer.echo(json.dumps(facts))
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if isinstance(value, dict):
            value = [f"{key} {part}" for key, part in value.items()]
        words = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        table.add_row(name.replace("_", " "), words)
    Console(soft_wrap=True).print(table)
