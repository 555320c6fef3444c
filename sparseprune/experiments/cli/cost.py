"""``sparseprune cost``: what each layer's weights cost in a training step."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from torch import nn

from sparseprune._summary.table import Table, text
from sparseprune.cost import machine
from sparseprune.cost.calls import record_calls
from sparseprune.cost.flops import flops_costs, positions_of
from sparseprune.cost.seconds import MeasuredCosts, measured_costs
from sparseprune.experiments import models
from sparseprune.experiments.cli import inputs, options
from sparseprune.experiments.cli.progress import Bars
from sparseprune.experiments.data import DATASETS
from sparseprune.select.budget import LayerCost

SAMPLE, CLASSES = (1, 28, 28), 10  # where neither --data nor they are given
WIDE = 120  # columns of text where there is no terminal


@dataclass(frozen=True)
class LayerUse:
    """What a layer's weights cost.

    Attributes:
        name: name of its weight, as in masks.
        weights: number of weights.
        positions: number of places of one sample at which each is used.
        flops_share: part of the operations of all layers in a training step, 0 ... 1.
        dense_seconds, fixed_seconds, seconds_per_weight: times of a `LayerCost`; None where nothing was
            measured.
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
    """``"3x32x32"`` as (3, 32, 32)."""
    try:
        sizes = tuple(int(word) for word in text.lower().replace(",", "x").split("x"))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1 or math.prod(sizes) > options.MOST:
        raise typer.BadParameter(f"expected the shape of a sample like 3x32x32, got {text!r}")
    return sizes


def cost(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=f"Network: {', '.join(models.MODELS)}; or {options.OWN_MODEL}."),
    ],
    model_args: options.ModelArgs = "{}",
    sample: Annotated[
        str | None,
        typer.Option(
            "--sample",
            metavar="SHAPE",
            rich_help_panel=options.INPUTS,
            help="Shape of one sample; 1x28x28 without --data.",
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            "--classes",
            min=1,
            max=options.MOST,
            rich_help_panel=options.INPUTS,
            help="Number of classes; 10 without --data.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="NAME",
            rich_help_panel=options.INPUTS,
            help=f"Data that say both: one of {', '.join(DATASETS)}; or {options.OWN_DATA}.",
        ),
    ] = None,
    data_args: options.DataArgs = "{}",
    data_dir: options.DataDir = None,
    block: options.OneBlock = "1",
    flops: Annotated[bool, typer.Option("--flops", help="Count operations only; measure nothing.")] = False,
    batch_size: options.BatchSize = 128,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Print what every layer costs in a training step: sparse, by kept weight, and dense.

    The seconds are those by which layers are chosen to be sparse, and are kept in the same file.
    """
    if data is not None and (sample is not None or classes is not None):
        raise typer.BadParameter("give --data, or --sample and --classes, not both")
    (shape,) = options.parse_blocks(block)
    if data is not None:
        with Bars() as bars:
            _, chosen = inputs.load(bars, data, data_dir, None, model, model_args, data_args)
    else:
        if sample is None and ":" in model:
            raise ValueError(
                f"cost: expected --sample or --data, the shape of what {model} takes, got neither"
            )
        size = SAMPLE if sample is None else _sample(sample)
        chosen = models.Network(model, size, classes or CLASSES, args=inputs.parse_model_args(model_args))
        models.check(chosen, classes)
    network, size = models.build(chosen, 0), chosen.sample
    operations = flops_costs(network, size)
    measured = MeasuredCosts()
    if not flops:
        measured = measured_costs(network, size, batch_size, block=shape)
    layers = _uses(network, size, operations, measured)
    if as_json:
        content = {
            "machine": machine.facts(),
            "batch_size": batch_size,
            "block": block,
            "layers": [dataclasses.asdict(layer) for layer in layers],
            "weights": sum(layer.weights for layer in layers),
            "flops": sum(cost.dense for cost in operations.values()),
            "dense_seconds": sum(cost.dense for cost in measured.values()) if measured else None,
            "fixed_seconds": sum(cost.fixed for cost in measured.values()) if measured else None,
            "disturbed": measured.disturbed,
        }
        typer.echo(json.dumps(content))
        return
    title = f"{model}, samples of {'x'.join(map(str, size))}"
    if measured:
        title += f", batch {batch_size}, blocks of {shape[0]}x1"
    typer.echo(f"{title}\n\n{_table(layers, bool(measured))}")
    if measured:
        typer.echo(
            "\nOf a training step on this machine. A layer that keeps k weights takes\n"
            "fixed + k * (us / weight), and dense at most; below the density in the last\n"
            "column it is faster sparse."
        )
    if measured.disturbed:
        typer.echo(f"Not a quiet machine: {measured.disturbed}; measure again.", err=True)


def _uses(
    network: nn.Module,
    size: tuple[int, ...],
    operations: Mapping[str, LayerCost],
    measured: Mapping[str, LayerCost],
) -> list[LayerUse]:
    calls = record_calls(network, size, "cost")
    everything = sum(cost.dense for cost in operations.values())
    uses = []
    for name, counted in operations.items():
        path, _, attribute = name.rpartition(".")
        layer, weights = network.get_submodule(path), network.get_parameter(name).numel()
        positions = round(positions_of(layer, calls[layer][0], attribute))
        use = LayerUse(name, weights, positions, counted.dense / everything)
        if seconds := measured.get(name):
            use = dataclasses.replace(
                use,
                dense_seconds=seconds.dense,
                fixed_seconds=seconds.fixed,
                seconds_per_weight=seconds.per_weight,
                break_even=_break_even(seconds, weights),
            )
        uses.append(use)
    return uses


def _break_even(cost: LayerCost, weights: int) -> float | None:
    if cost.per_weight <= 0 or cost.fixed >= cost.dense:
        return None
    return min((cost.dense - cost.fixed) / (cost.per_weight * weights), 1.0)


def _table(layers: list[LayerUse], measured: bool) -> str:
    """A line for each layer, as :func:`sparseprune.summary` prints them."""
    columns = {
        "layer": [*(layer.name for layer in layers), "total"],
        "weights": [f"{n:,}" for n in (*(layer.weights for layer in layers), _total(layers, "weights"))],
        "positions": [*(f"{layer.positions:,}" for layer in layers), ""],
        "FLOPs": [*(f"{layer.flops_share:.1%}" for layer in layers), "100%"],
    }
    if measured:
        for heading, attribute in (("dense ms", "dense_seconds"), ("fixed ms", "fixed_seconds")):
            seconds = [*(getattr(layer, attribute) for layer in layers), _total(layers, attribute)]
            columns[heading] = [f"{one * 1e3:.3g}" for one in seconds]
        columns["us/weight"] = [*(f"{(layer.seconds_per_weight or 0) * 1e6:.3g}" for layer in layers), ""]
        columns["sparse below"] = [*(_percent(layer.break_even) for layer in layers), ""]
    table = Table(columns, len(layers), [], whole="--json")
    width = shutil.get_terminal_size((WIDE, 24)).columns
    return text(table, table, width, least=("positions", "FLOPs", "weights"))


def _total(layers: list[LayerUse], attribute: str) -> Any:
    return sum(getattr(layer, attribute) for layer in layers)


def _percent(density: float | None) -> str:
    return "never" if density is None else f"{density:.0%}"
