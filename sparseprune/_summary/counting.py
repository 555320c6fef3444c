"""What a pruned model keeps and costs, layer by layer."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune import ops
from sparseprune._sparsify import densify
from sparseprune._summary.result import Summary, SummaryRow, Unpruned
from sparseprune.cost.calls import Call, record_calls
from sparseprune.format.bsr import largest_block
from sparseprune.format.masks import MasksLike, normal_masks
from sparseprune.format.weights import all_weights
from sparseprune.nn.kinds import Layer, Sparse, layers_of
from sparseprune.nn.masked import Masked
from sparseprune.scores.paths import NoPathsError, dead_units, live
from sparseprune.scores.samples import Sample, sample_given
from sparseprune.select.apply import checked_masks


def summary(
    model_or_masks: nn.Module | MasksLike,
    *,
    input_size: Sequence[int] | None = None,
    example_inputs: Any = None,
    model: nn.Module | None = None,
) -> Summary:
    """A printable table of every prunable layer: shape, block, kept, FLOPs, bytes, how it computes.

    With ``input_size`` also what is alive: how many of the kept weights lie on a path from the input to the
    output, and how many output units no such weight leads to; see :func:`sparseprune.scores.paths.live`. The
    *effective sparsity* counts the others as removed. Where paths cannot be followed through a model, the
    table says so.

    Args:
        model_or_masks: a model (dense, masked or sparse), or the masks that :func:`prune` returned, or in any
            other form that :func:`sparsify` takes; a list of masks with ``model``.
        input_size: shape of one sample that the model takes, such as (3, 32, 32), with which the FLOPs of
            convolutions and the paths are counted: a copy of the model runs.
        example_inputs: in place of ``input_size``, what the model is called with; see :func:`sparsify`.
        model: the dense model that masks belong to; with one of these.
    Raises:
        TypeError: neither a module nor masks.
        ValueError: a mask holds something other than 0 and 1, the model does not take such samples, or masks
            got ``model`` without samples, or these without it.
    """
    sample = sample_given("summary", input_size, example_inputs)
    if isinstance(model_or_masks, nn.Module):
        calls = {} if sample is None else record_calls(model_or_masks, sample, "summary")
        layers = layers_of(model_or_masks)
        rows = [_row_of_layer(layer, calls.get(layer.module)) for layer in layers]
        result = Summary(rows, None, _unpruned(model_or_masks, layers))
        return result if sample is None else _with_paths(result, model_or_masks, {}, sample)
    if (model is None) != (sample is None):
        given_as = "input_size" if example_inputs is None else "example_inputs"
        one, other = (given_as, "model") if model is None else ("model", given_as)
        raise ValueError(
            f"summary: expected both model and {given_as} beside masks, got {one} without {other}"
        )
    given = _masks(model_or_masks, model)
    of_masks = Summary([_row_of_mask(name, mask) for name, mask in given.items()])
    if model is None or sample is None:
        return of_masks
    record_calls(model, sample, "summary")
    return _with_paths(of_masks, model, given, sample)


def _masks(given: MasksLike, model: nn.Module | None) -> dict[str, Tensor]:
    """Masks of any form by name, which only the model can give to those of a list."""
    if model is not None:
        return checked_masks(model, given, "summary")
    if not isinstance(given, Mapping | str | os.PathLike):
        raise TypeError(
            f"summary: expected a model, masks by parameter name or a mask file, got {type(given).__name__}; "
            "a list of masks needs model= and input_size= or example_inputs="
        )
    return normal_masks(given, (), "summary")


def _unpruned(model: nn.Module, layers: Sequence[Layer]) -> list[Unpruned]:
    """What is in no row, by kind, most parameters first."""
    in_rows = {layer.parameter for layer in layers}
    kinds: dict[str, tuple[int, int]] = {}
    for weight in all_weights(model):
        if weight.parameter not in in_rows:
            count, size = kinds.get(weight.why_not, (0, 0))
            n = weight.parameter.numel()
            kinds[weight.why_not] = count + n, size + n * weight.parameter.element_size()
    found = [Unpruned(kind, count, size) for kind, (count, size) in kinds.items()]
    return sorted(found, key=lambda of: -of.weights)


def _with_paths(rows: Summary, model: nn.Module, masks: Mapping[str, Tensor], sample: Sample) -> Summary:
    """The rows with what is alive in them, or why that is unknown."""
    own = {layer.name: mask for layer in layers_of(model) if (mask := layer.mask) is not None}
    try:
        dense = _dense(model) if own else model
        alive = live(dense, {**own, **masks}, sample)
    except NoPathsError as error:
        return replace(rows, why_unknown=str(error))
    # A weight that layers share has one mask, and a row for each of them.
    names = dict(dense.named_parameters(remove_duplicate=False))
    known: dict[nn.Parameter | None, dict[str, Any]] = {
        names[name]: {"alive": int(of.sum()), "dead_units": dead}
        for (name, of), dead in zip(alive.items(), dead_units(alive).values(), strict=True)
    }
    known_rows = [replace(row, **known.get(names.get(row.name), {})) for row in rows.rows]
    return replace(rows, rows=known_rows, why_unknown="")


def _dense(model: nn.Module) -> nn.Module:
    try:
        return densify(model)
    except ValueError as error:
        raise NoPathsError(str(error)) from error


def _row_of_mask(name: str, mask: Tensor) -> SummaryRow:
    kept = int(mask.sum())
    flops = _flops(mask.shape, kept, None)
    return SummaryRow(name, tuple(mask.shape), mask.numel(), kept, _block(mask), flops, None, "mask")


def _row_of_layer(layer: Layer, calls: list[Call] | None) -> SummaryRow:
    module, mask, weights = layer.module, layer.mask, math.prod(layer.shape)
    kept = weights if mask is None else int(mask.sum())
    block = "" if mask is None else _block(mask.t() if layer.transposed else mask)
    if isinstance(module, Sparse):
        kept, block = module.values.numel(), f"{module.block[0]}x1"
    rows_first = layer.shape[::-1] if layer.transposed else layer.shape
    flops = _flops(rows_first, kept, calls, layer.attribute)
    counted = (weights, kept, block, flops, weight_bytes(layer))
    return SummaryRow(layer.name, layer.shape, *counted, describe(module), getattr(module, "choice", ""))


def _block(mask: Tensor) -> str:
    return f"{largest_block(mask.flatten(1)) if mask.dim() > 1 else 1}x1"


def _flops(
    shape: tuple[int, ...], kept: int, calls: list[Call] | None, attribute: str = "weight"
) -> int | None:
    """Of a weight (outputs, ...)."""
    if calls is not None and any(call.positions for call in calls):
        return round(2 * kept * sum(dict(call.positions).get(attribute, 0.0) for call in calls))
    if calls is None:
        return 2 * kept if len(shape) == 2 else None
    return 2 * kept * sum(math.prod(call.output) // max(shape[0], 1) for call in calls)


def describe(module: nn.Module) -> str:
    """How a layer computes: "sparse", "dense, masked" or "dense"; what slows it down in brackets."""
    if not isinstance(module, Sparse):
        return "dense, masked" if isinstance(module, Masked) else "dense"
    slow = []
    if not ops.has_kernels(module.values.device):
        slow.append("plain torch")
    elif module.values.dtype == torch.float64:
        slow.append("float64: no vector instructions")
    if getattr(module, "padding_mode", "zeros") != "zeros":
        slow.append(f"{module.padding_mode} padding by a copy")
    return f"sparse ({', '.join(slow)})" if slow else "sparse"


def weight_bytes(layer: Layer) -> int:
    """Bytes of a weight as it is stored: values and indices, or the dense matrix and its mask.

    Of a sparse layer, indices are the pattern's buffers, the copy of them that was checked, and plans.
    """
    module = layer.module
    tensors: list[Tensor] = [layer.parameter]
    if isinstance(module, Sparse):
        tensors += [module.crow, module.col, *module.pattern]
    elif isinstance(module, Masked) and layer.mask is not None:
        tensors.append(layer.mask)
    return sum(t.numel() * t.element_size() for t in tensors)
