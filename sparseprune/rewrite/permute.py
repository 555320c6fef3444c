"""Hidden units in another order: the outputs of one layer and the inputs of the next, which stays the same
function. Which layers allow it is read from torch.fx graphs; what is not known to be safe stays."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparseprune.rewrite.layout import POINTWISE
from sparseprune.rewrite.trace import Trace, called, has_hooks, trace_all

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Modules that treat every channel of images alike, and alone.
CHANNELWISE: tuple[type[nn.Module], ...] = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POINTWISE_FUNCTIONS: set[Callable[..., Any]] = {
    *(torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu),
    *(F.hardtanh, F.sigmoid, F.tanh, F.dropout),
}
POINTWISE_METHODS = {"relu", "relu_", "sigmoid", "tanh", "clone", "contiguous"}
CHANNELWISE_FUNCTIONS: set[Callable[..., Any]] = {
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.dropout2d),
}


class Hidden(NamedTuple):
    """A layer whose units may be permuted, by the names of modules.

    Attributes:
        layer: the Linear or Conv layer whose rows they are.
        norms: batch-norms between it and the next layer.
        next_layer: the layer whose inputs they are.
        run: columns of the next layer that one unit has: the positions of an image that was flattened.
    """

    layer: str
    norms: tuple[str, ...]
    next_layer: str
    run: int


def hidden_layers(model: nn.Module) -> dict[str, Hidden]:
    """The layers whose units may be permuted, as one other layer alone sees them: ``{module name: Hidden}``.

    That is where a Linear or Conv layer without groups is followed by another, through pointwise functions,
    dropout, batch-norm, pooling and flattening of all dimensions but the first, and nothing else sees what is
    between. All of these modules are called once, have no hooks, and share no parameter. The model is taken
    to get batches of samples, and a batch-norm after a linear layer to be over its features. Where torch.fx
    cannot follow the whole model, there are none.
    """
    traces = [trace for trace in trace_all(model) if trace.root is model]
    if not traces:
        return {}
    found = [{hidden.layer: hidden for hidden in _hidden(trace)} for trace in traces]
    # The same in training and in evaluation mode.
    return {name: hidden for name, hidden in found[0].items() if all(of.get(name) == hidden for of in found)}


def permute_units(model: nn.Module, hidden: Hidden, order: Tensor) -> None:
    """Put a layer's units in another order, in place: of its outputs, its batch-norms and the next inputs.

    Args:
        model: the network that ``hidden`` is of.
        hidden: the layer.
        order: int64 ``(rows,)``: the unit that comes to each place.
    """
    for name in (hidden.layer, *hidden.norms):
        module = model.get_submodule(name)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            # Not the number of batches that a batch-norm has seen.
            if tensor.dim() > 0:
                _permute(tensor, order, 0)
    columns = order[:, None] * hidden.run + torch.arange(hidden.run, device=order.device)
    weight = model.get_submodule(hidden.next_layer).weight
    assert isinstance(weight, Tensor)
    _permute(weight, columns.flatten(), 1)


def _permute(tensor: Tensor, order: Tensor, dim: int) -> None:
    with torch.no_grad():
        for numbers in (tensor, tensor.grad):
            if numbers is not None:
                numbers.copy_(numbers.index_select(dim, order.to(numbers.device)))


def _hidden(trace: Trace) -> list[Hidden]:
    safe = _safe_modules(trace)
    result = []
    for node in trace.graph.nodes:
        layer = called(trace, node)
        if node.target in safe and _is_layer(layer):
            hidden = _followed(trace, node, safe)
            if hidden is not None:
                result.append(hidden)
    return result


def _is_layer(module: nn.Module | None) -> bool:
    if type(module) in CONVOLUTIONS:
        return getattr(module, "groups", 1) == 1
    return type(module) is nn.Linear


def _safe_modules(trace: Trace) -> Mapping[Any, nn.Module]:
    """The modules that are called once, have no hooks, and whose parameters nothing else has or reads."""
    root, nodes = trace.root, list(trace.graph.nodes)
    calls = Counter(called(trace, node) for node in nodes if node.op == "call_module")
    owners = Counter(id(p) for _, p in root.named_parameters(remove_duplicate=False))
    read = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}
    # What a part that is not looked into does is not known.
    inside = {m for part in calls if part is not None for m in part.modules() if m is not part}
    return {
        node.target: module
        for node in nodes
        if (module := called(trace, node)) is not None
        and calls[module] == 1
        and not has_hooks(module)
        and module not in inside
        and str(node.target) not in read
        and all(owners[id(p)] == 1 for p in module.parameters())
    }


def _followed(trace: Trace, node: fx.Node, safe: Mapping[Any, nn.Module]) -> Hidden | None:
    """From a layer to the next one; None where what is between is not known to keep units apart."""
    layer, start = safe[node.target], node
    units = len(layer.get_parameter("weight"))
    is_image = type(layer) in CONVOLUTIONS
    flattened = False
    norms: list[str] = []
    while True:
        if len(node.users) != 1:
            return None
        source, node = node, next(iter(node.users))
        module = safe.get(node.target) if node.op == "call_module" else None
        # Only of what comes from the layer, and of nothing beside it.
        if node.all_input_nodes != [source] or node.args[:1] != (source,):
            return None
        if _is_layer(module):
            assert module is not None
            inputs = module.get_parameter("weight").shape[1]
            now_image = type(module) in CONVOLUTIONS
            run = inputs // units if flattened and is_image else 1
            if inputs != units * run or now_image != (is_image and not flattened):
                return None
            return Hidden(str(start.target), tuple(norms), str(node.target), run)
        if type(module) in NORMS:
            of_features = is_image or type(module) is nn.BatchNorm1d
            if flattened or not of_features or getattr(module, "num_features", 0) != units:
                return None
            norms.append(str(node.target))
        elif _is_flatten(node, module):
            flattened = True
        elif not _keeps_units(node, module, is_image and not flattened):
            return None


def _keeps_units(node: fx.Node, module: nn.Module | None, images: bool) -> bool:
    """Whether a node treats every unit alike and alone."""
    if node.op == "call_module":
        if type(module) in CHANNELWISE:
            return images and not getattr(module, "return_indices", False)
        return type(module) in POINTWISE
    if node.op == "call_function":
        if node.target in CHANNELWISE_FUNCTIONS:
            return images and not node.kwargs.get("return_indices")
        return node.target in POINTWISE_FUNCTIONS
    return node.op == "call_method" and node.target in POINTWISE_METHODS


def _is_flatten(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node flattens all dimensions but the first."""
    if node.op == "call_module":
        return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
    function = node.op == "call_function" and node.target is torch.flatten
    method = node.op == "call_method" and node.target == "flatten"
    if not (function or method):
        return False
    given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | dict(node.kwargs)
    return (given.get("start_dim", 0), given.get("end_dim", -1)) == (1, -1)
