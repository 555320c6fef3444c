"""What is being timed: a bar in a terminal or a notebook, lines where logging asks for them."""

import contextlib
import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

PATIENCE = 1.0  # seconds without a bar
UNWRITABLE = (OSError, ValueError)  # to tell is not worth an error

log = logging.getLogger(__name__)

Item = TypeVar("Item")


def progress(
    task: str,
    items: Collection[Item],
    patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Item]:
    """The items, one after the other, which a bar on standard error counts.

    There is none before ``patience`` is over, none after the last item, and none at all where standard error
    is no terminal and no notebook, where something else stands in its place, such as another bar, or without
    rich. Where the logger's level is INFO or lower, it gets a line for each item, and there is no bar.
    """
    begin, bar = clock(), None
    try:
        for i, item in enumerate(items, 1):
            if log.isEnabledFor(logging.INFO):
                log.info("%s, %d of %d", task, i, len(items))
            elif bar is None and clock() - begin >= patience:
                bar = _started_bar(task, len(items))
            if bar is not None:
                with contextlib.suppress(*UNWRITABLE):
                    bar.update(bar.task_ids[0], completed=i - 1, refresh=True)
            yield item
    finally:
        if bar is not None:
            with contextlib.suppress(*UNWRITABLE):
                bar.stop()


def _started_bar(task: str, count: int) -> Any:
    """A bar that is drawn when it is told to: a thread would take time from what is measured."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        return None
    console = Console(stderr=True)
    # In a notebook rich needs widgets.
    if not (importlib.util.find_spec("ipywidgets") if console.is_jupyter else _is_terminal()):
        return None
    bar = Progress(
        TextColumn("sparseprune: {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
    )
    bar.add_task(task, total=count)
    with contextlib.suppress(*UNWRITABLE):
        bar.start()
    return bar


def _is_terminal() -> bool:
    stream = sys.__stderr__
    try:
        return stream is not None and stream is sys.stderr and stream.isatty()
    except ValueError:
        # It is closed.
        return False
