"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparseprune.experiments.page import what_to_install

if TYPE_CHECKING:
    import pandas as pd


def rich_table(
    texts: pd.DataFrame, title: str, words: Collection[str], styles: Sequence[str | None], padding: int = 0
) -> Table:
    """A table of texts.

    Args:
        texts: strings, with headings as columns.
        title: line above the table.
        words: headings of columns that may be folded; the others hold numbers, flush right.
        styles: style of each line, such as "bold".
        padding: blanks between columns, besides one.
    """
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, padding, 0, 0), show_edge=False
    )
    for heading in texts.columns:
        numbers = heading not in words
        table.add_column(
            heading, justify="right" if numbers else "left", no_wrap=numbers, min_width=None if numbers else 8
        )
    for cells, style in zip(texts.itertuples(index=False), styles, strict=True):
        table.add_row(*cells, style=style)
    return table


def console(width: int) -> Console:
    """Standard output; where it is no terminal, so wide that a log file need not fold a table."""
    found = Console()
    return found if found.is_terminal else Console(width=width)


def print_line(console: Console, line: str) -> None:
    """Print a long line: folded between words on a terminal, as one line elsewhere."""
    console.print(shown(line), highlight=False, markup=False, soft_wrap=not console.is_terminal)


def print_files(console: Console, files: Sequence[str], page: str, folder: Path, *more: str) -> None:
    """Say which files are in a folder, and what a page takes where there is none."""
    install = what_to_install()
    written = [*files, *([] if install else [page])]
    told = f"{', '.join(written[:-1])} and {written[-1]} are in {folder}"
    print_line(console, "; ".join([told, *more]))
    if install:
        print_line(console, f"for {page}, which is interactive: {install}")


def shown(text: object) -> str:
    """A text that can be printed: names of files may hold bytes that are no characters."""
    return str(text).encode(errors="replace").decode()
