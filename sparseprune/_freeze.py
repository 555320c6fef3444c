"""A model for inference, with batch-norms folded into the layers before them."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from sparseprune.nn import FusedReLU, SparseConv1d, SparseConv2d, SparseLinear
from sparseprune.nn.batch_norm import BatchNormAct2d, BatchNormAnyAct2d
from sparseprune.nn.frozen import AddAct2d, FoldedNorm1d, SparseConvAct2d
from sparseprune.nn.kinds import to_dense
from sparseprune.nn.masked import CLASSES as MASKED_CLASSES
from sparseprune.nn.sparse import SparseLayer
from sparseprune.ops.devices import dtypes_of_sums
from sparseprune.rewrite import fuse as fusion
from sparseprune.rewrite.layout import mark_layout
from sparseprune.rewrite.trace import called, has_hooks

LINEAR: tuple[type[nn.Module], ...] = (nn.Linear, SparseLinear)
CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, SparseConv1d, SparseConv2d)
NORMS: tuple[type[nn.Module], ...] = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(BatchNormAct2d, BatchNormAnyAct2d),
)


def freeze(model: nn.Module) -> nn.Module:
    """A copy of a model for inference: faster, in evaluation mode, with nothing to train.

    Batch-norms become part of the weights and biases of the convolutions and linear layers before them, and
    sparse convolutions compute the residual addition and the ReLU after them while they write their
    results. Masked layers become ordinary ones. That is done as far as torch.fx can follow the model, for
    layers whose result nothing else reads, that are called once and have no hooks; all else stays as it is.
    Numbers are those of ``model.eval()`` but for roundings.

    A folded layer's place is taken by an ``nn.Identity``, and its batch-norm's, or its ReLU's, by the layer:
    the copy's ``state_dict`` is one of its own. Export it, or make it anew from a checkpoint of ``model``.

    Args:
        model: any model, usually one that :func:`sparsify` returned and that was trained; left untouched.
    Returns:
        a new model that shares no tensor with ``model``.
    Raises:
        TypeError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"freeze: expected a torch.nn.Module, got {type(model).__name__}")
    dense = {id(m): to_dense(m) for m in model.modules() if type(m) in MASKED_CLASSES.values()}
    result: nn.Module = copy.deepcopy(model, dense)
    fusion.fuse(result)
    replacements: dict[nn.Module, nn.Module] = {}
    for layer, after in _pairs(result):
        if isinstance(after, NORMS):
            _fold(layer, after)
        relu = isinstance(after, nn.ReLU) or getattr(after, "applies_relu", False)
        if isinstance(layer, SparseConv2d) or (isinstance(after, BatchNormAct2d) and _is_stem(layer)):
            conv = layer if isinstance(layer, SparseConv2d) else _with_all_weights(layer)
            conv.__class__ = SparseConvAct2d
            conv.relu = relu
            replacements |= {layer: nn.Identity(), after: conv}
        elif isinstance(layer, SparseLinear) and relu:
            layer.relu = True
            replacements[after] = FusedReLU()
        elif isinstance(after, BatchNormAct2d):
            replacements[after] = AddAct2d(relu)
        else:
            replacements[after] = FoldedNorm1d() if isinstance(layer, LINEAR) else nn.Identity()
        if isinstance(after, BatchNormAnyAct2d) and not (relu or after.is_last):
            replacements[after] = nn.Sequential(replacements[after], after.act)
    fusion.replace_in_place(result, replacements)
    _fuse_forwards(result)
    mark_layout(result)
    return result.eval().requires_grad_(False)


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Layers and the batch-norms, or the ReLUs after sparse layers, that alone read their results."""
    traces = fusion.traces_of_roots(model)
    calls = fusion.count_calls(traces)
    for trace in traces:
        for node in trace.graph.nodes:
            after = called(trace, node)
            source = node.args[0] if node.args else None
            layer = called(trace, source) if isinstance(source, fx.Node) and len(source.users) == 1 else None
            if after is None or layer is None:
                continue
            alone = all(calls[m] == 1 and not has_hooks(m) for m in (layer, after))
            if alone and not parametrize.is_parametrized(layer) and _fits(layer, after):
                yield layer, after


def _fits(layer: nn.Module, after: nn.Module) -> bool:
    """Whether the layer can take in what follows it."""
    if getattr(layer, "relu", False):
        return False
    if type(after) is nn.ReLU:
        return type(layer) in (SparseConv2d, SparseLinear)
    if isinstance(after, BatchNormAnyAct2d) and type(after.drop) is not nn.Identity:
        return False
    # Without running statistics those of the batch count, in evaluation too.
    return type(after) in NORMS and after.running_mean is not None and type(layer) in (*LINEAR, *CONVOLUTIONS)


def _fuse_forwards(model: nn.Module) -> None:
    """Let sparse convolutions take in the additions and ReLUs that follow them in forwards."""
    convs: list[Any] = [m for m in model.modules() if type(m) is SparseConv2d]
    for conv in convs:
        conv.__class__, conv.relu = SparseConvAct2d, False
    fused = fusion.fuse_forwards(model, fusion.count_calls(fusion.traces_of_roots(model)))
    for conv in convs:
        if conv not in fused:
            conv.__class__ = SparseConv2d
            del conv.relu


def _is_stem(layer: Any) -> bool:
    """Whether a dense layer is a convolution of so few channels that sparse kernels are faster.

    They are where samples are innermost, as its output is wanted: 2 to 5 times, with all weights kept.
    """
    few_channels = type(layer) is nn.Conv2d and layer.groups == 1 and layer.in_channels <= 4
    return few_channels and layer.weight.is_cpu and layer.weight.dtype in dtypes_of_sums(layer.weight.device)


def _with_all_weights(conv: Any) -> SparseConv2d:
    return SparseConv2d.from_dense(conv, torch.ones_like(conv.weight, dtype=torch.bool))


def _fold(layer: Any, norm: Any) -> None:
    """Make the layer compute ``norm(layer(x))``: its rows times a factor, and another bias."""
    with torch.no_grad():
        factor = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            factor = factor * norm.weight.double()
        bias = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean
        bias = bias * factor
        if norm.bias is not None:
            bias = bias + norm.bias
        if isinstance(layer, SparseLayer):
            crow, *_ = layer.pattern
            weight = layer.values
            of_blocks = factor.view(-1, layer.block[0]).repeat_interleave(crow.diff(), 0)
            weight.copy_(weight.double() * of_blocks)
        else:
            weight = layer.weight
            weight.copy_((weight.double().flatten(1) * factor[:, None]).view_as(weight))
        layer.bias = nn.Parameter(bias.to(weight.dtype))
