"""Statistics of a frontier: means over seeds, and accuracy beside others of the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sparseprune.experiments.frontier.points import Point
from sparseprune.experiments.frontier.results import Record
from sparseprune.experiments.frontier.rules import RULES
from sparseprune.scores import METHODS

SPREADS = ("accuracy", "seconds", "vs_small", "vs_random")  # columns that have a deviation


def statistics(records: Sequence[Record]) -> pd.DataFrame:
    """Means and deviations over seeds: dense, small dense, then sparse, by method and rule, shuffled last.

    Args:
        records: runs of one frontier; some seeds may be missing.
    Returns:
        a line for each network, within a family the largest FLOPs first, with columns
        network (a `Point`), kind, family, rule, flops: what it is;
        seeds: tuple of them, in the order in which they were run;
        accuracy (0 ... 1), seconds (of pruning and training), and their deviations accuracy_std, seconds_std
        (n - 1 in the denominator; NaN for a single seed);
        vs_dense: mean seconds over those of dense; NaN where dense was not run;
        vs_small, vs_small_std: accuracy above that of small dense networks, dense being the largest, of the
        same seed in the same seconds; NaN where they are all slower;
        vs_random, vs_random_std: alike, above uniform random masks of single weights;
        prune_seconds, flops_vs_dense, weights: means;
        best: whether no other network is as accurate in as little time, by the means.
    """
    runs = _runs(records)
    small = runs.network.map(_is_small_dense)
    random = runs.network.map(_is_random)
    runs["vs_small"] = _above(runs, small)
    runs["vs_random"] = _above(runs, random)
    grouped = runs.groupby("network", sort=False)
    figures = [*SPREADS, "prune_seconds", "flops_vs_dense", "weights"]
    # A network has a mean where all of its runs have the figure.
    table = grouped[figures].agg(lambda column: column.mean(skipna=False))
    deviations = grouped[list(SPREADS)].agg(lambda column: column.std(skipna=False))
    table = table.join(deviations.add_suffix("_std"))
    table["seeds"] = grouped.seed.agg(tuple)
    table = table.reset_index().sort_values("network", key=lambda points: points.map(_place), kind="stable")
    for name in ("kind", "family", "rule_text", "flops"):
        table[name.removesuffix("_text")] = [getattr(point, name) for point in table.network]
    dense = table.seconds[table.kind == "dense"]
    table["vs_dense"] = table.seconds / (dense.iloc[0] if len(dense) else np.nan)
    table["best"] = _best(table.seconds.to_numpy(), table.accuracy.to_numpy())
    return table.reset_index(drop=True)


def to_dicts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The same for JSON, means with their deviations, None for NaN."""
    networks: list[dict[str, Any]] = []
    for line in table.astype(object).where(table.notna(), None).to_dict("records"):
        point = line["network"].to_dict()
        del point["seed"]
        network = {"point": point, "seeds": line["seeds"]}
        for name in ("accuracy", "seconds", "vs_dense", "vs_small", "vs_random"):
            network[name] = line[name]
            if name in SPREADS and line[name] is not None:
                network[name] = {"mean": line[name], "std": line[f"{name}_std"]}
        networks.append(
            network | {name: line[name] for name in ("prune_seconds", "flops_vs_dense", "weights", "best")}
        )
    return networks


def _runs(records: Sequence[Record]) -> pd.DataFrame:
    """A line for each run."""
    return pd.DataFrame(
        {
            "network": [record.point.network for record in records],
            "seed": [record.point.seed for record in records],
            "accuracy": [record.measured.accuracy for record in records],
            "seconds": [record.measured.total_seconds for record in records],
            "prune_seconds": [r.measured.total_seconds - r.measured.train_seconds for r in records],
            "flops_vs_dense": [record.measured.flops_vs_dense for record in records],
            "weights": [record.measured.weights for record in records],
        }
    )


def _above(runs: pd.DataFrame, reference: pd.Series) -> pd.Series:
    """Accuracy of each run above that of reference networks of the same seed at the same time.

    The reference is the best accuracy in at most so much time, straight in the logarithm of time between its
    networks.

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
        times, accuracies = np.log(known.seconds), known.accuracy.cummax()
        above[of_seed] = others.accuracy - np.interp(np.log(others.seconds), times, accuracies)
    return above


def _best(seconds: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Which networks no other one beats: faster and no worse, or better and no slower."""
    no_slower, no_worse = seconds[:, None] <= seconds, accuracy[:, None] >= accuracy
    other = (seconds[:, None] != seconds) | (accuracy[:, None] != accuracy)
    return ~(no_slower & no_worse & other).any(axis=0)


def _is_small_dense(point: Point) -> bool:
    return point.kind in ("dense", "small dense")


def _is_random(point: Point) -> bool:
    return point.kind == "dense" or (point.method, point.rule, point.block_rows) == ("random", "uniform", 1)


def _place(point: Point) -> tuple[float, ...]:
    """What the networks are sorted by."""
    if point.kind != "sparse":
        return (point.kind != "dense", -point.flops)
    assert point.method is not None
    assert point.rule is not None
    return (
        2 + point.shuffled,
        list(METHODS).index(point.method),
        RULES.index(point.rule),
        point.exponent or 0.0,
        point.block_rows or 1,
        -point.flops,
    )
