"""A file of results that a killed experiment goes on with: a line of JSON for each finished run.

A run is known by its key, a small dictionary of all that decides it (contender, seed, length ...). What has a
line is not run again.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sparseprune.cost import machine
from sparseprune.experiments.frontier.results import alone
from sparseprune.format import files

Row = dict[str, Any]  # {"key": ..., "machine": ..., "result": ...}
FIELDS = ("key", "machine", "result")


class Ledger:
    """The rows of a file, which this process alone adds to while it is open.

    Attributes:
        file: JSON lines; made with the first row.
        rows: the rows of the file, each with "key", "machine" and "result", in its order.

    ::

        with Ledger(file) as ledger:
            if ledger.get(key) is None:
                ledger.add(key, run(key))
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[Row] = []
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Ledger:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._open.enter_context(alone(self.file))
        try:
            self.rows = read(self.file)
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def get(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result of the run with exactly this key; None where there is none."""
        wanted = _normal(key)
        return next((row["result"] for row in self.rows if row["key"] == wanted), None)

    def add(self, key: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
        """Write a row, and hand its result on as a reader of the file will see it.

        Raises:
            ValueError: there is a row with this key.
            OSError: it cannot be written.
        """
        if self.get(key) is not None:
            raise ValueError(f"Ledger: expected a new key, got {dict(key)}, which is in {self.file} already")
        row: Row = _normal({"key": key, "machine": machine.facts(), "result": result})
        files.add_line(self.file, json.dumps(row))
        self.rows.append(row)
        return row["result"]


def read(file: Path) -> list[Row]:
    """The rows of a file, in its order; none if there is no file.

    A last line without its end was being written when its process was killed: it is left out, with a warning.

    Raises:
        ValueError: a line is not a row, or two rows have one key.
    """
    if not file.exists():
        return []
    *lines, rest = file.read_bytes().split(b"\n")
    if rest:
        warnings.warn(f"{file}: the last line was cut off, and is left out", stacklevel=2)
    rows: list[Row] = []
    keys: set[str] = set()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            key = json.dumps({name: row[name] for name in FIELDS}["key"], sort_keys=True)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}, line {number}: expected a row of {', '.join(FIELDS)}") from error
        if key in keys:
            raise ValueError(f"{file}, line {number}: expected one row of each key, got {key} again")
        keys.add(key)
        rows.append(row)
    return rows


def _normal(value: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it: tuples are lists."""
    return json.loads(json.dumps(value))
