"""Tables of real wide data, from committed runs of `bench.wide_data`: of each data set that has some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pandas

from bench import ledger
from bench.report.markdown import pipe, spread
from bench.report.tables.registry import RESULTS, table
from bench.wide_data.contenders import DENSE, LINEAR, SCREENED, contenders
from bench.wide_data.looks import BEST, FEW_CLASSES
from bench.wide_data.run import SETTINGS
from bench.wide_data.timing import TIMES, key_of

FOLDER = RESULTS / "wide_data"
# Inputs of each class that are named.
NAMED = 5


class Runs(NamedTuple):
    """What a file holds: figures of the data, what all runs share, a row for each run, and the machine."""

    figures: dict[str, Any]
    common: dict[str, Any]
    frame: pandas.DataFrame
    machine: dict[str, Any]


def read(file: Path) -> Runs:
    """The runs of a file of `bench.wide_data.run`, contenders in their order."""
    rows = ledger.read(file)
    (about,) = (row for row in rows if "contender" not in row["key"])
    frame = pandas.DataFrame([{**row["key"], **row["result"]} for row in rows if "contender" in row["key"]])
    places = {contender.label: i for i, contender in enumerate(contenders())}
    frame = frame.sort_values("contender", key=lambda labels: labels.map(places), kind="stable")
    times = ledger.read(file.parent / TIMES)
    timed_on = next((row["machine"] for row in times if row["key"]["data"] == about["key"]["data"]), None)
    if timed_on is not None:
        frame = _timed(frame, {json.dumps(row["key"]): row["result"] for row in times})
    return Runs(about["result"], about["key"], frame, timed_on or rows[-1]["machine"])


def _timed(frame: pandas.DataFrame, times: dict[str, dict[str, Any]]) -> pandas.DataFrame:
    """Runs with the seconds of a quiet machine; of linear models the least of all seeds."""
    fitted = frame.groupby("contender")["total_seconds"].transform("min")

    def seconds(run: Any) -> dict[str, float]:
        timed = times.get(json.dumps(key_of(run["data"], run["contender"], run["variant"])))
        if timed is None:
            return {"total_seconds": fitted[run.name]}
        step, pruning = timed["step_seconds"], timed["prune_seconds"]
        return {
            "step_seconds": step,
            "prune_seconds": pruning,
            "total_seconds": pruning + step * run["steps"],
        }

    return frame.assign(**frame.apply(seconds, axis=1, result_type="expand"))


def accuracy(runs: Runs) -> str:
    """Accuracy, size and time of each contender; below it what the figures depend on."""
    frame = runs.frame
    dense = frame[frame["kind"] == DENSE]["total_seconds"].mean()
    lines = []
    for label, found in frame.groupby("contender", sort=False):
        mean = found.mean(numeric_only=True)
        # Of small dense and linear models all inputs count.
        looks = [one for one in found.get("looks", []) if isinstance(one, dict) and one]
        step = found.get("step_seconds", pandas.Series(dtype=float)).mean()
        lines.append(
            [
                str(label),
                spread(found["accuracy"], 100),
                f"{mean['weights']:,.0f}",
                f"{pandas.Series([one['inputs'] for one in looks]).mean():,.0f}" if looks else "",
                f"{100 * pandas.Series([one['share of best'] for one in looks]).mean():.0f} %"
                if looks
                else "",
                _seconds(mean["prune_seconds"]) if looks else "",
                _seconds(mean["total_seconds"]),
                "" if pandas.isna(dense) else _seconds(mean["total_seconds"] / dense),
                "" if pandas.isna(step) else f"{1e3 * step:.1f}",
                _chosen(found.iloc[0]),
            ]
        )
    heads = ["", "test accuracy %", "weights", "inputs", f"weights at the best {BEST:,}"]
    heads += ["pruning, s", "total s", "÷ dense", "ms/step", "chosen on validation samples"]
    return f"{pipe(heads, lines, last_is_text=True)}\n\n{facts(runs)}"


def _seconds(number: float) -> str:
    """Two digits at least: 0.0031, 0.12, 25.3."""
    return f"{number:.1f}" if number >= 1 else f"{number:.2g}"


def _chosen(run: Any) -> str:
    """What the trials chose: "lr 0.001, 4,000 inputs"."""
    variant = run["variant"]
    words = [f"{variant['inputs']:,} inputs"] if "inputs" in variant else []
    name = ("alpha" if "Bayes" in run["contender"] else "C") if run["kind"] == LINEAR else "lr"
    edge = ["at the edge"] if run["at_edge"] else []
    return ", ".join([f"{name} {run['rate']:.2g}", *words, *edge])


def inputs(runs: Runs) -> str:
    """The inputs of each class with the most kept weights, of the F-test's with the largest F."""
    frame = runs.frame
    shown = {
        label: found.iloc[0]["looks"]["names"]
        for label, found in frame.groupby("contender", sort=False)
        if found.iloc[0]["kind"] == SCREENED or str(label) in ("snip 98 %", "random 98 %")
    }
    shown = {"F-test" if label.startswith(SCREENED) else label: found for label, found in shown.items()}
    classes = list(dict.fromkeys(name for found in shown.values() for name in found))
    lines = [
        [name, *(", ".join(word for word, _ in found.get(name, [])[:NAMED]) for found in shown.values())]
        for name in classes
    ]
    return pipe(["class", *shown], lines, texts=1 + len(shown))


def facts(runs: Runs) -> str:
    """What the figures depend on, and the command."""
    figures, common, frame, machine = runs
    held, used = figures["of these for validation"], figures["inputs of a sample that are not zero, mean"]
    text = " ".join(
        [
            f"{common['data']}: {figures['what']}; {'; '.join(figures['taken from'])}.",
            f"{figures['training samples']:,} training samples, {held:,} of them held out while rates were",
            f"tuned, {figures['test samples']:,} test samples, {len(figures['samples by class'])} classes,",
            f"{figures['inputs']:,} inputs, of which a sample has {used:,.0f};",
            f"SHA-256 {figures['sha256'][:12]}.",
            f"Epochs {common['epochs']}, batch {common['batch_size']}, Adam (fused), cosine decay to 0,",
            f"{frame['trials'].max()} trials for each contender, with seed 0.",
            "After ± stands one standard deviation over the seeds.",
            f"{machine['cpu']}, {machine['threads']} threads (of scikit-learn's solvers one),",
            f"{machine['isa']}, torch {machine['torch']}, sparseprune {machine['sparseprune']},",
            f"{machine['date']}.",
        ]
    )
    options = {
        "data": common["data"],
        "seeds": ",".join(str(seed) for seed in dict.fromkeys(frame["seed"])),
        "threads": machine["threads"],
    }
    command = " ".join(f"--{name} {value}" for name, value in options.items())
    return f"{text}\n\n```\npython -m bench.wide_data run {command}\n```"


def _register(name: str) -> None:
    file = FOLDER / f"{name}.jsonl"
    if not any("contender" in row["key"] for row in ledger.read(file)):
        return
    table(f"wide-data {name}")(lambda: accuracy(read(file)))
    runs = read(file)
    if len(runs.figures["samples by class"]) <= FEW_CLASSES and (runs.frame["kind"] == SCREENED).any():
        table(f"wide-data {name} inputs")(lambda: inputs(read(file)))


for _name in SETTINGS:
    _register(_name)
