"""Floating-point operations of a training step, from the weights that a model keeps."""

import math
from collections.abc import Iterable

from torch import nn

from sparseprune.cost.calls import Call, called_layers, record_calls
from sparseprune.format.weights import weight_names
from sparseprune.nn.masked import Masked, masks_in
from sparseprune.nn.sparse import SparseLayer
from sparseprune.scores.samples import Sample
from sparseprune.select.budget import LayerCost


def flops_per_step(model: nn.Module, sample: Sample, batch_size: int) -> int:
    """Floating-point operations of the products of one training step, kept weights only.

    A multiplication and an addition for each kept weight, sample and position of the output, in each of three
    products: forward, weight gradient, input gradient. A layer whose input needs no gradient, such as the
    first, has two. A weight that is pruned costs nothing, though a layer that stays dense with its mask
    enforced does compute it.

    Args:
        model: linear and convolutional layers, dense, masked or sparse; a copy of it is run.
        sample: shape of one sample, or example inputs; see :func:`sparseprune.cost.calls.record_calls`.
        batch_size: number of samples in a step.
    Returns:
        operations; padding counts, and biases, batch-norm, activations, loss and optimizer do not.
    Raises:
        ValueError: the model does not take such samples.
    """
    recorded = record_calls(model, sample, "flops_per_step")
    operations = sum(
        kept * flops_per_weight(layer, call, attribute)
        for layer, calls in recorded.items()
        for attribute, kept in kept_weights(layer).items()
        for call in calls
    )
    return batch_size * round(operations)


def flops_costs(model: nn.Module, sample: Sample, *, exclude: Iterable[str] = ()) -> dict[str, LayerCost]:
    """Operations of one sample in a training step, by layer, counted as :func:`flops_per_step` does.

    All calls of a layer count. Dense is all weights, so that a sparse layer never costs more.

    Args:
        model: the dense network.
        sample: shape of one sample, or example inputs; see :func:`sparseprune.cost.calls.record_calls`.
        exclude: names of parameters or modules to leave out; see :func:`sparseprune.prune`.
    Returns:
        ``{parameter name: cost}`` of the prunable layers.
    Raises:
        ValueError: the shape is none, the model does not take such samples, or does not call a
            layer.
    """
    costs = {}
    for name, (attribute, weight, layer, calls) in called_layers(model, sample, exclude):
        of_one = float(sum(flops_per_weight(layer, call, attribute) for call in calls))
        costs[name] = LayerCost(of_one, 0.0, of_one * weight.numel())
    return costs


def flops_per_weight(layer: nn.Module | None, call: Call, attribute: str = "weight") -> float:
    """Operations that one weight takes in a training step: two a position, in each of its products."""
    return 2 * (3 if call.input_gradient else 2) * positions_of(layer, call, attribute)


def positions_of(layer: nn.Module | None, call: Call, attribute: str = "weight") -> float:
    """At how many places of one sample each weight of a layer is used; of experts on average."""
    if call.positions:
        return dict(call.positions).get(attribute, 0.0)
    return math.prod(call.output[1:] if hasattr(layer, "kernel_size") else call.output[:-1])


def kept_weights(layer: nn.Module) -> dict[str, int]:
    """Number of weights of a layer that are not pruned, by parameter."""
    if isinstance(layer, SparseLayer):
        return {"weight": layer.values.numel()}
    masks = masks_in(layer) if isinstance(layer, Masked) else {}
    everything = {name: p for name, p in layer.named_parameters(recurse=False) if name in weight_names(layer)}
    return {name: int(masks[name].sum()) if name in masks else p.numel() for name, p in everything.items()}
