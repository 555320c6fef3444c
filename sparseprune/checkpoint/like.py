"""``sp.sparsify_like``: the layers that a checkpoint was saved from."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparseprune._sparsify import densify, sparsify
from sparseprune.checkpoint.state import without_wrapper
from sparseprune.nn import dialects
from sparseprune.nn.dialects import DENSE, MASKED, PRUNED, SPARSE, Dialect
from sparseprune.nn.sites import plain, sites
from sparseprune.rewrite.fast_path import without_fast_path

Layers = Literal["sparse", "dense"]


def sparsify_like(model: nn.Module, state_dict: Mapping[str, Any], *, inplace: bool = False) -> nn.Module:
    """Make the layers of a model sparse, masked or dense as they were in the model of a state dict.

    The masks are the state dict's. Weights stay the model's own: load them with ``load_state_dict``, and the
    optimizer's with its own, which is in order since the parameters have the shapes that they had. Nothing is
    measured, so that a run goes on as it began, on another machine, too.

    Args:
        model: a model of the same architecture, dense or with other sparse layers; left untouched unless
            ``inplace``.
        state_dict: of a model that :func:`sparsify` made; names may begin with ``module.`` or hold
            ``_orig_mod``. A weight pruned by ``torch.nn.utils.prune`` counts as masked.
        inplace: replace the layers within ``model`` itself.
    Returns:
        a new model, or ``model`` itself if ``inplace``.
    Raises:
        TypeError, ValueError: the state dict is of another architecture, or damaged; the model is unchanged.
    """
    state = without_wrapper({plain(name): tensor for name, tensor in state_dict.items()}, model)
    masks: dict[str, Tensor] = {}
    layers: dict[str, Layers] = {}
    used: set[str] = set()
    seen: set[nn.Parameter] = set()
    pruned = differs = False
    for site in sites(model):
        dialect, given, names = site.find(state)
        used |= set(names)
        if site.parameter in seen:
            continue
        seen.add(site.parameter)
        if _form(dialect) != DENSE:
            shape = torch.Size(site.stored_shape[::-1] if site.transposed else site.stored_shape)
            try:
                _, mask = dialects.dense_weight_and_mask(given, shape, site.transposed)
            except (TypeError, ValueError) as error:
                raise type(error)(f"sparsify_like: {site.name}: {error}") from error
            assert mask is not None
            masks[site.name] = mask
            layers[site.name] = "sparse" if dialect == SPARSE else "dense"
        pruned |= _form(site.dialect) != DENSE
        differs |= _form(site.dialect) != _form(dialect)
    ends = (".crow", ".col", "_mask", ".mask")
    own = {plain(name) for name, _ in model.named_buffers()}
    if strangers := sorted(name for name in state.keys() - used - own if name.endswith(ends)):
        raise ValueError(
            f"sparsify_like: expected the state of such a {type(model).__name__}, got masks of no weight of "
            f"it: {', '.join(strangers[:8])}"
        )
    if not differs:
        return model if inplace else sparsify(model, {})
    if not pruned:
        return sparsify(model, masks, layers=layers, inplace=inplace)
    result = sparsify(densify(model), masks, layers=layers, inplace=True)
    if not inplace:
        return result
    model.__class__ = result.__class__
    for own_part in ("_modules", "_parameters", "_buffers"):
        vars(model)[own_part] = vars(result)[own_part]
    without_fast_path(model)
    return model


def _form(dialect: Dialect) -> Dialect:
    """What sparsify() makes of it: sparse, masked or dense."""
    if dialect == PRUNED:
        return MASKED
    return dialect or DENSE
