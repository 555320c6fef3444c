"""What a layer's weights cost in a training step: counted operations, or seconds measured on this machine."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparseprune.choice import choose, measure_dense
from sparseprune.nn.masked import DenseLayer, masked_from_dense
from sparseprune.scores import prunable
from sparseprune.sizes import Sizes, layer_sizes
from sparseprune.sparsify import SPARSE, why_not_sparse

# Densities at which a layer is measured; between them its seconds are taken to lie on a line.
LOW, HIGH = 0.02, 0.2


class LayerCost(NamedTuple):
    """Of one layer in a training step, in operations or seconds.

    Attributes:
        per_weight: of one weight that is kept.
        fixed: of the sparse layer without weights.
        dense: of the layer left dense.
    """

    per_weight: float
    fixed: float
    dense: float

    def of(self, weights: int) -> float:
        """min(fixed + per_weight · weights, dense)"""
        return min(self.fixed + self.per_weight * weights, self.dense)


def positions_of(sizes: Sizes, layer: nn.Module) -> int:
    """At how many places of one sample each weight of a layer is used."""
    return math.prod(sizes.output[:-1] if isinstance(layer, nn.Linear) else sizes.output[1:])


def flops_costs(
    model: nn.Module, input_size: Sequence[int], *, exclude: Iterable[str] = ()
) -> dict[str, LayerCost]:
    """Operations of one sample in a training step, counted as :func:`sparseprune.flops.flops_per_step` does.

    A weight takes 2 operations at each position of the output in each of three products, or two in a layer
    whose input needs no gradient. Dense is all weights, so that a sparse layer never costs more.

    Args:
        model: the dense network.
        input_size: shape of one sample.
        exclude: see :func:`sparseprune.prune`.
    Returns:
        ``{parameter name: cost}`` of the prunable layers.
    Raises:
        ValueError: the model does not take such samples, or does not call a layer.
    """
    costs = {}
    for name, layer, sizes in _called_layers(model, input_size, exclude):
        weight = 2.0 * (3 if sizes.input_gradient else 2) * positions_of(sizes, layer)
        costs[name] = LayerCost(weight, 0.0, weight * layer.weight.numel())
    return costs


def measured_costs(
    model: nn.Module,
    input_size: Sequence[int],
    batch_size: int,
    *,
    block: tuple[int, int] = (1, 1),
    exclude: Iterable[str] = (),
) -> dict[str, LayerCost]:
    """Seconds in a training step, from the measurements by which :func:`sparsify` chooses, kept in its file.

    Each layer is timed with random masks of two densities and dense. A layer without sparse kernels costs
    what dense does, whatever it keeps.

    Args:
        model: the dense network; not changed.
        input_size: shape of one sample.
        batch_size: samples in a step.
        block: (V, 1), V in 1, 2, 4, 8, 16; layers whose rows V does not divide are measured with V = 1.
        exclude: see :func:`sparseprune.prune`.
    Returns, raises:
        see :func:`flops_costs`.
    """
    costs: dict[str, LayerCost] = {}
    known: dict[tuple[object, ...], LayerCost] = {}  # layers of one shape are measured once
    for name, layer, sizes in _called_layers(model, input_size, exclude):
        key = (type(layer), repr(layer), layer.weight.dtype, sizes)
        if key not in known:
            known[key] = _measure(layer, sizes, batch_size, block[0])
        costs[name] = known[key]
    return costs


def _measure(layer: DenseLayer, sizes: Sizes, batch_size: int, block_rows: int) -> LayerCost:
    if why_not_sparse(layer):
        seconds = measure_dense(layer, batch_size, sizes)
        return LayerCost(0.0, seconds, seconds)
    groups = getattr(layer, "groups", 1)
    rows = block_rows if layer.weight.shape[0] // groups % block_rows == 0 else 1
    points, dense = [], math.inf
    for density in (LOW, HIGH):
        mask = _random_mask(layer.weight, rows, density)
        sparse = SPARSE[type(layer)].from_dense(layer, mask, block=(rows, 1))
        choice = choose(sparse, functools.partial(masked_from_dense, layer, mask), batch_size, sizes)
        points.append((int(mask.sum()), choice.sparse))
        dense = min(dense, choice.dense)
    return line_through(points[0], points[1], dense)


def _random_mask(weight: Tensor, rows: int, density: float) -> Tensor:
    """Blocks of chance, one at least; the user's random numbers stay as they are."""
    blocks = weight.numel() // rows
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(blocks, dtype=torch.bool)
    mask[order[: max(round(blocks * density), 1)]] = True
    return mask.view(weight.shape[0] // rows, -1).repeat_interleave(rows, 0).reshape(weight.shape)


def line_through(few: tuple[int, float], many: tuple[int, float], dense: float) -> LayerCost:
    """The cost of a layer from (weights, seconds) of two patterns.

    Noise must not make weights free: where more weights took no longer, they cost what the longer time is
    through the number of the many.
    """
    per_weight = (many[1] - few[1]) / max(many[0] - few[0], 1)
    if per_weight <= 0:
        per_weight = max(few[1], many[1]) / max(many[0], 1)
    return LayerCost(per_weight, max(few[1] - per_weight * few[0], 0.0), dense)


def _called_layers(
    model: nn.Module, input_size: Sequence[int], exclude: Iterable[str]
) -> Iterator[tuple[str, DenseLayer, Sizes]]:
    """``(parameter name, layer, sizes)`` of every prunable layer."""
    sizes = layer_sizes(model, input_size, "cost")
    for name in prunable(model, exclude):
        layer = model.get_submodule(name.rpartition(".")[0])
        if layer not in sizes:
            raise ValueError(
                f"cost: expected a forward pass to call every layer, got none of {name!r}; exclude it"
            )
        assert isinstance(layer, DenseLayer)
        yield name, layer, sizes[layer]
