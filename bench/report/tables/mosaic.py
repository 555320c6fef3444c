"""Tables of the mosaic: all networks at tuned rates, and a few of them on other settings."""

from __future__ import annotations

from typing import Any

import pandas

from bench.mosaic.points import BASE, DENSE_POINT, FEW, FTEST, SETTINGS, SMALL, SNIP, TUNED, Setting
from bench.mosaic.results import accuracies, of_setting, read, times, total_seconds
from bench.report.machine import machine_text
from bench.report.markdown import pipe, spread, two_digits
from bench.report.tables.registry import RESULTS, table

FOLDER = RESULTS / "mosaic"
DENSE, SMALL_LABELS = DENSE_POINT.label, [point.label for point in SMALL]
# What the experiment is to reach: points of accuracy over the first, part of dense's time.
AIMS = {"dense": 15.0, "the better small dense": 15.0, FTEST.label: -1.0}
TIME_AIM = 0.15
ORDER = ("samples", "jitter", "informative", "task")


def tuned(runs: pandas.DataFrame, timed: dict[str, Any] | None) -> str:
    """All networks on the base, then SNIP beside what it is to beat.

    Args:
        runs: see `bench.mosaic.results.read`.
        timed: see `bench.mosaic.results.times`.
    """
    base = of_setting(runs)
    lines = []
    for point in TUNED:
        found = base[base["network"] == point.label]
        if not len(found):
            continue
        first = found.iloc[0]
        edge = "*" if first["at_edge"] else ""
        cells = [point.label, spread(accuracies(runs, point.label), digits=1), f"{first['lr']:.0e}{edge}"]
        cells += [f"{round(found['weights'].mean()):,}", *_on_tile(found)]
        lines.append(cells + _times(timed, point.label, first["steps"]))
    heads = ["network", "test accuracy %", "rate", "weights", "on the tile", "AUC", "ms/step", "pruning, s"]
    edges = "A rate with * is the lowest or highest that was tried. " if base["at_edge"].any() else ""
    return "\n\n".join(
        [
            pipe([*heads, "time ÷ dense"], lines),
            "\n".join(_aims(runs, timed)),
            f"{_facts(base)}{_timed_on(timed)}. Rates: the best of {len(base.iloc[0]['trials'])} for every "
            f"network, on a validation part of another mosaic. {edges}*On the tile*: share of the first "
            "layer's kept weights that look at the tile with the label; *AUC*: how well their number tells "
            "its pixels.",
        ]
    )


def region(runs: pandas.DataFrame) -> str:
    """A few networks on all settings, and by how much SNIP is above dense networks."""
    lines = []
    for setting in sorted(SETTINGS, key=_place):
        found = [accuracies(runs, point.label, setting) for point in (DENSE_POINT, *FEW)]
        if not any(len(one) for one in found):
            continue
        cells = [spread(one, digits=1) if len(one) else "" for one in found]
        gain = _above(runs, [DENSE, *SMALL_LABELS], setting)
        lines.append([setting.label, *cells, f"{gain.mean():+.1f}" if len(gain) else ""])
    heads = ["test accuracy %", *(point.label for point in (DENSE_POINT, *FEW)), "SNIP − dense, small dense"]
    return f"{pipe(heads, lines)}\n\n{_facts(runs)}; dense on other settings than the base: one seed."


def _place(setting: Setting) -> tuple[str, int]:
    """The base first, then what varies, by its value."""
    if not setting.differences:
        return "", 0
    ((name, value),) = setting.differences.items()
    return f"{list(ORDER).index(name)}", value if isinstance(value, int) else 0


def _on_tile(found: pandas.DataFrame) -> list[str]:
    if found["on_tile"].isna().any():
        return ["", ""]
    return [f"{100 * found['on_tile'].mean():.0f} %", f"{found['auc'].mean():.2f}"]


def _times(timed: dict[str, Any] | None, network: str, steps: float) -> list[str]:
    if timed is None or network not in timed["networks"]:
        return ["", "", ""]
    own = timed["networks"][network]
    pruning = two_digits(own["prune_seconds"]) if own["prune_seconds"] else ""
    ratio = total_seconds(timed, network, steps) / total_seconds(timed, DENSE, steps)
    return [f"{1e3 * own['step_seconds']:.1f}", pruning, f"{ratio:.2f}"]


def _timed_on(timed: dict[str, Any] | None) -> str:
    if timed is None:
        return ""
    return f"; times: {machine_text(timed['machine'])}, {timed['machine']['date']}"


def _above(runs: pandas.DataFrame, others: list[str], setting: Setting = BASE) -> pandas.Series:
    """Points of SNIP above the best of other networks, seed by seed; of seeds that both have."""
    by_name = {name: accuracies(runs, name, setting) for name in others}
    of_seeds = pandas.DataFrame({name: found for name, found in by_name.items() if len(found)})
    if of_seeds.empty:
        return pandas.Series(dtype=float)
    # Where a network has one seed, that one speaks for it with every seed.
    of_seeds = of_seeds.fillna(of_seeds.mean())
    return (accuracies(runs, SNIP.label, setting) - of_seeds.max(axis=1)).dropna()


def _aims(runs: pandas.DataFrame, timed: dict[str, Any] | None) -> list[str]:
    beaten = {"dense": [DENSE], "the better small dense": SMALL_LABELS, FTEST.label: [FTEST.label]}
    lines = []
    for words, names in beaten.items():
        if len(gain := _above(runs, names)):
            wanted = f"{AIMS[words]:+.0f}".replace("-", "−")
            points = spread(gain, digits=1, sign="+").replace("-", "−")
            lines.append(
                f"- {SNIP.label} above {words}: {points} points of accuracy (aim: {wanted} at least)"
            )
    if timed is not None:
        steps = of_setting(runs).iloc[0]["steps"]
        ratio = total_seconds(timed, SNIP.label, steps) / total_seconds(timed, DENSE, steps)
        lines.append(f"- its time over dense's, pruning included: {ratio:.2f} (aim: {TIME_AIM} at most)")
    return lines


def _facts(runs: pandas.DataFrame) -> str:
    last = runs.iloc[-1]
    seeds = ", ".join(map(str, sorted(set(runs["seed"]))))
    return (
        "article_mlp, batch 256, Adam, the same passes for all, on the base "
        f"{round(runs.iloc[0]['epochs'])}; seeds {seeds}, one standard deviation after ±; "
        f"{machine_text(last)}, {last['date']}"
    )


if (FOLDER / "tuned.jsonl").is_file():
    table("mosaic")(lambda: tuned(read(FOLDER), times(FOLDER)))
if (FOLDER / "region.jsonl").is_file():
    table("mosaic-region")(lambda: region(read(FOLDER)))
