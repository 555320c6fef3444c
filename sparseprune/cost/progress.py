"""What is being timed, told on a terminal once that has taken a second."""

import contextlib
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

PATIENCE = 1.0  # seconds without a line

Item = TypeVar("Item")


def progress(
    task: str,
    items: Collection[Item],
    patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Item]:
    """The items, one after the other, which a line on standard error counts.

    There is none before ``patience`` is over, none after the last item, and none at all where standard error
    is no terminal, or where something else stands in its place, such as a bar.
    """
    begin, width = clock(), 0
    try:
        for i, item in enumerate(items, 1):
            if clock() - begin >= patience and _is_terminal():
                line = f"sparseprune: {task}, {i} of {len(items)}"
                _write("\r" + line.ljust(width))
                width = len(line)
            yield item
    finally:
        if width:
            _write("\r" + " " * width + "\r")


def _is_terminal() -> bool:
    stream = sys.__stderr__
    try:
        return stream is not None and stream is sys.stderr and stream.isatty()
    except ValueError:
        # It is closed.
        return False


def _write(text: str) -> None:
    # To tell is not worth an error.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()
