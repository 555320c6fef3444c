"""The file of a run, JSONL: a header (what all figures depend on), rows, and on the processor targets."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.rows import Row
from sparseprune.format import files


class Results(NamedTuple):
    """What a file holds.

    Attributes:
        header: machine, versions, settings; {} where the file has none.
        rows: the rows of all cases.
        targets: `bench.targets.Outcome.to_dict` of each.
    """

    header: dict[str, Any]
    rows: list[Row]
    targets: list[dict[str, Any]]


def read(file: Path) -> Results:
    """Read what `writer` wrote."""
    with file.open(encoding="utf-8") as lines:
        return parse(json.loads(line) for line in lines)


def parse(lines: Iterable[dict[str, Any]]) -> Results:
    """The objects of a file, one a line, by what they are."""
    found = Results({}, [], [])
    for line in lines:
        content = {name: value for name, value in line.items() if name != "type"}
        if line["type"] == "header":
            found.header.update(content)
        elif line["type"] == "row":
            found.rows.append(Row.from_dict(content))
        elif line["type"] == "target":
            found.targets.append(content)
    return found


def json_line(type: str, content: dict[str, Any]) -> str:
    """One line, which says what it is in "type"."""
    return json.dumps({"type": type, **content})


@contextlib.contextmanager
def writer(out: Path | None) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """A function ``(type, content)`` that writes a line at once; None: it writes nothing.

    The lines go to OUT.part, which becomes OUT at the end: what ends a run early leaves an older OUT whole,
    and the rows that there are in OUT.part.

    Raises:
        OSError: it cannot be written.
    """
    if out is None:
        yield lambda type, content: None
        return
    files.check(out)
    part = out.with_name(f"{out.name}.part")
    with part.open("w", encoding="utf-8") as file:
        yield lambda type, content: print(json_line(type, content), file=file, flush=True)
        os.fsync(file.fileno())
    part.replace(out)
