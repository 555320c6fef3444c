"""Tables in Markdown: how they are written, and how a document's tables are replaced."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import pandas
from tabulate import tabulate

# In a document the table stands between these two.
MARKED = re.compile(r"(<!-- table: (?P<name>[^>]+?) -->\n).*?(<!-- /table -->)", re.DOTALL)


def pipe(
    heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1, *, last_is_text: bool = False
) -> str:
    """A table in GitHub's Markdown; the first ``texts`` columns are left-aligned, the others right."""
    sides = ["left"] * texts + ["right"] * (len(heads) - texts)
    if last_is_text:
        sides[-1] = "left"
    return tabulate(list(rows), list(heads), tablefmt="pipe", colalign=sides, disable_numparse=True)


def factor(value: float | None) -> str:
    """A speed-up to two digits, "3.6×"; "" for None."""
    return "" if value is None else f"{two_digits(value)}×"


def two_digits(value: float) -> str:
    """0.49, 3.6, 16"""
    return f"{value:#.2g}".removesuffix(".")


def spread(numbers: pandas.Series, scale: float = 1.0, digits: int = 2, sign: str = "") -> str:
    """Mean and one standard deviation, "88.98 ± 0.10"; the mean alone of a single number."""
    deviation = f" ± {scale * numbers.std():.{digits}f}" if len(numbers) > 1 else ""
    return f"{scale * numbers.mean():{sign}.{digits}f}{deviation}"


def fill(text: str, tables: Callable[[str], str | None]) -> str:
    """Replace the tables of a document.

    Args:
        text: Markdown with marked tables.
        tables: returns the table of a name; None: it is left as it is.
    """

    def replaced(found: re.Match[str]) -> str:
        table = tables(found["name"])
        return found[0] if table is None else f"{found[1]}\n{table.strip()}\n\n{found[3]}"

    return MARKED.sub(replaced, text)


def marked(name: str, table: str) -> str:
    """A table between its markers."""
    return f"<!-- table: {name} -->\n\n{table.strip()}\n\n<!-- /table -->"
