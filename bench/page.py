"""``python -m bench.page RESULTS.jsonl``: one self-contained HTML page of a results file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.report import page


def main(
    results: Annotated[Path, typer.Argument(help="JSONL that `python -m bench.run --out` wrote.")],
    out: Annotated[Path | None, typer.Option(help="HTML to write; beside the results by default.")] = None,
) -> None:
    """Write one HTML page with the plots and tables of a benchmark run."""
    out = out or results.with_suffix(".html")
    page.write(results, out)
    typer.echo(out)


if __name__ == "__main__":
    typer.run(main)
