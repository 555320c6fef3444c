"""Statistics of a frontier: means over seeds, and accuracy beside others of the same time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sparseprune.experiments.frontier.points import Point
from sparseprune.experiments.frontier.results import Record
from sparseprune.experiments.frontier.rules import RULES
from sparseprune.experiments.rewiring import REWIRE
from sparseprune.scores import METHODS

SPREADS = ("accuracy", "seconds")  # columns that have a deviation
DIFFERENCES = ("above_dense", "vs_small", "vs_random")  # columns that have an interval, too
RESAMPLES, LEVEL = 10_000, 0.95  # of the bootstrap


def statistics(records: Sequence[Record]) -> pd.DataFrame:
    """Means over seeds: dense, small dense, then sparse, by method and rule, shuffled last, wider after that.

    Args:
        records: runs of one frontier; some seeds may be missing. It may have runs of several lengths.
    Returns:
        a line for each network and length, shorter ones first, within a family the largest FLOPs first, with
        columns
        network (a `Point`), epochs, kind, family, rule, flops: what it is;
        seeds: tuple of them, in the order in which they were run;
        accuracy (0 ... 1), seconds (of pruning and training), and their deviations accuracy_std, seconds_std
        (n - 1 in the denominator; NaN for a single seed);
        vs_dense: mean seconds over those of dense of the same epochs; NaN where that was not run;
        above_dense: mean accuracy above that of dense of the same seed and epochs;
        vs_small: mean accuracy above that of small dense networks, dense being the largest, of the same seed
        in the same seconds, be they of more epochs or fewer; NaN where they are all slower;
        vs_random: alike, above uniform random masks of single weights;
        above_dense_low, above_dense_high and so on: intervals of these three means, see `interval`;
        prune_seconds, flops_vs_dense, weights: means;
        lr, at_edge: learning rate; whether it was tuned, and is the lowest or the highest that was tried;
        best: whether no other network is as accurate in as little time, by the means.
    """
    runs = _runs(records)
    runs["above_dense"] = _above_dense(runs)
    small = runs.network.map(_is_small_dense)
    random = runs.network.map(_is_random)
    runs["vs_small"] = _above(runs, small)
    runs["vs_random"] = _above(runs, random)
    grouped = runs.groupby(["epochs", "network"], sort=False)
    figures = [*SPREADS, *DIFFERENCES, "prune_seconds", "flops_vs_dense", "weights"]
    # A network has a mean where all of its runs have the figure.
    table = grouped[figures].agg(lambda column: column.mean(skipna=False))
    deviations = grouped[list(SPREADS)].agg(lambda column: column.std(skipna=False))
    table = table.join(deviations.add_suffix("_std"))
    for name in DIFFERENCES:
        intervals = [interval(tuple(of)) for _, of in grouped[name]]
        table[[f"{name}_low", f"{name}_high"]] = intervals
    table["seeds"] = grouped.seed.agg(tuple)
    for name in ("lr", "at_edge"):
        table[name] = grouped[name].first()
    table = table.reset_index()
    table["place"] = [(line.epochs, *_place(line.network)) for line in table.itertuples()]
    table = table.sort_values("place", kind="stable").drop(columns="place")
    for name in ("kind", "family", "rule_text", "flops"):
        table[name.removesuffix("_text")] = [getattr(point, name) for point in table.network]
    dense = table[table.kind == "dense"].set_index("epochs").seconds
    table["vs_dense"] = table.seconds / table.epochs.map(dense)
    table["best"] = _best(table.seconds.to_numpy(), table.accuracy.to_numpy())
    return table.reset_index(drop=True)


def to_dicts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The same for JSON, means with their deviations, None for NaN."""
    networks: list[dict[str, Any]] = []
    for line in table.astype(object).where(table.notna(), None).to_dict("records"):
        point = line["network"].to_dict()
        del point["seed"]
        network = {"point": point, "epochs": line["epochs"], "seeds": line["seeds"]}
        for name in SPREADS:
            network[name] = {"mean": line[name], "std": line[f"{name}_std"]}
        for name in DIFFERENCES:
            ends = {end: line[f"{name}_{end}"] for end in ("low", "high")}
            network[name] = None if line[name] is None else {"mean": line[name], **ends}
        plain = ("vs_dense", "prune_seconds", "flops_vs_dense", "weights", "lr", "at_edge", "best")
        networks.append(network | {name: line[name] for name in plain})
    return networks


@functools.cache
def interval(values: tuple[float, ...]) -> tuple[float, float]:
    """Percentile-bootstrap interval of a mean, at `LEVEL`.

    Of three values it is from the least to the greatest, since one resample in 27 holds the least alone.
    (Bias-corrected ones need more values.)

    Args:
        values: such as the differences of each seed.
    Returns:
        its ends; NaN for fewer than two values, or where one is NaN.
    """
    if len(values) < 2 or np.isnan(values).any():
        return np.nan, np.nan
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.array(values)[draws].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _runs(records: Sequence[Record]) -> pd.DataFrame:
    """A line for each run."""
    return pd.DataFrame(
        {
            "network": [record.point.network for record in records],
            "epochs": [record.epochs for record in records],
            "seed": [record.point.seed for record in records],
            "accuracy": [record.measured.accuracy for record in records],
            "seconds": [record.measured.total_seconds for record in records],
            "prune_seconds": [r.measured.total_seconds - r.measured.train_seconds for r in records],
            "flops_vs_dense": [record.measured.flops_vs_dense for record in records],
            "weights": [record.measured.weights for record in records],
            "lr": [_rate(record) for record in records],
            "at_edge": [record.measured.lr_at_edge for record in records],
        }
    )


def _rate(record: Record) -> float:
    return record.settings["lr"] if record.measured.lr is None else record.measured.lr


def _above_dense(runs: pd.DataFrame) -> pd.Series:
    """Accuracy of each run above that of dense of the same seed and epochs; NaN for dense itself."""
    is_dense = runs.network.map(lambda point: point.kind == "dense")
    dense = runs[is_dense].set_index(["epochs", "seed"]).accuracy
    same = pd.MultiIndex.from_frame(runs[["epochs", "seed"]])
    return (runs.accuracy - dense.reindex(same).to_numpy()).where(~is_dense)


def _above(runs: pd.DataFrame, reference: pd.Series) -> pd.Series:
    """Accuracy of each run above that of reference networks of the same seed at the same time.

    The reference is straight in the logarithm of time between those of its networks that are better than all
    faster ones: one that is slower and worse, perhaps since it was trained for too long, does not weaken it.

    Args:
        runs: see `_runs`.
        reference: whether each of them is of a reference network.
    Returns:
        differences; NaN for the reference networks themselves, and for a run that is more than a tenth faster
        than all of them.
    """
    above = pd.Series(np.nan, runs.index)
    for seed, known in runs[reference].sort_values(["seconds", "accuracy"]).groupby("seed"):
        of_seed = ~reference & (runs.seed == seed) & (1.1 * runs.seconds >= known.seconds.iloc[0])
        others = runs[of_seed]
        front = known[known.accuracy > known.accuracy.cummax().shift(fill_value=-np.inf)]
        expected = np.interp(np.log(others.seconds), np.log(front.seconds), front.accuracy)
        above[of_seed] = others.accuracy - expected
    return above


def _best(seconds: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Which networks no other one beats: faster and no worse, or better and no slower."""
    no_slower, no_worse = seconds[:, None] <= seconds, accuracy[:, None] >= accuracy
    other = (seconds[:, None] != seconds) | (accuracy[:, None] != accuracy)
    return ~(no_slower & no_worse & other).any(axis=0)


def _is_small_dense(point: Point) -> bool:
    return point.kind in ("dense", "small dense")


def _is_random(point: Point) -> bool:
    uniform = ("random", "uniform", 1, 1.0, None)
    own = (point.method, point.rule, point.block_rows, point.width, point.rewire)
    return point.kind == "dense" or own == uniform


def _place(point: Point) -> tuple[float, ...]:
    """What the networks are sorted by."""
    if point.kind != "sparse":
        return (point.kind != "dense", -point.flops)
    assert point.method is not None
    assert point.rule is not None
    return (
        2 + point.shuffled,
        point.width,
        list(METHODS).index(point.method),
        0 if point.rewire is None else 1 + list(REWIRE).index(point.rewire),
        RULES.index(point.rule),
        point.exponent or 0.0,
        point.block_rows or 1,
        -point.flops,
    )
