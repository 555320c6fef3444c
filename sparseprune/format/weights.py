"""Which parameters of a model can be pruned, and why the others are not: one answer for the whole package."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# q, k and v have weights of their own where their sizes differ.
OF_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
# Layers, in timm, transformers and elsewhere, whose outputs are queries, keys and values, a third each.
FUSED = ("qkv", "to_qkv", "Wqkv", "c_attn")
THIRDS = ("queries", "keys", "values")


class Weight(NamedTuple):
    """A parameter of a model, and whether it can be pruned.

    Attributes:
        names: its names in the model; several where modules share it, or a module occurs twice.
        module: the first module that has it.
        attribute: its name there.
        parameter: the parameter itself.
        why_not: why it is not pruned; empty if it can be.
        shared: whether that is because several modules have it.
    """

    names: tuple[str, ...]
    module: nn.Module
    attribute: str
    parameter: nn.Parameter
    why_not: str
    shared: bool

    @property
    def name(self) -> str:
        return self.names[0]


def all_weights(model: nn.Module) -> list[Weight]:
    """Every parameter of the model, once, in the order of the modules.

    Prunable are the weights of Linear and Conv1d/2d/3d layers and of classes derived from them, the input
    projections of ``nn.MultiheadAttention``, and of transformers' classes the weight of ``Conv1D`` and the
    3-d weights of experts. A parameter that several modules have is not, since they would all have to agree
    on its mask.
    """
    uses: dict[nn.Parameter, dict[str, tuple[nn.Module, str]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                name = f"{prefix}.{attribute}" if prefix else attribute
                uses.setdefault(parameter, {})[name] = (module, attribute)
    return [_weight(parameter, places) for parameter, places in uses.items()]


def weight_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of a module, without its children's, that can be pruned."""
    names: tuple[str, ...] = ()
    if isinstance(module, LAYERS) or is_transposed(type(module)):
        names = ("weight",)
    elif isinstance(module, nn.MultiheadAttention):
        names = OF_ATTENTION
    elif _of_transformers(type(module), "Experts"):
        names = tuple(name for name, p in module._parameters.items() if p is not None and p.dim() == 3)
    return tuple(name for name in names if module._parameters.get(name) is not None)


def is_transposed(kind: type[nn.Module]) -> bool:
    """Whether this is transformers' ``Conv1D``, a linear layer with a weight (in_features, out_features)."""
    return _of_transformers(kind, "Conv1D")


class Stored(NamedTuple):
    """How a weight is stored whose first dimension is not its layer's outputs.

    Attributes:
        transposed: whether the last two dimensions are inputs and outputs, and not outputs and inputs.
        experts: number of experts that the first dimension counts; 0 where there are none.
    """

    transposed: bool
    experts: int


def stored_otherwise(model: nn.Module) -> dict[str, Stored]:
    """The prunable weights of a model that are not stored as (outputs, inputs, ...), by name."""
    found: dict[str, Stored] = {}
    for weight in all_weights(model):
        if weight.why_not:
            continue
        if is_transposed(type(weight.module)):
            found[weight.name] = Stored(True, 0)
        elif _of_transformers(type(weight.module), "Experts"):
            transposed = bool(getattr(weight.module, "is_transposed", False))
            found[weight.name] = Stored(transposed, len(weight.parameter))
    return found


def outputs_first(tensors: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """Tensors of the weights' shapes as (outputs, inputs, ...); those of experts one below the other.

    Args:
        tensors: by the names of the weights.
        stored: what :func:`stored_otherwise` gives.
    Returns:
        contiguous tensors; all others are handed on as they are.
    """
    result = dict(tensors)
    for name in stored.keys() & tensors.keys():
        tensor = result[name].transpose(-2, -1) if stored[name].transposed else result[name]
        result[name] = (tensor.flatten(0, 1) if stored[name].experts else tensor).contiguous()
    return result


def as_stored(tensors: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """What :func:`outputs_first` made, as it was."""
    result = dict(tensors)
    for name in stored.keys() & tensors.keys():
        tensor, (transposed, experts) = result[name], stored[name]
        tensor = tensor.unflatten(0, (experts, len(tensor) // experts)) if experts else tensor
        result[name] = (tensor.transpose(-2, -1) if transposed else tensor).contiguous()
    return result


def fused_projections(model: nn.Module) -> list[str]:
    """Names of the prunable weights whose outputs are queries, keys and values, a third each.

    They are that of an ``nn.MultiheadAttention``, and those of layers with three times as many outputs as
    inputs and one of the names ``FUSED``.
    """
    found = []
    for weight in all_weights(model):
        layer = weight.name.split(".")[-2:-1]
        outputs, inputs = _sizes(weight)
        named = bool(layer) and layer[0] in FUSED and outputs == 3 * inputs > 0
        if not weight.why_not and (weight.attribute == OF_ATTENTION[0] or named):
            found.append(weight.name)
    return found


def in_thirds(tensors: Mapping[str, Tensor], fused: Collection[str]) -> dict[str, Tensor]:
    """Tensors by name, those of fused projections in three: of queries, keys and values.

    Args:
        tensors: (outputs, inputs, ...), by the names of the weights.
        fused: what :func:`fused_projections` gives.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        thirds = zip(THIRDS, tensor.chunk(3), strict=True) if name in fused else [("", tensor)]
        result |= {f"{name}.{third}" if third else name: part for third, part in thirds}
    return result


def in_one(tensors: Mapping[str, Tensor], fused: Collection[str]) -> dict[str, Tensor]:
    """What :func:`in_thirds` split, as it was."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole, _, third = name.rpartition(".")
        if third in THIRDS and whole in fused:
            tensor = torch.cat([result[whole], tensor]) if whole in result else tensor
            name = whole
        result[name] = tensor
    return result


def _sizes(weight: Weight) -> tuple[int, int]:
    """Outputs and inputs of a matrix; zeros for anything else, such as a lazy layer's."""
    if isinstance(weight.parameter, nn.parameter.UninitializedParameter) or weight.parameter.dim() != 2:
        return 0, 0
    outputs, inputs = weight.parameter.shape
    return (inputs, outputs) if is_transposed(type(weight.module)) else (outputs, inputs)


def _of_transformers(kind: type[nn.Module], ending: str) -> bool:
    # By name, for transformers need not be installed.
    return any(
        base.__module__.startswith("transformers.") and base.__name__.endswith(ending)
        for base in kind.__mro__
    )


def _weight(parameter: nn.Parameter, places: dict[str, tuple[nn.Module, str]]) -> Weight:
    names = tuple(places)
    module, attribute = places[names[0]]
    able = [attribute in weight_names(module) for module, attribute in places.values()]
    shared = any(able) and len(set(places.values())) > 1
    why_not = ""
    if shared:
        why_not = f"shared by {', '.join(names)}"
    elif not any(able):
        why_not = "bias" if attribute.endswith("bias") else type(module).__name__
    return Weight(names, module, attribute, parameter, why_not, shared)
