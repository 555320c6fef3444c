"""Tables of methods of pruning, from committed runs of `bench.methods`: of each experiment that has some."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas

from bench.methods.points import (
    AFTER_TRAINING,
    CONTROLS,
    DENSE,
    EXPERIMENTS,
    PRUNED,
    SCOPES,
    SMALL_DENSE,
    TICKET,
)
from bench.methods.results import Record, read
from bench.report.machine import machine_text
from bench.report.markdown import pipe, spread
from bench.report.tables.registry import RESULTS, table
from sparseprune.scores import METHODS

FOLDER = RESULTS / "methods"
MODELS = {"lenet_300_100": "LeNet-300-100", "lenet5_caffe": "LeNet-5-Caffe"}
# Errors on MNIST in %, by network and sparsity, of table 1 of SNIP (arXiv 1810.02340); by samples that are
# scored, of its appendix.
PAPER = {
    ("lenet_300_100", None): "1.7",
    ("lenet_300_100", 0.95): "1.6",
    ("lenet_300_100", 0.98): "2.4",
    ("lenet5_caffe", None): "0.9",
    ("lenet5_caffe", 0.98): "0.8",
    ("lenet5_caffe", 0.99): "1.1",
}
PAPER_SAMPLES = {1: "1.94", 10: "1.72", 100: "1.64", 1000: "1.56", 10_000: "1.40"}
# Of the lines of the table of all methods: words, and what their points have.
BESIDE = {
    "small dense": {"kind": SMALL_DENSE},
    "random, uniform density": {"method": "random", "scope": "layer"},
    "random, ERK densities": {"method": "random", "scope": "erk"},
}
WAYS = {
    "single weights": {"block_rows": 1},
    "4×1 blocks": {"block_rows": 4, "grouped": False},
    "4×1 blocks of grouped rows": {"block_rows": 4, "grouped": True},
}
FAILS = "fails"
WITHOUT_DATA = ("random", "magnitude", "synflow")

Records = Sequence[Record]


def of_runs(name: str, experiment: str) -> Callable[[Callable[[Records], str]], Callable[[Records], str]]:
    """Register the function below, which makes Markdown of an experiment's runs, where there are some."""

    def register(make: Callable[[Records], str]) -> Callable[[Records], str]:
        file = FOLDER / f"{experiment}.jsonl"
        if file.is_file():
            table(f"methods {name}")(lambda: f"{make(read(file))}\n\n{facts(read(file), experiment)}")
        return make

    return register


def frame(records: Records) -> pandas.DataFrame:
    """A row for each run: fields of its point, what was measured, model, data, seed and why it failed."""
    lines = []
    for record in records:
        measured = {} if record.measured is None else dict(vars(record.measured))
        # True sparsities are "measured"; the point has those that were asked for.
        measured["reached"] = measured.pop("sparsity", math.nan)
        others = {"model": record.model, "data": record.data, "seed": record.seed, "failed": record.failed}
        scored = {"scored_samples": measured.pop("scored", 0)}
        lines.append({**measured, **dataclasses.asdict(record.point), **others, **scored})
    return pandas.DataFrame(lines)


def chosen(runs: pandas.DataFrame, **fields: Any) -> pandas.DataFrame:
    """The runs whose points have these fields, the others idle; one of each seed."""
    wanted = {"kind": PRUNED, "scope": "global", "control": None, "block_rows": 1, "grouped": False}
    wanted |= {"min_per_layer": 1, **fields}
    for name, value in wanted.items():
        column = runs[name]
        runs = runs[column.isna() if value is None else column == value]
    assert runs["seed"].is_unique, fields
    return runs


def cell(runs: pandas.DataFrame, figure: str = "accuracy", scale: float = 100, digits: int = 2) -> str:
    """Mean and deviation over the seeds, and how many they are where some failed; empty without runs."""
    if not len(runs):
        return ""
    measured = runs[runs["failed"].isna()]
    if not len(measured):
        return FAILS
    some = "" if len(measured) == len(runs) else f" ({len(measured)} of {len(runs)} seeds)"
    return spread(measured[figure].astype(float), scale, digits) + some


def error_cell(runs: pandas.DataFrame) -> str:
    """Error in %."""
    return cell(runs.assign(error=1 - runs["accuracy"].astype(float)), "error")


def percent(sparsity: float) -> str:
    return f"{100 * sparsity:.4g} %"


@of_runs("snip-table", "snip-table")
def snip_table(records: Records) -> str:
    """Errors at the sparsities of SNIP's table 1, and what the paper has."""
    runs = frame(records)
    data = list(dict.fromkeys(runs["data"]))
    points = runs[["model", "sparsity", "method"]].drop_duplicates().itertuples(index=False)
    lines = []
    for model, sparsity, method in points:
        dense = not isinstance(method, str)
        fields = {"kind": DENSE} if dense else {"sparsity": sparsity, "method": method}
        of_model = runs[runs["model"] == model]
        paper = PAPER.get((model, None if dense else sparsity), "") if dense or method == "snip" else ""
        found = [error_cell(chosen(of_model[of_model["data"] == one], **fields)) for one in data]
        words = [MODELS.get(model, model), DENSE if dense else method, "" if dense else percent(sparsity)]
        lines.append([*words, *found, paper])
    heads = ["test error %", "method", "sparsity", *data, "the paper's, MNIST"]
    return with_failures(pipe(heads, lines, texts=2), runs)


@of_runs("resnet8", "resnet8")
def resnet8(records: Records) -> str:
    """Accuracy of every method at every sparsity; then their time."""
    runs = frame(records)
    sparsities = sorted(set(runs[runs["kind"] == PRUNED]["sparsity"]))
    rows: dict[str, Any] = {**BESIDE, **{method: {"method": method} for method in METHODS}}
    rows[AFTER_TRAINING] = {"kind": AFTER_TRAINING}
    dense = chosen(runs, kind=DENSE)
    dense_seconds = dense["total_seconds"].mean()
    accuracies, times = [], []
    for words, fields in rows.items():
        found = [chosen(runs, sparsity=sparsity, **fields) for sparsity in sparsities]
        accuracies.append([words, *map(cell, found)])
        times.append([words, *(_over(one, dense_seconds) for one in found), _pruning(found)])
    tickets = [_nearest(runs[runs["kind"] == TICKET], sparsity) for sparsity in sparsities]
    accuracies.append([TICKET, *map(_ticket_cell, tickets)])
    times.append([TICKET, *(_over(one, dense_seconds) for one in tickets), ""])
    shown = [[line for line in lines if any(line[1:])] for lines in (accuracies, times)]
    heads = [percent(sparsity) for sparsity in sparsities]
    return "\n\n".join(
        [
            f"Dense: {cell(dense)} % in {cell(dense, 'total_seconds', 1, 1)} s.",
            with_failures(pipe(["test accuracy %", *heads], shown[0]), runs[runs["control"].isna()]),
            pipe(["seconds of pruning and training ÷ dense's", *heads, "pruning, s"], shown[1]),
        ]
    )


def _over(runs: pandas.DataFrame, seconds: float) -> str:
    """Mean time over dense's; empty without a time."""
    mean = runs["total_seconds"].astype(float).mean()
    return "" if math.isnan(mean) else f"{mean / seconds:.2f}"


def _pruning(cells: Sequence[pandas.DataFrame]) -> str:
    """Mean seconds of pruning over sparsities and seeds."""
    found = pandas.concat(cells)
    if not len(found) or found["failed"].notna().all() or (found["kind"] == SMALL_DENSE).all():
        return ""
    return f"{found['prune_seconds'].mean():.1f}"


def _nearest(tickets: pandas.DataFrame, sparsity: float) -> pandas.DataFrame:
    """The rounds of lottery tickets that are nearest to a sparsity, by the number of weights."""
    if not len(tickets):
        return tickets
    nearest = min(set(tickets["sparsity"]), key=lambda other: abs(math.log((1 - other) / (1 - sparsity))))
    return tickets[tickets["sparsity"] == nearest]


def _ticket_cell(runs: pandas.DataFrame) -> str:
    return f"{cell(runs)} (at {100 * runs['reached'].mean():.1f} %)" if len(runs) else ""


@of_runs("controls", "resnet8")
def controls(records: Records) -> str:
    """Accuracy of masks, and of what became of them."""
    runs = frame(records)
    controlled = runs[runs["control"].notna()][["method", "sparsity"]].drop_duplicates()
    lines = [
        [
            f"{method} {percent(sparsity)}",
            *(
                cell(chosen(runs, method=method, sparsity=sparsity, control=control))
                for control in (None, *CONTROLS)
            ),
            cell(chosen(runs, method="random", sparsity=sparsity, scope="layer")),
        ]
        for method, sparsity in controlled.itertuples(index=False)
    ]
    heads = ["test accuracy %", "as it is", "shuffled within layers", "weights re-initialised", "inverted"]
    controlled_runs = runs[runs["control"].notna()]
    return with_failures(pipe([*heads, "random, uniform density"], lines), controlled_runs)


@of_runs("samples", "samples")
def samples(records: Records) -> str:
    """Errors by the number of samples that are scored."""
    runs = frame(records)
    sparsities = sorted(set(runs[runs["kind"] == PRUNED]["sparsity"]))
    counts = sorted(map(int, set(runs["scored"].dropna())))
    lines = []
    for data, of_data in runs.groupby("data", sort=False):
        dense = error_cell(chosen(of_data, kind=DENSE))
        for sparsity in sparsities:
            cells = []
            for count in counts:
                found = chosen(of_data, sparsity=sparsity, method="snip", scored=count)
                fewer = set(found["scored_samples"]) - {count, 0}
                cells.append(error_cell(found) + "".join(f" (all {int(one):,})" for one in fewer))
            lines.append([f"{data}, SNIP {percent(sparsity)}", *cells, dense])
    paper = [PAPER_SAMPLES.get(count, "") for count in counts]
    lines.append(["MNIST, SNIP 90 %, the paper's", *paper, PAPER["lenet_300_100", None]])
    heads = ["test error % by samples scored", *(f"{count:,}" for count in counts), DENSE]
    return with_failures(pipe(heads, lines), runs)


@of_runs("grouping", "grouping")
def grouping(records: Records) -> str:
    """Accuracy and time of single weights, blocks, and blocks of rows that were grouped first."""
    runs = frame(records)
    sparsities = sorted(set(runs[runs["kind"] == PRUNED]["sparsity"]))
    dense = chosen(runs, kind=DENSE)
    lines = [[DENSE, cell(dense), "", *_seconds(dense), ""]]
    for sparsity in sparsities:
        single = chosen(runs, sparsity=sparsity, method="snip")
        for words, way in WAYS.items():
            found = chosen(runs, sparsity=sparsity, method="snip", **way)
            lost = found.set_index("seed")["accuracy"] - single.set_index("seed")["accuracy"]
            lost = lost.dropna().astype(float)
            difference = spread(lost, 100, sign="+") if len(lost) and way["block_rows"] > 1 else ""
            pruning = cell(found, "prune_seconds", 1)
            lines.append(
                [f"SNIP {percent(sparsity)}, {words}", cell(found), difference, *_seconds(found), pruning]
            )
    heads = ["network", "test accuracy %", "− single weights", "ms/step", "total s", "pruning, s"]
    return with_failures(pipe(heads, lines), runs)


@of_runs("scopes", "scopes")
def scopes(records: Records) -> str:
    """Accuracy by the way in which a sparsity is divided among layers, and how many of them it cuts."""
    runs = frame(records)
    lines = []
    for model, of_model in runs.groupby("model", sort=False):
        dense = cell(chosen(of_model, kind=DENSE), digits=1)
        for sparsity in sorted(set(of_model["sparsity"].dropna())):
            found = [chosen(of_model, sparsity=sparsity, method="snip", **way) for way in SCOPES.values()]
            cells = [cell(one, digits=1) + _cut(one) for one in found]
            lines.append([f"{_short(str(model))}, {percent(sparsity)}", dense, *cells])
    floor = SCOPES["global with a floor"]["min_per_layer"]
    heads = ["test accuracy %", DENSE, *(f'"{way}"' if " " not in way else way for way in SCOPES)]
    heads = [head.replace("a floor", f"min_per_layer={floor}") for head in heads]
    return with_failures(pipe(heads, lines), runs)


def _cut(runs: pandas.DataFrame) -> str:
    """How many layers keep a single weight, the least that is allowed; nothing where none does."""
    cut = [
        sum(kept == 1 < weights for weights, kept, _ in layers.values()) for layers in runs["layers"].dropna()
    ]
    if not any(cut):
        return ""
    return f" ({min(cut)} to {max(cut)} cut)" if min(cut) < max(cut) else f" ({cut[0]} cut)"


def _short(name: str) -> str:
    """A network's or data's name without the module that its function is in."""
    return name.rpartition(":")[2]


def _seconds(runs: pandas.DataFrame) -> tuple[str, str]:
    return cell(runs, "step_seconds", 1e3), cell(runs, "total_seconds", 1, 1)


def with_failures(text: str, runs: pandas.DataFrame) -> str:
    """A table, and below it why methods failed, a line for each kind of point."""
    failed = runs[runs["failed"].notna()].drop_duplicates(["model", "data", "method", "sparsity", "control"])
    lines = []
    for one in failed.sort_values("sparsity", kind="stable").itertuples():
        control = f", {one.control}," if isinstance(one.control, str) else ""
        lines.append(f"- {one.method} {percent(one.sparsity)}{control} on {one.data} {FAILS}: {one.failed}")
    return "\n\n".join([text, "\n".join(lines)]) if lines else text


def facts(records: Records, experiment: str) -> str:
    """What the figures depend on: data, settings, samples scored, machine; and the command."""
    trainings = {(training.model, training.data): training for training in EXPERIMENTS[experiment]}
    options = {"seeds": ",".join(str(seed) for seed in dict.fromkeys(r.seed for r in records))}
    models: dict[str, list[str]] = {}
    for (model, data), record in {(r.model, r.data): r for r in records}.items():
        settings = record.settings
        told = (
            f"{_short(data)}: {settings['train']:,} training and {settings['test']:,} test samples, "
            f"epochs {settings['epochs']}, batch {settings['batch_size']}, {settings['optimizer']}, "
            f"lr {settings['lr']:g}."
        )
        models.setdefault(told, []).append(_short(model))
        for name in ("epochs", "samples"):
            if settings[name] != getattr(trainings[model, data], name):
                options[name] = str(settings[name])
    machine = records[0].machine
    options["threads"] = str(machine["threads"])
    dates = sorted({record.machine["date"] for record in records})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    floor = records[0].settings["min_per_layer"]
    text = " ".join(
        [
            *(f"{', '.join(names)} on {told}" for told, names in models.items()),
            *_scored(records),
            "After ± stands one standard deviation over the seeds.",
            f"Each layer keeps {floor} weight at least.",
            f"{machine_text(machine)}, {when}.",
        ]
    )
    command = " ".join(f"--{name} {value}" for name, value in options.items())
    return f"{text}\n\n```\npython -m bench.methods {experiment} {command}\n```"


def _scored(records: Records) -> list[str]:
    """A sentence of how many samples each method scored, of those that need any."""
    methods: dict[int, dict[str, None]] = {}
    for record in records:
        point = record.point
        if point.scored is not None and point.method is not None and point.method not in WITHOUT_DATA:
            methods.setdefault(point.scored, {})[point.method] = None
    parts = [f"{count:,} ({', '.join(names)})" for count, names in methods.items()]
    return [f"Samples scored: {', '.join(parts)}."] if parts else []
