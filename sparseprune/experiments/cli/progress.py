"""Progress on standard error, so that standard output keeps the result alone."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from sparseprune.experiments.cli.tables import print_line
from sparseprune.experiments.data import FirstBatches
from sparseprune.experiments.watcher import Watcher


class Bars(Watcher):
    """One bar for the current task and one for all of them; each finished task leaves a line.

    A task that reports no progress has a bar that only moves. The time that is left for all is estimated from
    the mean time of a task. Where standard error is no terminal, there are the lines alone.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            # The bars are drawn by a thread of their own, which should not take time from what is measured.
            refresh_per_second=2,
            # Some tasks take minutes: all of them count in the estimate of the time that is left.
            speed_estimate_period=1e9,
            transient=True,
        )
        self._all = self._progress.add_task("", visible=False)
        self._task: TaskID | None = None

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, task: str, number: int = 1, count: int = 1) -> None:
        """Show the bar of a new task."""
        self._remove()
        self._progress.update(
            self._all,
            description=f"task {number} of {count}",
            completed=number - 1,
            total=count,
            visible=count > 1,
        )
        self._task = self._progress.add_task(task, total=None)

    def advance(self, part: float) -> None:
        """Set the bar of the current task to this part, 0 ... 1."""
        if self._task is not None:
            self._progress.update(self._task, total=1.0, completed=part)

    def end(self, task: str, outcome: str) -> None:
        """Remove the bar and leave a line."""
        self._remove()
        self._progress.advance(self._all)
        self.say(f"{task}: {outcome}")

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        print_line(self._progress.console, line)

    def _remove(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


class Watched:
    """Batches that advance a bar while they are consumed, so many times; it starts again after that."""

    def __init__(self, batches: FirstBatches, bars: Bars, passes: int = 1) -> None:
        self._batches, self._bars, self._passes, self._done = batches, bars, passes, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        done = self._done % self._passes
        for number, batch in enumerate(self._batches):
            self._bars.advance((done + number / len(self._batches)) / self._passes)
            yield batch
        self._done += 1
        self._bars.advance((done + 1) / self._passes)
