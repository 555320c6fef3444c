"""``python -m bench.tables [--check] [FILES]``: the tables of documents, written from committed results.

In a Markdown file a table stands between ``<!-- table: NAME -->`` and ``<!-- /table -->``, and
`bench.report.tables` has a function for each name. By default all Markdown files of the tree are written.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from bench.report.markdown import MARKED, fill
from bench.report.tables import TABLES
from sparseprune.format.files import write

ROOT = Path(__file__).resolve().parents[1]


def main(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Markdown files; all of the source tree by default.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; fail and name the tables that are stale.")
    ] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Print the names of the tables.")] = False,
) -> None:
    """Write the tables of Markdown files anew."""
    if list_only:
        typer.echo("\n".join(TABLES))
        return
    stale = False
    for file in files or documents():
        text = file.read_text(encoding="utf-8")
        for name in names(text):
            if name not in TABLES:
                near = difflib.get_close_matches(name, TABLES, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise typer.BadParameter(f"{file}: no table {name!r}; {hint}--list shows what there is")
        new = fill(text, lambda name: TABLES[name]())
        old_tables = {found["name"]: found[0] for found in MARKED.finditer(text)}
        for found in MARKED.finditer(new):
            if found[0] != old_tables[found["name"]]:
                stale = True
                typer.echo(f"{file}: {found['name']}{' is stale' if check else ''}")
        if new != text and not check:
            write(file, new)
    if check and stale:
        typer.echo("make tables writes them anew")
        raise typer.Exit(1)


def documents() -> Iterator[Path]:
    """Markdown files that may hold tables."""
    yield from sorted(ROOT.glob("*.md"))
    for folder in ("docs", "bench"):
        yield from sorted((ROOT / folder).rglob("*.md"))


def names(text: str) -> list[str]:
    """Names of the tables of a document."""
    return [found["name"] for found in MARKED.finditer(text)]


if __name__ == "__main__":
    typer.run(main)
