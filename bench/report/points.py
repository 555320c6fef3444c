"""What the page's charts and first screen show of a run's rows."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bench.report.break_even import break_even
from bench.report.columns import GIGA, MILLI, Columns, filled
from bench.report.markdown import factor
from bench.rows import OK, Row, speedup
from bench.targets import training_bytes
from bench.workloads import (
    BATCH_INNER,
    CONV_BATCH,
    CONV_FORWARD,
    CONV_STEP,
    FORWARD,
    NETWORK_FORWARD,
    NETWORK_STEP,
    REWIRE_STEP,
    STEP,
    TRANSFORMER_FORWARD,
    TRANSFORMER_STEP,
    Workload,
)
from sparseprune.cost.quiet import is_busy
from sparseprune.experiments.page.page import Card

# Kinds of work in the order in which they are offered.
WORDS = {
    STEP: "training step of a linear layer",
    FORWARD: "forward pass of a linear layer",
    CONV_STEP: "training step of a convolution",
    CONV_FORWARD: "forward pass of a convolution",
    NETWORK_STEP: "training step of a convolutional network",
    NETWORK_FORWARD: "evaluation of a convolutional network",
    TRANSFORMER_STEP: "training step of a transformer",
    TRANSFORMER_FORWARD: "evaluation of a transformer",
    "model-step": "training step of a perceptron",
    REWIRE_STEP: "step with moving weights",
    "prune": "pruning, beside three dense steps",
    "topk": "selecting weights, beside numpy",
}
LINEAR = (STEP, FORWARD)
# What the first screen has figures of, at the sparsity at which there are most.
GAINS = (STEP, CONV_STEP, NETWORK_STEP, TRANSFORMER_STEP, FORWARD, CONV_FORWARD)
USUAL_BATCH = {STEP: 256, FORWARD: 256, CONV_STEP: CONV_BATCH, CONV_FORWARD: CONV_BATCH}
SHORT = {"float32": "", "bfloat16": "bf16"}


def compared(rows: Iterable[Row], contender: str) -> list[Row]:
    """A contender's timed rows that have something to be compared with, kinds in order."""
    found = [row for row in rows if row.contender == contender and row.status == OK and speedup(row)]
    order = list(WORDS)
    return sorted(found, key=lambda row: order.index(row.workload.kind) if row.workload.kind in order else 99)


def points(rows: Sequence[Row], columns: Columns) -> list[dict[str, Any]]:
    """A point of the charts for each of the rows that `compared` returned."""
    found = []
    for row in rows:
        work, faster = row.workload, speedup(row)
        assert row.seconds is not None
        cells = {heading.replace("\n", " "): cell[0] for heading, cell in filled(columns, [row]).items()}
        hover = {"title": row.case, "contender": row.contender, "ms": f"{row.seconds * MILLI:.3f}", **cells}
        if is_busy(row.others):
            hover["busy"] = "other processes ran: do not trust this"
        point = {
            "kind": work.kind,
            "threads": row.threads,
            "sparsity": sparsity_text(work),
            "fold": 1 / work.density if work.density else None,
            "name": name_of(work),
            "series": series_of(work),
            "row": f"{name_of(work)}|{series_of(work)}",
            "weights": weights_of(work),
            "layout": work.layout,
            "speedup": faster,
            "hover": hover,
        }
        if row.kept_flops and row.dense_flops:
            point["allowed"] = row.dense_flops / row.kept_flops
        if row.kept_flops and row.kept_bytes and row.threads:
            point["intensity"] = row.kept_flops / row.kept_bytes
            point["rate"] = row.kept_flops / row.seconds / row.threads / GIGA
        found.append(point)
    return found


def sparsity_text(work: Workload) -> str:
    return f"{100 * (1 - work.density):.4g} %"


def name_of(work: Workload) -> str:
    """What is computed, for readers: "1024×1024, batch 64"."""
    batch = work.batch and work.batch != USUAL_BATCH.get(work.kind, work.batch)
    return work.shape.replace("x", "×") + (f", batch {work.batch}" if batch else "")


def weights_of(work: Workload) -> str:
    """Block and precision: "V=4, bf16"."""
    return ", ".join(filter(None, [f"V={work.block}", SHORT.get(work.dtype, work.dtype)]))


def series_of(work: Workload) -> str:
    """What tells workloads of one name apart, besides the sparsity."""
    words = [weights_of(work), work.layout if work.layout == BATCH_INNER else ""]
    words += ["" if work.mask in ("random", "random-layer") else work.mask]
    return ", ".join([*filter(None, words), *([work.optimizer] if work.optimizer == "adam" else [])])


def break_evens(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Break-even sparsities of linear layers; convolutions are measured too far from where theirs is."""
    found: dict[tuple[str, int, str, str, str], list[tuple[float, float]]] = collections.defaultdict(list)
    for row in rows:
        work, faster = row.workload, speedup(row)
        if work.kind in LINEAR and faster is not None:
            key = (work.kind, row.threads, name_of(work), series_of(work), weights_of(work))
            found[key].append((work.density, faster))
    lines = []
    for (kind, threads, name, series, weights), measured in found.items():
        density, how = break_even(measured)
        lines.append(
            {
                "kind": kind,
                "threads": threads,
                "name": name,
                "series": series,
                "row": f"{name}|{series}",
                "weights": weights,
                "fold": 1 / density,
                "how": how,
                "hover": {"title": f"{name}, {series}", "break-even": f"{1 - density:.1%}", "found": how},
            }
        )
    return sorted(lines, key=lambda line: line["fold"])


def cards(rows: Sequence[Row], every_row: Sequence[Row]) -> list[Card]:
    """Figures of the first screen: what is gained in time and in memory, and how often it is not.

    Args:
        rows: those that `compared` returned.
        every_row: those of all contenders.
    """
    return [*_gains(rows), *_memory(rows, every_row), *_losses(rows)]


def _gains(rows: Sequence[Row]) -> Iterator[Card]:
    usual = [row for row in rows if row.workload.dtype == "float32"]
    found = 0
    for kind in GAINS:
        of_kind = [row for row in usual if row.workload.kind == kind]
        if not of_kind or found == 3:
            continue
        found += 1
        threads = max(row.threads for row in of_kind)
        by_sparsity: dict[str, list[float]] = collections.defaultdict(list)
        for row in of_kind:
            if row.threads == threads:
                by_sparsity[sparsity_text(row.workload)].append(speedup(row) or 0.0)
        sparsity, factors = max(by_sparsity.items(), key=lambda item: len(item[1]))
        spread = f"{factor(min(factors))} to {factor(max(factors))}"
        of = f"median of {len(factors)}: {spread}, " if len(factors) > 1 else ""
        says = f"as fast as dense: a {WORDS[kind]}, {sparsity} sparse ({of}{threads_text(threads)})"
        median = statistics.median(factors)
        yield Card(factor(median), says, "chart-1", "bad" if median < 1 else "good")


def _memory(rows: Sequence[Row], every_row: Sequence[Row]) -> Iterator[Card]:
    dense = {row.case: row for row in every_row if row.contender == "dense-float32" and "bytes" in row.facts}
    held = [row for row in rows if row.case in dense and "bytes" in row.facts]
    if held:
        most = max(held, key=lambda row: training_bytes(dense[row.case]))
        less = training_bytes(dense[most.case]) / training_bytes(most)
        says = f"less memory for weights, gradients and optimizer: {name_of(most.workload)}, "
        yield Card(
            factor(less), says + f"{sparsity_text(most.workload)} sparse", "", "bad" if less < 1 else "good"
        )


def _losses(rows: Sequence[Row]) -> Iterator[Card]:
    slower = sum((speedup(row) or 1) < 1 for row in rows)
    if rows:
        says = "cases are slower than the strongest dense"
        yield Card(f"{slower} of {len(rows)}", says, "losses", "bad" if slower else "good")


def threads_text(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
