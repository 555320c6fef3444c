"""A pruned model as a model of sparse layers, and back."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from sparseprune.cost.calls import Call, record_calls
from sparseprune.cost.choice import Assumption, Choice, assume, choose, key_of
from sparseprune.cost.progress import progress
from sparseprune.format.bsr import check_mask
from sparseprune.nn import SparseConv2d, SparseLinear
from sparseprune.nn.conv import FEW_SAMPLES
from sparseprune.nn.kinds import SPARSE, Sparse, why_not_sparse
from sparseprune.nn.masked import CLASSES, DenseLayer, Masked, dense_from_masked, masked_from_dense
from sparseprune.rewrite import fuse as fusion
from sparseprune.rewrite.layout import mark_layout

Layers = Literal["measured", "sparse", "dense"]


def sparsify(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    *,
    inplace: bool = False,
    layers: Layers = "measured",
    batch_size: int = 256,
    input_size: Sequence[int] | None = None,
    fuse: bool = True,
) -> nn.Module:
    """Replace the masked layers of a model by sparse ones where that is faster.

    They are :class:`SparseLinear`, :class:`SparseConv2d` and :class:`SparseConv1d`. A layer that would be
    slower sparse than dense, or that has no sparse kernels, stays dense with its mask enforced on weights and
    gradients; :func:`summary` says which and why. Between two sparse convolutions a dense one must make up
    for the conversion of its activations, too. The mask's largest blocks of V x 1 are used.

    Between sparse layers activations lie batch-innermost in memory, through batch-norm, pointwise functions,
    residual additions, pooling and flattening, as far as torch.fx can follow the model: shapes and numbers
    are those of the dense model, and what is not known gets contiguous tensors (see ``batch_inner`` of
    :class:`SparseLinear` and :class:`SparseConv2d`).

    A sparse linear layer takes over the ``nn.ReLU`` that directly follows it in an ``nn.Sequential``
    (``relu``), and a batch-norm between sparse convolutions (:class:`BatchNormAct2d`) the ReLU and the
    residual addition before it. A :class:`FusedReLU`, which does nothing, stands in a module's place: names,
    indices and numbers stay the same, but what the layer itself returns, as in ``model[:1]`` or to a hook, is
    after the ReLU. What occurs twice or has hooks is left as it is; ``fuse=False`` leaves all.

    Args:
        model: any model; left untouched unless ``inplace``.
        masks: ``{parameter name: bool tensor of the weight's shape}``, True = keep, as :func:`prune` returns
            them. Layers without a mask stay as they are.
        inplace: replace the layers within ``model`` itself.
        layers: "measured" times training steps of every layer both ways on this machine, once: the seconds
            are kept in a file (see :mod:`sparseprune.cost.cache`), unless other processes disturbed them, as
            the choice in :func:`summary` then says. "sparse" and "dense" (masked) force one way, for
            reproducible module types.
        batch_size: samples in a training step, for the measurement.
        input_size: shape of one sample, such as (3, 32, 32): one forward pass of a copy tells what sizes of
            images the convolutions meet, on which their time depends. Without it they are not measured:
            sparse where they keep at most 30 % of the weights (50 % in blocks of 4 or more output channels;
            half as many with fewer than 16 samples), in float32.
        fuse: whether sparse layers take over ReLUs, and batch-norms and pools are replaced.
    Returns:
        a new model that shares no tensor with ``model``, or ``model`` itself if ``inplace``.
    Raises:
        TypeError, ValueError: a mask or ``input_size`` does not fit; the model is unchanged.
    """
    if layers not in ("measured", "sparse", "dense"):
        raise ValueError(f'sparsify: expected layers="measured", "sparse" or "dense", got {layers!r}')
    if batch_size < 1:
        raise ValueError(f"sparsify: expected batch_size >= 1, got {batch_size}")
    modules = _masked_modules(model, masks)
    calls: dict[nn.Module, Call] = {}  # the first of each layer
    if input_size is not None and layers == "measured":
        recorded = record_calls(model, input_size, "sparsify")
        calls = {layer: of_layer[0] for layer, of_layer in recorded.items()}
    replacements = _replacements(modules, masks, layers, batch_size, calls)
    result = _replace(model, replacements, inplace)
    if fuse:
        result = fusion.fuse(result)
    mark_layout(result)
    return result


def _replacements(
    modules: Mapping[str, DenseLayer],
    masks: Mapping[str, Tensor],
    layers: Layers,
    batch_size: int,
    calls: Mapping[nn.Module, Call],
) -> dict[nn.Module, Sparse | Masked]:
    """A sparse or a masked layer for every module, by what was asked for or measured."""
    replacements: dict[nn.Module, Sparse | Masked] = {}
    slower: dict[nn.Module, tuple[Sparse, Callable[[], Masked]]] = {}  # layers that are faster dense, alone
    known: dict[str, Choice] = {}  # a shape is measured once, also where there is no file
    for name, module in progress("replacing layers", modules.items()):
        mask = masks[name]
        make_dense = functools.partial(masked_from_dense, module, mask)
        reason = "asked for" if layers == "dense" else why_not_sparse(module)
        replacement: Sparse | Masked
        if reason:
            replacement = make_dense()
            replacement.choice = reason
        else:
            replacement = sparse = SPARSE[type(module)].from_dense(module, mask)
            if layers == "measured":
                choice = _choice(sparse, make_dense, batch_size, calls.get(module), known)
                if not choice.use_sparse:
                    replacement, slower[module] = make_dense(), (sparse, make_dense)
                replacement.choice = str(choice)
        replacements[module] = replacement
    if batch_size >= FEW_SAMPLES:
        for conv in _between_sparse(list(calls), replacements):
            if conv in slower:
                choice = _choice(*slower[conv], batch_size, calls[conv], known, between_sparse=True)
                if choice.use_sparse:
                    replacements[conv] = slower[conv][0]
                replacements[conv].choice = f"{choice}, between sparse layers"
    for replaced, chosen in replacements.items():
        if isinstance(chosen, Sparse):
            # Measuring has not called them.
            _take_hooks(chosen, replaced)
    return replacements


def _take_hooks(replacement: nn.Module, module: nn.Module) -> None:
    for name, value in vars(module).items():
        if "_hooks" in name and isinstance(value, dict):
            setattr(replacement, name, value.copy())
    replacement._is_full_backward_hook = module._is_full_backward_hook


def _choice(
    sparse: Sparse,
    make_dense: Callable[[], nn.Module],
    batch_size: int,
    call: Call | None,
    known: dict[str, Choice],
    between_sparse: bool = False,
) -> Choice | Assumption:
    if call is None and not isinstance(sparse, SparseLinear):
        return assume(sparse, batch_size)
    key = key_of(sparse, batch_size, call, between_sparse)
    if key not in known:
        known[key] = choose(sparse, make_dense, batch_size, call, between_sparse=between_sparse)
    return known[key]


def _between_sparse(
    called: Sequence[nn.Module], replacements: Mapping[nn.Module, nn.Module]
) -> list[nn.Module]:
    """2-d convolutions of which the one called before and the one called after become sparse."""
    convs = [layer for layer in called if isinstance(layer, nn.Conv2d)]
    is_sparse = [isinstance(replacements.get(conv), SparseConv2d) for conv in convs]
    around = [is_sparse[max(i - 1, 0) : i] + is_sparse[i + 1 : i + 2] for i in range(len(convs))]
    return [conv for conv, both in zip(convs, around, strict=True) if both and all(both)]


def densify(model: nn.Module) -> nn.Module:
    """A new, ordinary torch model with the same weights, zeros in place of the pruned ones.

    Raises:
        ValueError: a sparse layer has a ReLU, and no :class:`FusedReLU` follows that could hold it.
    """
    result = fusion.unfuse(model)
    replacements: dict[nn.Module, nn.Module] = {}
    for module in result.modules():
        if isinstance(module, Sparse):
            replacements[module] = module.to_dense()
        elif isinstance(module, Masked):
            replacements[module] = dense_from_masked(module)
    if result in replacements:
        return replacements[result]
    return _replace(result, replacements, inplace=True)


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
    fusion.replace_in_place(model, replacements)
    return model
