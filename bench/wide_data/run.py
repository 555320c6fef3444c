"""The experiment: tune each contender on the validation samples, train it with every seed, test it once."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.ledger import Ledger
from bench.wide_data.attempt import Attempt, Settings
from bench.wide_data.contenders import Contender, contenders
from bench.wide_data.prepared import Prepared
from sparseprune.experiments.tuning import tune_rate
from sparseprune.format import files

SETTINGS = {
    "debian-text": Settings(epochs=6, batch_size=256),
    "muscle-cells": Settings(epochs=15, batch_size=32),
    "genotypes": Settings(epochs=20, batch_size=64),
}
TUNING_SEED = 0


class OutOfTimeError(Exception):
    """The time is over; what is done is in the files."""


@dataclass(frozen=True)
class Experiment:
    """What all runs on a data set have in common; `seconds` of the clock after which nothing is begun."""

    name: str
    data: Prepared
    settings: Settings
    out: Path
    end: float | None
    clock: Callable[[], float]
    say: Callable[[str], None]

    @property
    def common(self) -> dict[str, Any]:
        """Of every key: what the runs of a file share."""
        return {"data": self.name, "sha256": self.data.sha256, **vars(self.settings)}

    def check_time(self, task: str) -> None:
        """Raise OutOfTimeError when the time is over."""
        if self.end is not None and self.clock() > self.end:
            raise OutOfTimeError(f"stopped before {self.name}, {task}")


def perform(
    data: Mapping[str, Prepared],
    seeds: Sequence[int],
    out: Path,
    *,
    seconds: float | None = None,
    epochs: int | None = None,
    samples: int | None = None,
    only: str = "",
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = print,
) -> None:
    """Do all that has no line in the files yet.

    Args:
        data: prepared data by name.
        seeds: seeds of initial weights, random masks and order of samples.
        out: folder of the results: NAME.jsonl (see ledger.py) and NAME.tuning.jsonl, the trials.
        seconds: time after which nothing is begun.
        epochs, samples: other passes over the data, fewer training samples.
        only: regular expression of the labels of contenders.
        clock: function that returns seconds; replaced in tests.
        say: function that is told of the progress.
    Raises:
        OutOfTimeError: the time is over before all is done.
        ValueError: a file has runs of other data or settings.
        BlockingIOError: another process works on a file.
    """
    end = None if seconds is None else clock() + seconds
    for name, whole in data.items():
        settings = SETTINGS[name]
        if epochs is not None:
            settings = dataclasses.replace(settings, epochs=epochs)
        chosen = whole if samples is None else whole.fewer(samples)
        experiment = Experiment(name, chosen, settings, out, end, clock, say)
        files.check(out / f"{name}.jsonl")
        with Ledger(out / f"{name}.jsonl") as ledger:
            check_alike(ledger, experiment)
            if ledger.get(experiment.common) is None:
                ledger.add(experiment.common, chosen.figures())
            for contender in contenders():
                if re.search(only, contender.label):
                    _do(contender, seeds, experiment, ledger)


def check_alike(ledger: Ledger, experiment: Experiment) -> None:
    """Raise ValueError where the file has runs of other data or settings."""
    for row in ledger.rows:
        there = {name: row["key"].get(name) for name in experiment.common}
        now = experiment.common
        different = [
            f"{name} {there[name]!r} there, {now[name]!r} now" for name in now if there[name] != now[name]
        ]
        if different:
            raise ValueError(
                f"wide_data: expected the data and settings of {ledger.file}, got others: "
                f"{'; '.join(different)}; give another --out, or the same settings"
            )


def _do(contender: Contender, seeds: Sequence[int], experiment: Experiment, ledger: Ledger) -> None:
    def key(seed: int) -> dict[str, Any]:
        return {**experiment.common, "contender": contender.label, "seed": seed}

    missing = [seed for seed in seeds if ledger.get(key(seed)) is None]
    if not missing:
        return
    tuned = tune(contender, experiment)
    for seed in missing:
        experiment.check_time(f"{contender.label}, seed {seed}")
        attempt = Attempt(
            contender, tuned["variant"], experiment.data, experiment.settings, seed, experiment.clock
        )
        result = attempt.run(tuned["rate"], warm=True)
        ledger.add(key(seed), {"kind": contender.kind, **tuned, **result})
        experiment.say(
            f"{experiment.name}, {contender.label}, seed {seed}: {100 * result['accuracy']:.2f} % after "
            f"{result['total_seconds']:.1f} s, {result['weights']:,} weights"
        )


def tune(contender: Contender, experiment: Experiment) -> dict[str, Any]:
    """Try all rates with all variants on the validation samples; trials that a file has are not done again.

    Returns:
        "rate" and "variant" with the best accuracy; "validation", that accuracy; "trials", how many there
        were; "at_edge", whether no rate on one side of the best was tried.
    """
    found = []
    data = experiment.data.tuning()
    settings = experiment.settings
    file = experiment.out / f"{experiment.name}.tuning.jsonl"
    for variant in contender.variants:
        attempt = Attempt(contender, variant, data, settings, TUNING_SEED, experiment.clock)
        words = [contender.label, *(f"{name} {value}" for name, value in variant.items())]
        study = f"{', '.join(words)} ({settings.epochs} epochs, data {data.sha256[:12]})"
        tuned = tune_rate(
            functools.partial(_score, attempt, experiment, ", ".join(words)),
            rates=contender.rates,
            name=study,
            file=file,
            say=experiment.say,
        )
        found.append((variant, tuned))
    variant, best = max(found, key=lambda pair: pair[1].score)
    return {
        "rate": best.lr,
        "variant": dict(variant),
        "validation": best.score,
        "trials": sum(len(tuned.trials) for _, tuned in found),
        "at_edge": best.at_edge,
    }


def _score(attempt: Attempt, experiment: Experiment, label: str, rate: float) -> float:
    experiment.check_time(f"tuning {label} at {rate:.3g}")
    accuracy: float = attempt.run(rate)["accuracy"]
    return accuracy
