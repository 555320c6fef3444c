"""The experiment: steps are timed on a quiet machine, rates tuned, and networks trained.

"At equal time" each network trains for as many steps as fit into the seconds that RigL takes for its epochs,
by the measured seconds of pruning, steps and rewirings. So accuracy does not depend on what else the machine
does, and anyone gets the same again.
"""

from __future__ import annotations

import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import ledger
from bench.ledger import Ledger
from bench.mosaic.networks import informative_pixels, on_tiles
from bench.mosaic.points import BASE
from bench.rewire import timing
from bench.rewire.networks import TUNING_SEED, Data, Made, kept_by_input, kept_weights, make
from bench.rewire.points import EPOCHS, FULL, MOSAIC, Point, Run, Size, Study
from bench.rewire.training import passes, train
from sparseprune.experiments.data import Dataset
from sparseprune.experiments.rewiring import PART
from sparseprune.experiments.tuning import Tuned, tune_rate

TIMES, RUNS, RATES = "times.jsonl", "runs.jsonl", "rates.log"  # files of a folder of results
ROUNDS = 9  # of timed blocks
PRUNINGS = 3  # of each sparse network; the first one times layers, which later ones need not
Say = Callable[[str], None]
Times = Mapping[str, Mapping[str, Any]]  # by the network's label


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class OutOfTimeError(Exception):
    """There is not the time for the next training."""


# ---- seconds -----------------------------------------------------------------------------------------------


def time_steps(
    study: Study,
    folder: Path,
    *,
    size: Size = FULL,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
    tell: Say = say,
) -> None:
    """Time all contenders of a study, taking turns, and add the line that holds them, unless it is there."""
    key = {"study": study.name, "networks": [point.label for point in study.points], "samples": size.samples}
    with Ledger(folder / TIMES) as book:
        if book.get(key) is not None:
            tell(f"{folder / TIMES} has the times of {study.name}; delete their line to measure them again")
            return
        data = Data(study, size).of(0)
        made: dict[Point, Made] = {}
        for point in study.points:
            found = [make(point, study, data, 0, clock) for _ in range(PRUNINGS if point.method else 1)]
            seconds = statistics.median(it.prune_seconds for it in found)
            made[point] = found[-1]._replace(prune_seconds=seconds)
        trainers = {
            point.label: timing.trainer(
                it.model, passes(data, study.batch_size, 0), study.optimizer, point.rewire
            )
            for point, it in made.items()
        }
        timed, others = timing.take_turns(trainers, rounds, clock=clock, say=tell)
        networks = {
            point.label: {
                **timed[point.label].to_dict(),
                "prune_seconds": it.prune_seconds,
                "weights": kept_weights(it.model),
            }
            for point, it in made.items()
        }
        book.add(key, {"networks": networks, "disturbed": timing.disturbed(others, tell)})


def read_times(folder: Path, study: str) -> dict[str, Any] | None:
    """What "time" measured last: "networks" by label, "disturbed", and the "machine"; None without a line."""
    rows = [row for row in ledger.read(folder / TIMES) if row["key"]["study"] == study]
    return {**rows[-1]["result"], "machine": rows[-1]["machine"]} if rows else None


def seconds_a_step(timed: Mapping[str, Any], every: int) -> float:
    """Seconds of a step and of its share of the rewirings."""
    rewiring = timed["rewiring"]
    share = 0.0 if rewiring is None else PART * rewiring["median"] / every
    return timed["step"]["median"] + share


def seconds_of(timed: Mapping[str, Any], steps: float, every: int) -> float:
    """Seconds of pruning and of so many steps."""
    return timed["prune_seconds"] + steps * seconds_a_step(timed, every)


def steps_within(timed: Mapping[str, Any], seconds: float, every: int) -> int:
    """How many steps these seconds have room for, pruning included."""
    return max(1, int((seconds - timed["prune_seconds"]) / seconds_a_step(timed, every)))


# ---- accuracy ----------------------------------------------------------------------------------------------


@dataclass
class Work:
    """What all runs of a study share.

    Attributes:
        study, size: what is trained, and how much of it.
        folder: where times and trials are.
        left: function that returns the seconds that trainings may still take.
        clock: function that returns seconds; replaced in tests.
        tell: function that is told of the trials.
    """

    study: Study
    size: Size
    folder: Path
    left: Callable[[], float] = lambda: math.inf
    clock: Callable[[], float] = time.perf_counter
    tell: Say = say
    data: Data = field(init=False)

    def __post_init__(self) -> None:
        self.data = Data(self.study, self.size)

    @property
    def every(self) -> int:
        return self.size.every or self.study.every

    def rate(self, point: Point, epochs: int) -> Tuned:
        """The best of as many rates as each contender has, tried for these epochs, but no more than a few."""
        study, epochs = self.study, min(epochs, self.size.tune_epochs or self.study.tune_epochs)
        made: list[Made] = []
        longest = 0.0

        def score(lr: float) -> float:
            nonlocal longest
            if self.left() < longest:
                raise OutOfTimeError
            begin = self.clock()
            data = self.data.of(TUNING_SEED)
            if not made:
                made.append(make(point, study, data, TUNING_SEED, self.clock))
            steps = epochs * self.steps_of_pass(data)
            accuracy = self._train(copy.deepcopy(made[0]), point, data, steps, lr, TUNING_SEED)
            longest = max(longest, self.clock() - begin)
            return accuracy

        return tune_rate(
            score,
            rates=study.rates(point, self.size.trials),
            name=f"{study.name}: {point.label}, {epochs} passes",
            file=self.folder / RATES,
            say=self.tell,
        )

    def steps_of_pass(self, data: Dataset) -> int:
        return math.ceil(len(data.train_y) / self.study.batch_size)

    def measure(self, run: Run, times: Times | None) -> dict[str, Any]:
        """Tune, prune and train one network.

        Returns:
            "accuracy" 0 ... 1; "lr", its "trials" and whether it is "at_edge"; "steps" and "passes"; at equal
            time the "budget" in seconds; "weights"; "wall_seconds" of this run without tuning; of a mosaic
            the share of the first layer's weights "on_tile" before and after training; the data's "source".
        """
        study, point = self.study, run.point
        tuned = self.rate(point, run.epochs)
        data = self.data.of(run.seed)
        begin = self.clock()
        steps, budget = run.epochs * self.steps_of_pass(data), None
        if run.view != EPOCHS:
            assert times is not None
            budget = seconds_of(times[study.rigl.label], steps, self.every)
            steps = steps_within(times[point.label], budget, self.every)
        made = make(point, study, data, run.seed, self.clock)
        weights, before = kept_weights(made.model), self._on_tile(made, point)
        accuracy = self._train(made, point, data, steps, tuned.lr, run.seed)
        return {
            "accuracy": accuracy,
            "lr": tuned.lr,
            "trials": {f"{lr:.4g}": value for lr, value in tuned.trials.items()},
            "at_edge": tuned.at_edge,
            "steps": steps,
            "passes": steps / self.steps_of_pass(data),
            "budget": budget,
            "weights": weights,
            "wall_seconds": self.clock() - begin,
            "on_tile": None if before is None else [before, self._on_tile(made, point)],
            "source": data.source,
        }

    def _on_tile(self, made: Made, point: Point) -> float | None:
        if self.study.data != MOSAIC or point.method is None:
            return None
        return on_tiles(kept_by_input(made.model), informative_pixels(BASE)).share

    def _train(self, made: Made, point: Point, data: Dataset, steps: int, lr: float, seed: int) -> float:
        study = self.study
        return train(
            made.model,
            data,
            steps=steps,
            batch_size=study.batch_size,
            optimizer=study.optimizer,
            lr=lr,
            seed=seed,
            method=point.rewire,
            every=self.every,
        )


def key_of(study: Study, run: Run, size: Size = FULL) -> dict[str, Any]:
    """What a line of the file is known by."""
    return {
        "study": study.name,
        "network": run.point.label,
        "view": run.view,
        "epochs": run.epochs,
        "seed": run.seed,
        "samples": size.samples,
    }


def perform(
    study: Study,
    runs: Sequence[Run],
    folder: Path,
    *,
    size: Size = FULL,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
    tell: Say = say,
) -> bool:
    """Do every run that has no line in the file yet, and add its line.

    Args:
        study: what they are of.
        runs: what to do, in this order.
        folder: where the files are; made if missing.
        size: how much of it.
        seconds: time that all may take. What would exceed it, as far as earlier runs tell, is not begun.
        clock: function that returns seconds; replaced in tests.
        tell: function that is told of the progress.
    Returns:
        whether all is done.
    Raises:
        ValueError: networks are to train in equal time, and were not timed.
        BlockingIOError: another process works on this file.
    """
    end = clock() + seconds
    times = read_times(folder, study.name)
    if times is None and any(run.view != EPOCHS for run in runs):
        raise ValueError(
            f"bench.rewire: there are no times of {study.name} in {folder / TIMES}; measure them on a quiet "
            f"machine with python -m bench.rewire time --model {study.name}, or leave --views at epochs"
        )
    folder.mkdir(parents=True, exist_ok=True)
    work = Work(study, size, folder, lambda: end - clock(), clock, tell)
    with Ledger(folder / RUNS) as book:
        for number, run in enumerate(runs, 1):
            if book.get(key := key_of(study, run, size)) is not None:
                continue
            try:
                if work.left() < _expected_seconds(book, key):
                    raise OutOfTimeError
                result = work.measure(run, None if times is None else times["networks"])
            except OutOfTimeError:
                tell(f"stopped before {run.label}; the same command goes on")
                return False
            book.add(key, result)
            tell(
                f"{number}/{len(runs)} {run.label}: {100 * result['accuracy']:.2f} % with lr "
                f"{result['lr']:.2g}, {result['steps']:,} steps, {result['wall_seconds']:.0f} s here"
            )
    return True


def _expected_seconds(book: Ledger, key: Mapping[str, Any]) -> float:
    """The longest that this network took for so many epochs; 0 where it has no line."""
    same = ("study", "network", "view", "epochs")
    found = (row for row in book.rows if all(row["key"][name] == key[name] for name in same))
    return max((row["result"]["wall_seconds"] for row in found), default=0.0)
