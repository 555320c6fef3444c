"""A pruned model as a model of sparse layers, and back."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from sparseprune.cost.calls import Call, record_calls
from sparseprune.cost.choice import Assumption, Choice, assume, choose, key_of
from sparseprune.cost.progress import progress
from sparseprune.format.bsr import check_mask
from sparseprune.format.masks import MasksLike, masks_of
from sparseprune.format.weights import Weight, all_weights
from sparseprune.nn import SparseConv2d, SparseLinear
from sparseprune.nn.attention import ProjectedAttention, why_not_projected
from sparseprune.nn.conv import FEW_SAMPLES
from sparseprune.nn.kinds import Sparse, sparse_from_dense, to_dense, why_not_sparse
from sparseprune.nn.masked import Masked, masked_from_dense
from sparseprune.rewrite import fuse as fusion
from sparseprune.rewrite.fast_path import with_fast_path, without_fast_path
from sparseprune.rewrite.forward import reads_weights
from sparseprune.rewrite.layout import mark_layout
from sparseprune.scores.ranks import of_rank_0
from sparseprune.scores.samples import Sample, sample_given

Layers = Literal["measured", "sparse", "dense"]


def sparsify(
    model: nn.Module,
    masks: MasksLike,
    *,
    inplace: bool = False,
    layers: Layers | Mapping[str, Layers] = "measured",
    batch_size: int = 256,
    input_size: Sample | None = None,
    example_inputs: Any = None,
    fuse: bool = True,
) -> nn.Module:
    """Replace the masked layers of a model by sparse ones where that is faster.

    They are :class:`SparseLinear`, :class:`SparseConv2d` and :class:`SparseConv1d`, also for classes derived
    from torch's that leave the forward as it is, and for transformers' ``Conv1D``. A layer that would be
    slower sparse than dense, or that has no sparse kernels, stays dense, of its class, with its mask enforced
    on weights and gradients; :func:`summary` says which and why. Between two sparse convolutions a dense one
    must make up for the conversion of its activations, too. The mask's largest blocks of V x 1 are used.

    An ``nn.MultiheadAttention`` with masks becomes a :class:`sparseprune.nn.attention.ProjectedAttention`,
    which calls its projections, and ``nn.TransformerEncoder`` does not take its fast path in evaluation,
    which computes with dense weights.

    Between sparse layers activations lie batch-innermost in memory, through batch-norm, pointwise functions,
    residual additions, pooling and flattening, as far as torch.fx can follow the model: shapes and numbers
    are those of the dense model, and what is not known gets contiguous tensors (see ``batch_inner`` of
    :class:`SparseLinear` and :class:`SparseConv2d`).

    A sparse linear layer takes over the ReLU that directly follows it, a module or a function (``relu``), and
    a batch-norm between sparse convolutions (:class:`BatchNormAct2d`) the ReLU and the residual addition
    before it. In an ``nn.Sequential`` a :class:`FusedReLU`, which does nothing, stands in a module's place:
    names, indices and numbers stay the same, but what the layer itself returns, as in ``model[:1]`` or to a
    hook, is after the ReLU. What occurs twice or has hooks is left as it is; ``fuse=False`` leaves all.

    Under torch.distributed every rank must call this where layers are measured: all take rank 0's choices.
    Measuring shows a bar in a terminal or a notebook (with rich, and ipywidgets, installed); it is silent
    elsewhere, unless the logger ``sparseprune`` is at INFO, which then gets a line for each layer.

    Args:
        model: any model; left untouched unless ``inplace``.
        masks: ``{parameter name: mask of its shape}``, True or 1 = keep, as :func:`prune` returns them;
            or a list of masks in the order of the prunable weights; or a mask file that ``sparseprune prune``
            wrote. Masks may be arrays of numpy and of any type; names may have the prefixes of wrappers
            (``module.``, ``_orig_mod.``). Layers without a mask stay as they are.
        inplace: replace the layers within ``model`` itself.
        layers: "measured" times training steps of every layer both ways on this machine, once: the seconds
            are kept in a file (see :mod:`sparseprune.cost.cache`), unless other processes disturbed them, as
            the choice in :func:`summary` then says. "sparse" and "dense" (masked) force one way, for
            reproducible module types; a dict does so by the names of masks.
        batch_size: samples in a training step, for the measurement.
        input_size: shape of one sample, such as (3, 32, 32): one forward pass of a copy tells what sizes of
            images the convolutions meet, on which their time depends. Without it they are not measured:
            sparse where they keep at most 30 % of the weights (50 % in blocks of 4 or more output channels;
            half as many with fewer than 16 samples), in float32.
        example_inputs: in place of ``input_size``, what the model is called with, of any number of samples: a
            tensor, a tuple, a dict of keyword arguments, or a pair (args, kwargs).
        fuse: whether sparse layers take over ReLUs, and batch-norms and pools are replaced.
    Returns:
        a new model that shares no tensor with ``model``, or ``model`` itself if ``inplace``.
    Raises:
        TypeError, ValueError: a mask or the samples do not fit; the model is unchanged.
    """
    for way in layers.values() if isinstance(layers, Mapping) else [layers]:
        if way not in ("measured", "sparse", "dense"):
            raise ValueError(f'sparsify: expected layers="measured", "sparse" or "dense", got {way!r}')
    if batch_size < 1:
        raise ValueError(f"sparsify: expected batch_size >= 1, got {batch_size}")
    weights = all_weights(model)
    masks = masks_of(model, masks, "sparsify")
    found = _weights_of(weights, masks)
    calls: dict[nn.Module, Call] = {}  # the first of each layer
    sample = sample_given("sparsify", input_size, example_inputs)
    ways = {name: layers.get(name, "measured") if isinstance(layers, Mapping) else layers for name in found}
    if sample is not None and "measured" in ways.values():
        recorded = record_calls(model, sample, "sparsify")
        calls = {layer: of_layer[0] for layer, of_layer in recorded.items() if not of_layer[0].positions}
    projected: dict[nn.Module, ProjectedAttention] = {
        attention: ProjectedAttention.from_attention(attention) for attention in _to_project(model, found)
    }
    parts, others = _parts(model, found, masks, ways, projected)
    replacements = _replacements(parts, batch_size, calls)
    for attention in projected.values():
        fusion.replace_in_place(attention, replacements)
    replacements |= projected
    memo = {id(old): new for old, new in replacements.items()}
    for module, its_masks in others.items():
        replacements[module] = masked_from_dense(module, its_masks, memo)
    result = _replace(model, replacements, inplace)
    if fuse:
        result = fusion.fuse(result)
    mark_layout(result)
    without_fast_path(result)
    return result


class _Part(NamedTuple):
    """A layer that gets a mask: the module to be replaced, and the same as it is dense, alone."""

    module: nn.Module
    dense: nn.Module
    mask: Tensor
    way: Layers
    why_not_sparse: str
    is_read: bool = False  # by its parent, which may not call it


def _replacements(
    parts: Sequence[_Part], batch_size: int, calls: Mapping[nn.Module, Call]
) -> dict[nn.Module, nn.Module]:
    """A sparse or a masked layer for every module, by what was asked for or measured."""
    replacements: dict[nn.Module, Any] = {}
    slower: dict[nn.Module, tuple[Sparse, Callable[[], Masked]]] = {}  # layers that are faster dense, alone
    known: dict[str, Choice] = {}  # a shape is measured once, also where there is no file
    for module, dense, mask, way, why_not, is_read in progress("replacing layers", parts):
        make_dense = functools.partial(masked_from_dense, dense, mask, is_read=is_read)
        reason = "asked for" if way == "dense" else why_not
        replacement: Sparse | Masked
        if reason:
            replacement = make_dense()
            replacement.choice = reason
        else:
            replacement = sparse = sparse_from_dense(dense, mask)
            if way == "measured":
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
        choice = choose(sparse, make_dense, batch_size, call, between_sparse=between_sparse)
        known[key] = of_rank_0(choice)
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
        if isinstance(module, Sparse | Masked | ProjectedAttention):
            replacements[module] = to_dense(module)
    with_fast_path(result)
    if result in replacements:
        return replacements[result]
    return _replace(result, replacements, inplace=True)


def _weights_of(weights: Sequence[Weight], masks: Mapping[str, Tensor]) -> dict[str, Weight]:
    """The weight of every mask, of those of a model, all checked, nothing changed."""
    names = {name: weight for weight in weights for name in weight.names}
    found: dict[str, Weight] = {}
    for name, mask in masks.items():
        weight = names.get(name)
        if weight is None or not (weight.attribute == "weight" or not weight.why_not or weight.shared):
            known = ", ".join(n for n, w in names.items() if w.attribute == "weight" or not w.why_not)
            raise ValueError(
                f"sparsify: expected masks for weights of the model ({known or 'none'}), got {name!r}"
            )
        if weight.shared:
            others = ", ".join(other for other in weight.names if other != name)
            raise ValueError(
                f"sparsify: {name!r} is shared with {others}; a sparse layer cannot share its "
                "weight, so exclude it in prune()"
            )
        if weight.why_not:
            raise TypeError(
                f"sparsify: expected {name!r} to be the weight of a Linear or Conv layer, got one of "
                f"{type(weight.module).__name__}; exclude it in prune(), or use apply_masks()"
            )
        check_mask(mask, weight.parameter.shape, f"sparsify: {name!r}")
        if twice := [other for other, known in found.items() if known is weight]:
            raise ValueError(f"sparsify: expected one mask of a weight, got {twice[0]!r} and {name!r}")
        found[name] = weight
    return found


def _to_project(model: nn.Module, found: Mapping[str, Weight]) -> list[nn.MultiheadAttention]:
    """The attentions with a mask whose projections can be layers."""
    masked = {weight.module for weight in found.values()}
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        and not why_not_projected(module)
        and not masked.isdisjoint((module, module.out_proj))
    ]


def _parts(
    model: nn.Module,
    found: Mapping[str, Weight],
    masks: Mapping[str, Tensor],
    ways: Mapping[str, Layers],
    projected: Mapping[nn.Module, ProjectedAttention],
) -> tuple[list[_Part], dict[nn.Module, dict[str, Tensor]]]:
    """Layers that get a mask, and modules with several weights that get some."""
    outputs: dict[nn.Module, nn.MultiheadAttention] = {
        m.out_proj: m for m in model.modules() if isinstance(m, nn.MultiheadAttention)
    }
    parents = [module for module in model.modules() if module._modules]
    read = {child for parent in parents if reads_weights(parent) for child in parent.children()}
    parts: list[_Part] = []
    others: dict[nn.Module, dict[str, Tensor]] = {}
    for name, weight in found.items():
        module, mask, way = weight.module, masks[name], ways[name]
        if module in projected:
            dense: nn.Module = projected[module].in_proj
            parts.append(_Part(dense, dense, mask, way, why_not_sparse(dense)))
        elif weight.attribute != "weight":
            others.setdefault(module, {})[weight.attribute] = mask
        elif module in outputs and outputs[module] in projected:
            dense = projected[outputs[module]].out_proj
            parts.append(_Part(dense, dense, mask, way, why_not_sparse(dense)))
        else:
            dense = to_dense(module) if isinstance(module, Masked) else module
            why_not = why_not_sparse(dense)
            if module in outputs:
                why_not = why_not_projected(outputs[module])
            parts.append(_Part(module, dense, mask, way, why_not, module in read))
    return parts, others


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
