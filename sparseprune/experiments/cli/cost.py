"""``sparseprune cost``: what each layer's weights cost in a training step."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from sparseprune.cost import machine
from sparseprune.cost.calls import record_calls
from sparseprune.cost.flops import flops_costs, positions_of
from sparseprune.cost.seconds import measured_costs
from sparseprune.experiments import models
from sparseprune.experiments.cli import options
from sparseprune.select.budget import LayerCost


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        name: of its weight, as in masks.
        weights: how many it has.
        positions: at how many places of one sample each is used.
        flops_share: of the operations of all layers in a training step, 0 ... 1.
        dense_seconds, fixed_seconds, seconds_per_weight: see `LayerCost`; None where nothing was measured.
        break_even: density below which sparse is faster; None: never, or not measured.
    """

    name: str
    weights: int
    positions: int
    flops_share: float
    dense_seconds: float | None = None
    fixed_seconds: float | None = None
    seconds_per_weight: float | None = None
    break_even: float | None = None


def _sample(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(word) for word in text.lower().replace(",", "x").split("x"))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise typer.BadParameter(f"expected the shape of a sample like 3x32x32, got {text!r}")
    return sizes


def cost(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", callback=options.one_of(models.MODELS), help="Network.")
    ],
    sample: Annotated[str, typer.Option("--sample", help="Shape of one sample.")] = "1x28x28",
    classes: Annotated[int, typer.Option("--classes", min=1, help="Number of classes.")] = 10,
    block: options.Block = "1",
    flops: Annotated[bool, typer.Option("--flops", help="Count operations only; measure nothing.")] = False,
    batch_size: options.BatchSize = 128,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Print what every layer costs in a training step: sparse, by kept weight, and dense.

    The seconds are those by which layers are chosen to be sparse, and are kept in the same file.
    """
    (shape,) = options.parse_blocks(block)
    size = _sample(sample)
    network = models.build(models.Network(model, size, classes), 0)
    calls = record_calls(network, size, "cost")
    counted = flops_costs(network, size)
    measured: dict[str, LayerCost] = {}
    if not flops:
        progress = Progress(SpinnerColumn(), TextColumn("{task.description}"), transient=True)
        with progress if not as_json else Progress(disable=True) as shown:
            shown.add_task("measure layers")
            measured = measured_costs(network, size, batch_size, block=shape)
    everything = sum(cost.dense for cost in counted.values())
    rows = []
    for name, of_flops in counted.items():
        layer = network.get_submodule(name.rpartition(".")[0])
        weights = layer.get_parameter("weight").numel()
        positions = positions_of(layer, calls[layer][0])
        row = Row(name, weights, positions, of_flops.dense / everything)
        if seconds := measured.get(name):
            row = dataclasses.replace(
                row,
                dense_seconds=seconds.dense,
                fixed_seconds=seconds.fixed,
                seconds_per_weight=seconds.per_weight,
                break_even=_break_even(seconds, weights),
            )
        rows.append(row)
    if as_json:
        content = {
            "machine": machine.facts(),
            "batch_size": batch_size,
            "block": block,
            "layers": [dataclasses.asdict(row) for row in rows],
            "weights": sum(row.weights for row in rows),
            "flops": everything,
            "dense_seconds": sum(of.dense for of in measured.values()) if measured else None,
            "fixed_seconds": sum(of.fixed for of in measured.values()) if measured else None,
        }
        typer.echo(json.dumps(content))
        return
    Console(soft_wrap=True).print(_table(rows, model, size, batch_size, shape[0], bool(measured)))
    if measured:
        typer.echo(
            "Of a training step on this machine. A layer that keeps k weights takes\n"
            "fixed + k * (us / weight), and dense at most; below the density in the last\n"
            "column it is faster sparse."
        )


def _break_even(of: LayerCost, weights: int) -> float | None:
    if of.per_weight <= 0 or of.fixed >= of.dense:
        return None
    return min((of.dense - of.fixed) / (of.per_weight * weights), 1.0)


def _table(
    rows: list[Row], model: str, size: tuple[int, ...], batch_size: int, block_rows: int, measured: bool
) -> Table:
    title = f"{model}, samples of {'x'.join(map(str, size))}"
    if measured:
        title += f", batch {batch_size}, blocks of {block_rows}x1"
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_footer=True,
        padding=(0, 1, 0, 0),
    )
    weights = sum(row.weights for row in rows)
    table.add_column("layer", footer="all")
    table.add_column("weights", justify="right", footer=f"{weights:,}")
    table.add_column("positions", justify="right")
    table.add_column("FLOPs", justify="right", footer="100 %")
    if measured:
        dense = sum(row.dense_seconds or 0 for row in rows)
        fixed = sum(row.fixed_seconds or 0 for row in rows)
        table.add_column("dense ms", justify="right", footer=f"{dense * 1e3:.3g}")
        table.add_column("fixed ms", justify="right", footer=f"{fixed * 1e3:.3g}")
        table.add_column("us/weight", justify="right")
        table.add_column("sparse below", justify="right")
    for row in rows:
        cells = [
            row.name.removesuffix(".weight"),
            f"{row.weights:,}",
            f"{row.positions:,}",
            f"{100 * row.flops_share:.1f} %",
        ]
        if row.dense_seconds is not None and row.fixed_seconds is not None:
            cells += [f"{row.dense_seconds * 1e3:.3g}", f"{row.fixed_seconds * 1e3:.3g}"]
            cells += [f"{(row.seconds_per_weight or 0) * 1e6:.3g}"]
            cells += ["never" if row.break_even is None else f"{100 * row.break_even:.0f} %"]
        table.add_row(*cells)
    return table
