"""The experiment: steps are timed on a quiet machine, rates tuned, and models trained for an equal time.

A model is trained for as many steps as fit into the time: (seconds - seconds of pruning) / seconds of a step,
both measured before, with the steps of all models taking turns. So results do not depend on what else the
machine does while it trains, and anyone gets the same again.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.language.contenders import PRECISIONS, Batches, Contender
from bench.language.text import Text, sample
from bench.language.training import BATCH, LENGTH, Learned, Trainer, train
from bench.ledger import Ledger, read
from sparseprune.experiments.tuning import Tuned, tune_rate

LAYERS = 6
SCORED = 8  # batches that methods look at
ROUNDS = 15  # timed steps of each model
TIMES, RUNS, RATES = "times.jsonl", "runs.jsonl", "rates.log"  # files of a folder of results
TUNING_SECONDS = 60.0  # length of a trial
POINTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
Say = Callable[[str], None]


def time_steps(
    contenders: Sequence[Contender],
    text: Text,
    folder: Path,
    say: Say,
    precisions: Sequence[str] = PRECISIONS,
) -> None:
    """Time steps of all models in these precisions, taking turns, and pruning; add what has no row yet."""
    with Ledger(folder / TIMES) as ledger:
        if all(ledger.get(_time_key(c, p)) is not None for c in contenders for p in precisions):
            return
        trainers: dict[tuple[str, str], Trainer] = {}
        prune_seconds: dict[str, float] = {}
        for contender in contenders:
            start = time.perf_counter()
            model = make(contender, text, 0)
            prune_seconds[contender.name] = time.perf_counter() - start
            for precision in precisions:
                trainers[contender.name, precision] = Trainer(
                    model, text.train, lr=1e-4, precision=precision, seed=0
                )
        seconds: dict[tuple[str, str], list[float]] = {name: [] for name in trainers}
        for number in range(-2, ROUNDS):
            for name, trainer in trainers.items():
                start = time.perf_counter()
                trainer.step(0.5)
                if number >= 0:
                    seconds[name].append(time.perf_counter() - start)
        for contender in contenders:
            for precision in precisions:
                found = sorted(seconds[contender.name, precision])
                result: dict[str, Any] = {
                    "step_seconds": statistics.median(found),
                    "lowest": found[0],
                    "quartiles": [found[len(found) // 4], found[(3 * len(found)) // 4]],
                    "prune_seconds": prune_seconds[contender.name] if contender.method else 0.0,
                    "weights": kept_weights(trainers[contender.name, precision].model),
                }
                if ledger.get(_time_key(contender, precision)) is None:
                    ledger.add(_time_key(contender, precision), result)
                say(f"{contender.name}, {precision}: {1000 * result['step_seconds']:.0f} ms a step")


def perform(
    contenders: Sequence[Contender],
    text: Text,
    folder: Path,
    *,
    budgets: Sequence[float],
    seeds: Sequence[int],
    rates: Sequence[float],
    say: Say,
    deadline: float | None = None,
) -> bool:
    """Tune the rate of every model, and train it for each of the times with each of the seeds.

    Args:
        contenders: models with a row in the file of times.
        text: what to train on.
        folder: where the files are; what is in them is not done again.
        budgets: seconds of pruning and training, shortest first.
        seeds: seeds of initial weights, masks and order.
        rates: what is tried for each model, see `tune_rate`.
        say: function that is told of the progress.
        deadline: time of `time.monotonic`; no run is begun that would end later. None for no limit.
    Returns:
        whether all is done.
    """
    times = {_name_of(row["key"]): row["result"] for row in read(folder / TIMES)}
    with Ledger(folder / RUNS) as ledger:

        def in_time(seconds: float) -> bool:
            return deadline is None or time.monotonic() + 1.15 * seconds < deadline

        tuned: dict[str, Tuned] = {}
        for contender in contenders:
            if not in_time(TUNING_SECONDS):
                return False
            tuned[contender.name] = tune(contender, text, times, folder, rates, say)
        for budget, seed, contender in _order(contenders, budgets, seeds):
            key = {"contender": contender.name, "budget": budget, "seed": seed}
            if ledger.get(key) is not None:
                continue
            if not in_time(budget):
                return False
            precision = precision_of(contender, times)
            lr = tuned[contender.name].lr
            learned = _train(contender, text, times, budget, lr, seed, points=POINTS, test=True)
            timed = times[contender.name, precision]
            ledger.add(
                key,
                {
                    **dataclasses.asdict(learned),
                    **{name: timed[name] for name in ("step_seconds", "prune_seconds", "weights")},
                    "precision": precision,
                    "lr": lr,
                    "rates": {f"{rate:g}": score for rate, score in tuned[contender.name].trials.items()},
                    "tuning_seconds": TUNING_SECONDS,
                    "settings": {
                        "layers": LAYERS,
                        "batch": BATCH,
                        "length": LENGTH,
                        "width": contender.width,
                    },
                },
            )
            say(
                f"{budget:g} s, seed {seed}, {contender.name}: {learned.bits:.3f} bits, {learned.steps} steps"
            )
    return True


def tune(
    contender: Contender,
    text: Text,
    times: dict[tuple[str, str], dict[str, Any]],
    folder: Path,
    rates: Sequence[float],
    say: Say,
) -> Tuned:
    """The best of the rates for short trainings, on the validation text."""

    def score(lr: float) -> float:
        return -_train(contender, text, times, TUNING_SECONDS, lr, 0).bits

    return tune_rate(score, rates=rates, name=contender.name, file=folder / RATES, say=say)


def precision_of(contender: Contender, times: dict[tuple[str, str], dict[str, Any]]) -> str:
    """The contender's precision, or of those that were timed the one in which its step is faster."""
    if contender.precision is not None:
        return contender.precision
    timed = [precision for precision in PRECISIONS if (contender.name, precision) in times]
    return min(timed, key=lambda precision: times[contender.name, precision]["step_seconds"])


def make(contender: Contender, text: Text, seed: int) -> nn.Module:
    """The untrained model."""
    return contender.make(len(text.characters), LAYERS, scored(text, seed), seed)


def scored(text: Text, seed: int) -> Batches:
    """Batches that weights are scored on."""
    order = torch.Generator().manual_seed(seed)
    return [sample(text.train, BATCH, LENGTH, order) for _ in range(SCORED)]


def kept_weights(model: nn.Module) -> int:
    """Number of trained numbers."""
    return sum(p.numel() for p in model.parameters())


def _train(
    contender: Contender,
    text: Text,
    times: dict[tuple[str, str], dict[str, Any]],
    budget: float,
    lr: float,
    seed: int,
    **more: Any,
) -> Learned:
    precision = precision_of(contender, times)
    timed = times[contender.name, precision]
    steps = max(1, int((budget - timed["prune_seconds"]) / timed["step_seconds"]))
    return train(
        make(contender, text, seed), text, steps=steps, lr=lr, precision=precision, seed=seed, **more
    )


def _order(
    contenders: Sequence[Contender], budgets: Sequence[float], seeds: Sequence[int]
) -> Iterator[tuple[float, int, Contender]]:
    """Seed by seed, so that an interrupted experiment is a complete one of fewer seeds."""
    for budget in budgets:
        for seed in seeds:
            for contender in contenders:
                yield budget, seed, contender


def _time_key(contender: Contender, precision: str) -> dict[str, str]:
    return {"contender": contender.name, "precision": precision}


def _name_of(key: dict[str, str]) -> tuple[str, str]:
    return key["contender"], key["precision"]
