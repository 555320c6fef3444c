"""Tables of networks that rewire themselves, from committed results of ``python -m bench.rewire``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pandas

from bench import ledger
from bench.report.machine import machine_text
from bench.report.markdown import pipe, spread, two_digits
from bench.report.tables.registry import RESULTS, table
from bench.rewire.cost import CASES, EVERY, FILE, METHODS, part
from bench.rewire.points import EPOCHS, SMALL_DENSE, STUDIES, TIME, Point, Study
from bench.rewire.run import RUNS, read_times, seconds_of
from sparseprune.experiments.frontier.statistics import interval

FOLDER = RESULTS / "rewire"
AIM_RANDOM, AIM_SMALL, AIM_EPOCHS = 1.0, 0.8, 10  # points of RigL above others
AIM_PART, AIM_STEPS, AIM_BYTES = 4.0, 2.0, 200e6  # %, dense steps and bytes of a rewiring


def frame(folder: Path, study: str) -> pandas.DataFrame:
    """A line for each run of a study: network, view, epochs, seed, and what was found; accuracy in %."""
    rows = [row for row in ledger.read(folder / RUNS) if row["key"]["study"] == study]
    found = pandas.DataFrame([{**row["machine"], **row["key"], **row["result"]} for row in rows])
    if len(found):
        found["accuracy"] *= 100
    return found


def of_runs(runs: pandas.DataFrame, network: str, view: str, epochs: int) -> pandas.Series:
    """Test accuracy in % of a network, by seed."""
    same = (runs["network"] == network) & (runs["view"] == view) & (runs["epochs"] == epochs)
    return runs[same].set_index("seed")["accuracy"].sort_index()


def above(
    runs: pandas.DataFrame, study: Study, other: str, view: str, epochs: int
) -> tuple[float, float, float] | None:
    """Points of RigL above another network in the same time or epochs, of pairs of one seed.

    Returns:
        mean and the interval of `sparseprune.experiments.frontier.statistics.interval`; None without a pair.
    """
    # RigL's own time is that of its epochs.
    ours = of_runs(runs, study.rigl.label, EPOCHS, epochs)
    apart = (ours - of_runs(runs, other, view, epochs)).dropna()
    if not len(apart):
        return None
    return apart.mean(), *interval(tuple(apart))


def study_table(study: Study, folder: Path) -> str:
    """All contenders of a study, in equal epochs and in RigL's time, then the aims."""
    runs = frame(folder, study.name)
    if not len(runs):
        return f"Not run yet: `python -m bench.rewire run --model {study.name}`."
    timed = read_times(folder, study.name)
    lengths = sorted(runs["epochs"].unique())
    parts = []
    for view in (EPOCHS, TIME):
        shown = [length for length in lengths if (runs[runs["epochs"] == length]["view"] == view).any()]
        if shown:
            parts.append(_view(runs, study, view, shown, timed))
    return "\n\n".join([*parts, "\n".join(_aims(runs, study, lengths)), _facts(runs, timed)])


def _view(
    runs: pandas.DataFrame, study: Study, view: str, lengths: list[int], timed: dict[str, Any] | None
) -> str:
    heads = ["the same epochs" if view == EPOCHS else "the same seconds", "weights", "rate", "ms/step"]
    for length in lengths:
        of = f"{length} epochs" if view == EPOCHS else f"RigL's {length} epochs"
        heads += [f"{of}: accuracy %", "s" if view == EPOCHS else "epochs", "RigL − it"]
    lines = []
    for point in study.points:
        found = runs[(runs["network"] == point.label) & (runs["view"] == view)]
        if not len(found):
            continue
        line = [point.label, f"{round(found['weights'].mean()):,}", _rates(found), _step(timed, point)]
        for length in lengths:
            at = found[found["epochs"] == length]
            line += [spread(at["accuracy"]) if len(at) else ""]
            line += [_length(at, study, point, view, timed)]
            gain = None if point == study.rigl else above(runs, study, point.label, view, length)
            line += ["" if gain is None else _interval(*gain)]
        lines.append(line)
    return pipe(heads, lines)


def _rates(found: pandas.DataFrame) -> str:
    """The tuned rates, one for each length that has its own; * where the best was the lowest or highest."""
    first = found.groupby("epochs")[["lr", "at_edge"]].first()
    return ", ".join(dict.fromkeys(f"{lr:.2g}{'*' if edge else ''}" for lr, edge in first.itertuples(False)))


def _step(timed: dict[str, Any] | None, point: Point) -> str:
    if timed is None or point.label not in timed["networks"]:
        return ""
    own = timed["networks"][point.label]
    moves = own["rewiring"]
    rewiring = "" if moves is None else f" + {1e3 * moves['median']:.0f} a rewiring"
    return f"{1e3 * own['step']['median']:.1f}{rewiring}"


def _length(at: pandas.DataFrame, study: Study, point: Point, view: str, timed: dict[str, Any] | None) -> str:
    if not len(at):
        return ""
    if view == TIME:
        return f"{at['passes'].mean():.1f}"
    if timed is None or point.label not in timed["networks"]:
        return ""
    seconds = seconds_of(timed["networks"][point.label], at["steps"].mean(), study.every)
    return f"{seconds:,.0f}" if seconds >= 10 else two_digits(seconds)


def _interval(mean: float, low: float, high: float) -> str:
    ends = "" if pandas.isna(low) else f" [{low:+.2f}, {high:+.2f}]"
    return f"{mean:+.2f}{ends}".replace("-", "−")


def best_small(runs: pandas.DataFrame, view: str, epochs: int) -> str | None:
    """The small dense network with the best mean; None without one."""
    same = runs[(runs["view"] == view) & (runs["epochs"] == epochs)]
    means = same[same["network"].str.startswith(SMALL_DENSE)].groupby("network")["accuracy"].mean()
    return None if means.empty else str(means.idxmax())


def _aims(runs: pandas.DataFrame, study: Study, lengths: list[int]) -> list[str]:
    random = next(p for p in study.points if p.method == "random" and p.rewire is None)
    lines = []
    for length in lengths:
        gain = above(runs, study, random.label, EPOCHS, length)
        if gain is not None:
            lines.append(
                f"- {length} epochs: RigL above the static random mask that it starts from: "
                f"{_interval(*gain)} points (aim: +{AIM_RANDOM:g})"
            )
        small = best_small(runs, TIME, length)
        gain = None if small is None else above(runs, study, small, TIME, length)
        if gain is not None:
            aim = f" (aim: +{AIM_SMALL:g})" if length == AIM_EPOCHS and study.name == "resnet8" else ""
            lines.append(
                f"- the seconds of {length} epochs: RigL above the best small dense network ({small}): "
                f"{_interval(*gain)} points{aim}"
            )
    return lines


def _facts(runs: pandas.DataFrame, timed: dict[str, Any] | None) -> str:
    last = runs.iloc[-1]
    seeds = ", ".join(str(seed) for seed in sorted(set(runs["seed"])))
    on = "" if timed is None else f"; seconds: {machine_text(timed['machine'])}, {timed['machine']['date']}"
    noisy = ", others kept the processor busy" if timed is not None and timed["disturbed"] else ""
    tiles = ""
    if runs["on_tile"].notna().any():
        rigl = runs[runs["network"].str.startswith("RigL") & runs["on_tile"].notna()]["on_tile"]
        before, after = (100 * sum(of[i] for of in rigl) / len(rigl) for i in (0, 1))
        tiles = (
            f" RigL's first-layer weights on the tile: {before:.0f} % before training, {after:.0f} % after."
        )
    return (
        f"Seeds {seeds}; after ± stands one standard deviation, in brackets the 95 % interval of a bootstrap "
        f"over pairs of one seed. Rates: the best of {len(last['trials'])} for every network, on held-out "
        f"training samples; * the lowest or highest that was tried.{tiles} {machine_text(last)}, "
        f"{last['date']}{on}{noisy}."
    )


def cost(folder: Path) -> str:
    """What a rewiring costs: each network and method."""
    rows = {row["key"]["case"]: row for row in ledger.read(folder / FILE)}
    if not rows:
        return "Not measured yet: `python -m bench.rewire cost`."
    heads = ["network", "", "ms/step", "dense ms/step", "ms a rewiring", f"% of {EVERY} steps"]
    heads += ["dense steps", "MB added"]
    lines = []
    for case in CASES.values():
        if case.name not in rows:
            continue
        result = rows[case.name]["result"]
        words = f"{case.name}, batch {case.batch_size}, {100 * case.sparsity:g} %"
        for method in METHODS:
            step, rewiring = result[method]["step"], result[method]["rewiring"]
            dense = result["dense"]["step"]["median"]
            memory = result["memory"][method]["bytes"]
            lines.append(
                [
                    words,
                    {"rigl": "RigL", "set": "SET"}[method],
                    _quartiles(step),
                    _quartiles(result["dense"]["step"]),
                    _quartiles(rewiring),
                    f"{100 * part(result[method]):.1f}",
                    f"{rewiring['median'] / dense:.2f}",
                    "" if memory is None else f"{memory / 1e6:.0f}",
                ]
            )
    machine = next(iter(rows.values()))["machine"]
    noisy = any(row["result"]["disturbed"] for row in rows.values())
    return (
        f"{pipe(heads, lines, texts=2)}\n\nMedians, in brackets the quartiles; all take turns. Aims: at most "
        f"{AIM_PART:g} % of {EVERY} steps; the article's network in less than {AIM_STEPS:g} dense steps and "
        f"{AIM_BYTES / 1e6:g} MB. {machine_text(machine)}, {machine['date']}"
        f"{'; others kept the processor busy' if noisy else ''}."
    )


def _quartiles(of: dict[str, float]) -> str:
    low, middle, high = (1e3 * of[name] for name in ("q1", "median", "q3"))
    return f"{_three_digits(middle)} [{_three_digits(low)}, {_three_digits(high)}]"


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:#.3g}"


for _study in STUDIES.values():
    table(f"rewiring {_study.name}")(functools.partial(study_table, _study, FOLDER))
table("rewiring cost")(functools.partial(cost, FOLDER))
