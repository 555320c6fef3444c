"""Results on a GPU for people: a table for each workload, losses, and measured break-even sparsities."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.gpu import model
from bench.gpu.suite import over_best, over_default, over_tf32
from bench.report.break_even import break_even
from bench.report.columns import Columns
from bench.report.terminal import reason, rows_table, titled
from bench.rows import FAILED, WRONG, Row
from bench.workloads import Workload

MICRO = 1e6
MEGA = 1e6
GIGA = 1e9
TERA = 1e12

LEGEND = (
    "µs: median on the device, by CUDA events; IQR: width between its quartiles. Before each call a buffer "
    "of twice the L2 cache is written: weights and input come from memory. host µs: what the processor takes "
    "to hand over a call; a head start hides it from µs, a loop where it is the longer of the two does not. "
    "TFLOP/s: operations of the matrix products with the kept weights alone, whoever computes. GB/s: weights "
    "as stored, indices, input and output (in a step their gradients too), each once. x best: speed-up over "
    "the strongest dense of the same precision; x TF32: of float32 over the strongest dense in TF32; x dflt: "
    "over what torch does in float32 unless told otherwise (dense-float32, of convolutions dense-tf32; topk: "
    "torch-topk). Below 1 it is slower. inner: batch innermost in memory."
)


def _factor(over: Callable[[Row], float | None]) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        factor = over(row)
        return "" if factor is None else f"{factor:.2f}"

    return show


def _micro(seconds: float) -> str:
    return f"{seconds * MICRO:.1f}"


def _tflops(row: Row) -> str:
    return "" if row.flops_per_second is None else f"{row.flops_per_second / TERA:.2f}"


def _gbs(row: Row) -> str:
    return f"{row.least_bytes / row.seconds / GIGA:.0f}" if row.least_bytes and row.seconds else ""


# A column that is empty in a case is left out of it.
COLUMNS: Columns = {
    "IQR": lambda row: "" if row.q1 is None or row.q3 is None else _micro(row.q3 - row.q1),
    "host\nµs": lambda row: "" if row.host_seconds is None else f"{row.host_seconds * MICRO:.0f}",
    "TFLOP\n/s": _tflops,
    "GB/s": _gbs,
    "x\nbest": _factor(over_best),
    "x\nTF32": _factor(over_tf32),
    "x\ndflt": _factor(over_default),
}


def case_table(rows: Sequence[Row]) -> RenderableType:
    """The rows of one case; contenders without a time say why below the table."""
    return Group(rows_table(rows, "µs", _micro, COLUMNS, widths=(19, 5)), Text())


def failures_text(rows: Sequence[Row]) -> Text:
    """Who was wrong or failed, why, and in how many cases; "" if nobody did."""
    bad = [f"{row.contender}: {reason(row)}" for row in rows if row.status in (WRONG, FAILED)]
    lines = [f"in {count} of {len(rows)} rows: {what}" for what, count in collections.Counter(bad).items()]
    return Text("\n".join(lines))


def losses_text(rows: Sequence[Row]) -> Text:
    """Every case in which sparseprune is slower than dense, and by how much."""
    comparisons: dict[str, Callable[[Row], float | None]] = {
        "the strongest dense of the same precision (topk: of torch)": over_best,
        "the strongest dense in TF32, computing in float32": over_tf32,
    }
    lines = []
    for rival, over in comparisons.items():
        own = [(row, factor) for row in rows if row.family == "own" and (factor := over(row)) is not None]
        lost = [(row, factor) for row, factor in own if factor < 1]
        lines.append(f"slower than {rival}: {len(lost)} of {len(own)}")
        by_case: dict[str, list[str]] = {}
        for row, factor in lost:
            by_case.setdefault(row.case, []).append(f"{row.contender.removeprefix('ours-')} {factor:.2f}")
        lines += [f"  {case}: {', '.join(factors)}" for case, factors in by_case.items()]
    return Text("\n".join(lines) + "\n")


def _shape(workload: Workload) -> str:
    return f"{workload.kind}/{workload.shape}/n={workload.batch}"


def break_even_table(rows: Sequence[Row]) -> Table:
    """Measured break-even sparsities over the strongest dense of the same precision, by V, in per cent."""
    points: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
    for row in rows:
        factor = over_best(row)
        if row.family == "own" and factor is not None and row.workload.batch:
            key = (_shape(row.workload), row.contender)
            of_block = points.setdefault(key, {}).setdefault(row.workload.block, [])
            of_block.append((row.workload.density, factor))
    table = titled("sparsity (%) from which on sparse is faster than the strongest dense of its precision")
    table.caption = "<: faster at every sparsity measured; >: at none"
    table.caption_justify = "left"
    table.add_column("workload", no_wrap=True)
    table.add_column("contender", no_wrap=True)
    blocks = sorted({block for found in points.values() for block in found})
    for block in blocks:
        table.add_column(f"V={block}", justify="right", no_wrap=True, min_width=5)
    for (workload, contender), found in points.items():
        cells = [_crossing(found[block]) if block in found else "" for block in blocks]
        table.add_row(workload, contender, *cells)
    return table


def _crossing(points: list[tuple[float, float]]) -> str:
    found = break_even(points)
    # An extrapolation is too far off to say more.
    if found.how == "extrapolated":
        return f"<{100 * (1 - max(density for density, _ in points)):.0f}"
    return f"{'>' if found.how == 'not reached' else ''}{100 * (1 - found.density):.0f}"


def header_text(header: dict[str, Any]) -> Text:
    """The device and the versions in two lines."""
    facts, device = header["machine"], header["device"]
    first = device["name"]
    if device["type"] == "cuda":
        first = (
            f"{device['name']}, compute capability {device['compute_capability']}, "
            f"driver {device['driver']}, CUDA {device['cuda']}, L2 {device['l2_bytes'] / MEGA:.1f} MB"
        )
    return Text(
        f"{first}\ntorch {facts['torch']}, sparseprune {facts['sparseprune']}, {facts['date']}; "
        f"{facts['cpu']}\n"
    )


def model_table() -> Table:
    """The model's break-even sparsities in per cent, of a layer of `model.FEATURES` inputs and outputs."""
    side = model.FEATURES
    table = titled(f"% sparsity from which on sparse should beat dense, {side}x{side}")
    for heading in ("device", "sparse", "over dense"):
        table.add_column(heading, no_wrap=True)
    for heading in ("batch", *(f"V={block}" for block in model.BLOCKS)):
        table.add_column(heading, justify="right", no_wrap=True, min_width=6)
    for gpu in model.GPUS:
        for case in model.CASES:
            for batch in model.BATCHES:
                layer = model.Layer(side, side, batch)
                found = [model.breakeven_model(gpu, case, layer, block) for block in model.BLOCKS]
                cells = ["never" if sparsity is None else f"{100 * sparsity:.1f}" for sparsity in found]
                table.add_row(gpu.name, case.sparse, case.dense, str(batch), *cells)
            table.add_section()
    return table
