"""What the commands `bench.run` and `bench.gpu` have in common: the choice of what runs, and the console."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import typer
from rich.console import Console

from bench.contenders import Contender
from bench.rows import FAILED, WRONG, Row
from bench.workloads import Workload

# Tables in a file need not fit into a window.
FILE_WIDTH = 120


def make_console() -> Console:
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    return console


def choose(
    workloads: Iterable[Workload],
    contenders: Iterable[Contender],
    workload: str,
    contender: str,
    quick: bool,
    id_of: Callable[[Workload], str],
) -> tuple[list[Workload], list[Contender]]:
    """The workloads whose ids and the contenders whose names match these regular expressions."""
    with_id, named = _regex("--filter", workload), _regex("--contender", contender)
    chosen = [w for w in workloads if with_id.search(id_of(w)) and (w.quick or not quick)]
    taking_part = [c for c in contenders if named.search(c.name)]
    if not chosen or not taking_part:
        raise typer.BadParameter("no workload or no contender is left; --list shows what there is")
    return chosen, taking_part


def _regex(option: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise typer.BadParameter(f"{option}: {text!r} is not a regular expression: {error}") from error


def print_list(
    console: Console,
    chosen: Sequence[Workload],
    contenders: Sequence[Contender],
    id_of: Callable[[Workload], str],
) -> None:
    """Each workload and the contenders that compute it."""
    for workload in chosen:
        names = [c.name for c in contenders if c.applies(workload)]
        console.print(f"{id_of(workload)}: {', '.join(names)}", highlight=False)


def is_bad(row: Row) -> bool:
    """Whether the run has to end with an error."""
    return row.status in (WRONG, FAILED)
