"""Seconds that a layer's weights take in a training step, measured on this machine."""

import functools
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sparseprune.cost.calls import Call, called_layers
from sparseprune.cost.choice import choose, measure_dense
from sparseprune.cost.progress import progress
from sparseprune.nn.kinds import sparse_from_dense, why_not_sparse
from sparseprune.nn.masked import DenseLayer, masked_from_dense
from sparseprune.scores.samples import Sample, is_size
from sparseprune.select.budget import LayerCost

# Densities at which a layer is measured; between them its seconds are taken to lie on a line.
LOW, HIGH = 0.02, 0.2
FEW_BLOCKS = 10  # at the higher density at least: the two patterns of a tiny layer must differ


class MeasuredCosts(dict[str, LayerCost]):
    """Seconds of layers, and what disturbed the measurement of one of them; empty where nothing did."""

    disturbed: str = ""


def measured_costs(
    model: nn.Module,
    sample: Sample,
    batch_size: int,
    *,
    block: tuple[int, int] = (1, 1),
    exclude: Iterable[str] = (),
) -> MeasuredCosts:
    """Seconds in a training step, from the measurements by which :func:`sparsify` chooses, kept in its file.

    Each layer is timed with random masks of two densities and dense; one that is called several times costs
    the sum of its calls. A layer without sparse kernels costs what dense does, whatever it keeps; experts,
    and what else cannot be called alone, cost nothing here: their time is part of the rest of the network.

    Args:
        model: the dense network; not changed.
        sample: shape of one sample, or example inputs; see :func:`sparseprune.cost.calls.record_calls`.
        batch_size: samples in a step.
        block: (V, 1), V in 1, 2, 4, 8, 16; layers whose rows V does not divide are measured with V = 1.
        exclude: see :func:`sparseprune.prune`.
    Returns, raises:
        see :func:`sparseprune.cost.flops.flops_costs`.
    """
    check_batch_size(batch_size)
    costs = MeasuredCosts()
    known: dict[tuple[object, ...], LayerCost] = {}  # layers of one shape are measured once
    layers = list(called_layers(model, sample, exclude))
    for name, (_, _, layer, calls) in progress("timing layers", layers):
        if layer is None:
            costs[name] = LayerCost(0.0, 0.0, 0.0)
            continue
        parts = []
        for call in calls:
            key = (type(layer), repr(layer), layer.weight.dtype, layer.weight.requires_grad, call)
            if key not in known:
                known[key], disturbed = _measure(layer, call, batch_size, block[0])
                costs.disturbed = costs.disturbed or disturbed
            parts.append(known[key])
        costs[name] = LayerCost(*map(math.fsum, zip(*parts, strict=True)))
    return costs


def same_dense(costs: Mapping[int, Mapping[str, LayerCost]]) -> dict[int, dict[str, LayerCost]]:
    """Costs of the same layers by V, on which what a layer takes dense does not depend: the least counts."""
    names = list(next(iter(costs.values())))
    dense = {name: min(of_layers[name].dense for of_layers in costs.values()) for name in names}
    return {v: {name: of[name]._replace(dense=dense[name]) for name in names} for v, of in costs.items()}


def check_batch_size(batch_size: int) -> None:
    """Raise ValueError for what is no number of samples."""
    if not is_size(batch_size):
        raise ValueError(f"batch_size: expected a whole number of samples, 1 or more, got {batch_size!r}")


def _measure(layer: DenseLayer, call: Call, batch_size: int, block_rows: int) -> tuple[LayerCost, str]:
    """What a layer costs, and what disturbed the measurement."""
    if why_not_sparse(layer):
        (seconds,), disturbed = measure_dense(layer, batch_size, call)
        return LayerCost(0.0, seconds, seconds), disturbed
    groups = getattr(layer, "groups", 1)
    if layer.weight.shape[0] // groups % block_rows:
        block_rows = 1
    blocks = layer.weight.numel() // block_rows
    points, dense, disturbed = [], math.inf, ""
    for count in (max(round(blocks * LOW), 1), max(round(blocks * HIGH), min(FEW_BLOCKS, blocks))):
        mask = _random_mask(layer.weight, block_rows, count)
        sparse = sparse_from_dense(layer, mask, block=(block_rows, 1))
        choice = choose(sparse, functools.partial(masked_from_dense, layer, mask), batch_size, call)
        points.append((int(mask.sum()), choice.sparse))
        dense, disturbed = min(dense, choice.dense), disturbed or choice.disturbed
    return line_through(points[0], points[1], dense), disturbed


def _random_mask(weight: Tensor, block_rows: int, count: int) -> Tensor:
    """So many blocks of chance; the user's random numbers stay as they are."""
    blocks = weight.numel() // block_rows
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(blocks, dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view(weight.shape[0] // block_rows, -1).repeat_interleave(block_rows, 0).reshape(weight.shape)


def line_through(few: tuple[int, float], many: tuple[int, float], dense: float) -> LayerCost:
    """The cost of a layer from (weights, seconds) of two patterns.

    Noise must not make weights free: where more weights took no longer, they cost what the longer time is
    through the number of the many.
    """
    per_weight = (many[1] - few[1]) / max(many[0] - few[0], 1)
    if per_weight <= 0:
        per_weight = max(few[1], many[1]) / max(many[0], 1)
    return LayerCost(per_weight, max(few[1] - per_weight * few[0], 0.0), dense)
