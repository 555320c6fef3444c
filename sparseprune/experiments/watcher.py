"""What a long piece of work tells of its progress."""

from __future__ import annotations


class Watcher:
    """Is told how the work proceeds; this one keeps silent."""

    def begin(self, task: str, number: int, count: int) -> None:
        """A task begins, the number-th (from 1) of so many."""

    def advance(self, part: float) -> None:
        """So much (0 ... 1) of the current task is done."""

    def end(self, task: str, outcome: str) -> None:
        """The current task is done."""

    def say(self, line: str) -> None:
        """Something else that the user should know."""
