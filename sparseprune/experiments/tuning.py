"""A learning rate for each contender: the same number of trials for all, kept in an optuna journal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparseprune.format import files

LOWEST, HIGHEST = 1e-7, 100.0  # rates that a study may hold


@dataclass(frozen=True)
class Tuned:
    """What the trials of one contender found.

    Attributes:
        lr: the rate with the best score; of equal ones the lowest.
        score: its score, higher is better.
        trials: rate -> score of all, rates rising; -inf where training diverged.
    """

    lr: float
    score: float
    trials: dict[float, float]

    @property
    def at_edge(self) -> bool:
        """Whether a rate outside of the grid might be better still."""
        return len(self.trials) > 1 and self.lr in (min(self.trials), max(self.trials))


def grid(centre: float, factor: float = 2.0, trials: int = 5) -> list[float]:
    """Rates around a centre, each `factor` times the one before: of an even number, one more lies below it.

    Args:
        centre: a rate that is known to train, above 0.
        factor: ratio of neighbours, above 1.
        trials: number of rates, 1 at least.
    Returns:
        the rates, rising.
    Raises:
        ValueError: one of the numbers is out of range.
    """
    if not (0 < centre < math.inf and 1 < factor < math.inf and trials >= 1):
        raise ValueError(
            f"grid: expected a centre above 0, a factor above 1 and a trial at least, got {centre}, {factor} "
            f"and {trials}"
        )
    return [centre * factor ** (i - trials // 2) for i in range(trials)]


def tune_rate(
    score: Callable[[float], float],
    *,
    rates: Sequence[float],
    name: str,
    file: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Tuned:
    """Try every rate that the study has no score of yet, and say which is best.

    A score is kept as soon as it is known, so an interrupted study goes on where it was.

    Args:
        score: function of a rate that trains, and returns how good it was on a validation split, higher is
            better; NaN counts as -inf.
        rates: what to try: as many for each contender, or the comparison is not fair.
        name: name of the study, one for each contender and setting.
        file: optuna journal, made if missing, that may hold many studies; nothing is kept when None.
        say: function that is told of each trial.
    Returns:
        the best rate of `rates`, and all their scores.
    Raises:
        ValueError: no rates, or one outside of `LOWEST` ... `HIGHEST`.
        ModuleNotFoundError: optuna is not installed.
        OSError: the file cannot be written.
    """
    if not rates or not all(LOWEST <= rate <= HIGHEST for rate in rates):
        raise ValueError(f"tune_rate: expected rates from {LOWEST:g} to {HIGHEST:g}, got {list(rates)}")
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"tune_rate: module {error.name} is not installed; pip install optuna"
        ) from error
    # What is worth telling is told by `say`.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if file is not None:
        files.check(file)
    study = optuna.create_study(
        storage=None if file is None else optuna.storages.JournalStorage(JournalFileBackend(str(file))),
        study_name=name,
        direction="maximize",
        load_if_exists=True,
    )
    known: dict[float, float] = {trial.params["lr"]: trial.values[0] for trial in study.trials}
    rate_range = optuna.distributions.FloatDistribution(LOWEST, HIGHEST, log=True)
    for rate in sorted(rates):
        if rate in known:
            continue
        value = float(score(rate))
        known[rate] = -math.inf if math.isnan(value) else value
        # Added when it is finished: a process that is killed leaves no half trial.
        study.add_trial(
            optuna.trial.create_trial(
                params={"lr": rate}, distributions={"lr": rate_range}, value=known[rate]
            )
        )
        if say is not None:
            say(f"{name}: lr {rate:.4g} scores {known[rate]:.4f}")
    trials = {rate: known[rate] for rate in sorted(rates)}
    best = max(trials, key=lambda rate: trials[rate])
    return Tuned(best, trials[best], trials)
