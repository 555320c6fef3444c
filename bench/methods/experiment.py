"""A whole experiment: the runs that have no line in the file yet, one after the other, within a time."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.methods import results
from bench.methods.points import TICKET, Experiment, Run, Training, runs
from bench.methods.results import Key, Measured, Record, key_of
from bench.methods.run import PruningError, Work
from sparseprune.cost import machine
from sparseprune.experiments.data import load
from sparseprune.experiments.frontier.results import alone
from sparseprune.experiments.train import TrainResult, train
from sparseprune.format import files


def perform(
    experiment: Experiment,
    seeds: Sequence[int],
    file: Path,
    *,
    seconds: float | None = None,
    trainer: Callable[..., TrainResult] = train,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> bool:
    """Do every run that has no line in the file yet, and add its line.

    A method that cannot prune a network has a line, too, with the reason.

    Args:
        experiment: what to train.
        seeds: seeds, with one run of everything for each, in this order.
        file: JSON lines, a `Record` each; made if missing. Its folder must exist.
        seconds: time that all may take. What would exceed it, as far as earlier runs tell, is not begun.
        trainer: function that trains as `train` does; replaced in tests.
        clock: function that returns seconds; replaced in tests.
        say: function that is told of the progress.
    Returns:
        whether all is done.
    Raises:
        ValueError: the file has runs of other settings or of another machine.
        BlockingIOError: another process works on this file.
    """
    begin = clock()
    asked = runs(experiment, seeds)
    with alone(file):
        book = _Book(file, {record.key: record for record in results.read(file)}, machine.facts(), asked, say)
        works = {
            training: Work(training, load(training.data, samples=training.samples), trainer, clock)
            for training in experiment
        }
        book.check({training: work.settings() for training, work in works.items()})
        for together in _units(book.missing()):
            needed = sum(map(book.expected_seconds, together))
            if seconds is not None and clock() - begin + needed > seconds:
                say(f"stopped before {together[0].label} (about {needed:.0f} s); the same command goes on")
                return False
            _do(works[together[0].training], together, book)
    return True


def _units(todo: Sequence[Run]) -> Iterator[list[Run]]:
    """The runs one by one; the rounds of a lottery ticket, which follow from each other, together."""
    for _, found in itertools.groupby(
        todo, lambda run: (run.training, run.seed, run.point.kind == TICKET or run.point)
    ):
        yield list(found)


def _do(work: Work, together: Sequence[Run], book: _Book) -> None:
    first = together[0]
    if first.point.kind == TICKET:
        of_round = {run.point.round: run for run in together}
        # Rounds that have a line are done again, where one after them has none.
        work.ticket(
            first.seed,
            max(run.point.round or 0 for run in together),
            lambda number, measured: book.add(of_round.get(number), work.settings(), measured),
        )
        return
    try:
        book.add(first, work.settings(), work.measure(first.point, first.seed))
    except PruningError as error:
        book.add(first, work.settings(), None, str(error))


@dataclass
class _Book:
    """The file and what is in it."""

    file: Path
    records: dict[Key, Record]
    machine: dict[str, Any]
    asked: Sequence[Run]
    say: Callable[[str], None]

    def missing(self) -> list[Run]:
        return [run for run in self.asked if key_of(run) not in self.records]

    def check(self, settings: dict[Training, dict[str, Any]]) -> None:
        """Raise ValueError where runs of the file were made with other settings, or on another machine."""
        of_training = {(training.model, training.data): found for training, found in settings.items()}
        for record in self.records.values():
            if (found := of_training.get((record.model, record.data))) is not None:
                results.check_alike(record, found, self.machine, self.file)

    def add(
        self, run: Run | None, settings: dict[str, Any], measured: Measured | None, failed: str | None = None
    ) -> None:
        """Add a line, unless nobody asked for the run."""
        if run is None:
            return
        record = Record(*key_of(run), settings, self.machine, measured, failed)
        files.add_line(self.file, record.to_line())
        self.records[record.key] = record
        outcome = (
            failed
            if measured is None
            else f"{100 * measured.accuracy:.2f} % after {measured.total_seconds:.1f} s, "
            f"{measured.weights:,} weights, {measured.wall_seconds:.1f} s here"
        )
        self.say(f"{len(self.asked) - len(self.missing())}/{len(self.asked)} {run.label}: {outcome}")

    def expected_seconds(self, run: Run) -> float:
        """The longest that this run took with another seed, or else its kind, or any on this data."""
        same_training = [
            record
            for record in self.records.values()
            if (record.model, record.data) == (run.training.model, run.training.data)
        ]
        same_kind = [record for record in same_training if record.point.kind == run.point.kind]
        same_point = [record for record in same_kind if record.point == run.point]
        found = same_point or same_kind or same_training
        return max((one.measured.wall_seconds for one in found if one.measured is not None), default=0.0)
