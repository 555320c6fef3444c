"""A pruned model as a model of sparse layers, and back."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from sparseprune import ops
from sparseprune.choice import Choice, choose, key_of
from sparseprune.layout import fusible_relus, mark_runs, neighbours
from sparseprune.nn import FusedReLU, SparseLinear
from sparseprune.nn.masked import CLASSES, DenseLayer, Masked, dense_from_masked, masked_from_dense
from sparseprune.pattern import check_mask

Layers = Literal["measured", "sparse", "dense"]


def sparsify(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    *,
    inplace: bool = False,
    layers: Layers = "measured",
    batch_size: int = 256,
    fuse: bool = True,
) -> nn.Module:
    """Replace the masked layers of a model: a linear one by a :class:`SparseLinear` where that is faster.

    A layer that would be slower sparse than dense, or that has no sparse kernels, stays dense with its mask
    enforced on weights and gradients; :func:`summary` says which and why. The mask's largest blocks of V x 1
    are used. Sparse layers that follow one another in an ``nn.Sequential``, with pointwise modules between
    them, hand on activations batch-innermost in memory: shapes and numbers are those of the dense model, and
    what comes after the last of them is contiguous (see :class:`SparseLinear`, ``batch_inner``).

    A sparse layer takes over the ``nn.ReLU`` that directly follows it in an ``nn.Sequential`` (``relu``), and
    a :class:`FusedReLU`, which does nothing, stands in its place: names, indices and numbers stay the same,
    but what the layer itself returns, as in ``model[:1]`` or to a hook, is after the ReLU. A layer or ReLU
    that occurs twice or has hooks is left as it is; ``fuse=False`` leaves all.

    Args:
        model: any model; left untouched unless ``inplace``.
        masks: ``{parameter name: bool tensor of the weight's shape}``, True = keep, as :func:`prune` returns
            them. Layers without a mask stay as they are.
        inplace: replace the layers within ``model`` itself.
        layers: "measured" times training steps of every layer both ways on this machine, once: the seconds
            are kept in a file (see :mod:`sparseprune.choice`). "sparse" and "dense" (masked) force one way,
            for reproducible module types.
        batch_size: samples in a training step, for the measurement.
        fuse: whether sparse layers take over ReLUs.
    Returns:
        a new model that shares no tensor with ``model``, or ``model`` itself if ``inplace``.
    Raises:
        TypeError, ValueError: a mask does not fit; the model is unchanged.
    """
    if layers not in ("measured", "sparse", "dense"):
        raise ValueError(f'sparsify: expected layers="measured", "sparse" or "dense", got {layers!r}')
    if batch_size < 1:
        raise ValueError(f"sparsify: expected batch_size >= 1, got {batch_size}")
    replacements: dict[nn.Module, nn.Module] = {}
    choices: dict[str, Choice] = {}  # a shape is measured once, also where there is no file
    for name, module in _masked_modules(model, masks).items():
        mask = masks[name]
        if isinstance(module, nn.Linear) and layers != "dense":
            sparse = SparseLinear.from_dense(module, mask)
            if layers == "sparse":
                replacements[module] = sparse
                continue
            make_dense = functools.partial(masked_from_dense, module, mask)
            key = key_of(sparse, batch_size)
            if key not in choices:
                choices[key] = choose(sparse, make_dense, batch_size)
            replacement: SparseLinear | Masked = sparse if choices[key].use_sparse else make_dense()
            replacement.choice = str(choices[key])
        else:
            replacement = masked_from_dense(module, mask)
            replacement.choice = (
                "asked for" if layers == "dense" else "no sparse kernels for convolutions yet"
            )
        replacements[module] = replacement
    if fuse:
        for before, relu in fusible_relus(model).items():
            layer = replacements.get(before)
            if isinstance(layer, SparseLinear):
                layer.relu = True
                replacements[relu] = FusedReLU(relu.inplace).train(relu.training)
    result = _replace(model, replacements, inplace)
    mark_runs(result)
    return result


def densify(model: nn.Module) -> nn.Module:
    """A new, ordinary torch model with the same weights, zeros in place of the pruned ones.

    Raises:
        ValueError: a sparse layer has a ReLU, and no :class:`FusedReLU` follows that could hold it.
    """
    before_relu = {module for module, after in neighbours(model) if isinstance(after, FusedReLU)}
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            if module.relu and module not in before_relu:
                raise ValueError(
                    f"densify: expected a FusedReLU after {name or 'the layer'!r} in an nn.Sequential, since "
                    "nn.Linear cannot hold its ReLU (relu=True), got none; sparsify(fuse=False) keeps ReLUs "
                    "apart"
                )
            replacements[module] = module.to_dense()
        elif isinstance(module, FusedReLU):
            replacements[module] = nn.ReLU(module.inplace).train(module.training)
        elif isinstance(module, Masked):
            replacements[module] = dense_from_masked(module)
    return _replace(model, replacements, inplace=False)


def _masked_modules(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, DenseLayer]:
    """``{parameter name: the layer it is the weight of}``, every mask checked, nothing changed."""
    owners: dict[str, nn.Module] = {}
    for module_name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners[f"{module_name}.weight" if module_name else "weight"] = module
    found: dict[str, DenseLayer] = {}
    for name, mask in masks.items():
        if name not in owners:
            known = ", ".join(owners) or "none"
            raise ValueError(f"sparsify: expected masks for weights of the model ({known}), got {name!r}")
        module = owners[name]
        if type(module) not in CLASSES or not isinstance(module, DenseLayer):
            raise TypeError(
                f"sparsify: expected {name!r} to be the weight of a Linear or Conv layer, got one of "
                f"{type(module).__name__}; exclude it in prune(), or use apply_masks()"
            )
        sharing = [other for other, m in owners.items() if m is not module and m.weight is module.weight]
        if sharing:
            raise ValueError(
                f"sparsify: {name!r} is shared with {', '.join(sharing)}; a sparse layer cannot share its "
                "weight, so exclude it in prune()"
            )
        check_mask(mask, module.weight.shape, f"sparsify: {name!r}")
        found[name] = module
    return found


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module], inplace: bool) -> nn.Module:
    if not inplace:
        # deepcopy takes a replacement from the memo wherever it meets a replaced layer, so that no dense
        # weight is copied in vain and a layer used twice is still one layer.
        return copy.deepcopy(model, {id(old): new for old, new in replacements.items()})
    if model in replacements:
        raise ValueError(
            "sparsify: a single layer cannot be replaced in place; use the returned copy (inplace=False)"
        )
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() omits a layer's second name
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])
    return model


def describe(module: nn.Module) -> str:
    """How a layer computes: "sparse", "dense, masked" or "dense"."""
    if isinstance(module, SparseLinear):
        return "sparse" if ops.extension is not None else "sparse (plain torch)"
    return "dense, masked" if isinstance(module, Masked) else "dense"


def weight_bytes(module: SparseLinear | Masked | DenseLayer) -> int:
    """Bytes of the weight as it is stored: values and indices, or the dense matrix and its mask."""
    if isinstance(module, SparseLinear):
        tensors: list[Tensor] = [module.values, *module.pattern]
    elif isinstance(module, Masked):
        tensors = [module.weight, module.mask]
    else:
        tensors = [module.weight]
    return sum(t.numel() * t.element_size() for t in tensors)
