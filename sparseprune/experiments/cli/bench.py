"""``sparseprune bench``: the benchmark suite, which is in the source tree beside the package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parents[3]


def bench(context: typer.Context) -> None:
    """Run the benchmark suite: the same as `python -m bench.run`, options included."""
    if not (ROOT / "bench" / "run.py").is_file():
        raise ImportError(
            f"bench: expected the benchmark suite in {ROOT / 'bench'}, but an installed package has none; "
            "clone the repository and run it there"
        )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    suite = typer.Typer(add_completion=False)
    suite.command()(importlib.import_module("bench.run").main)
    raise typer.Exit(suite(context.args, prog_name="sparseprune bench", standalone_mode=False) or 0)
