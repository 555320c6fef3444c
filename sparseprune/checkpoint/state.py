"""The state dict of a model in the dialect of files, and of files in the dialect of a model.

Files hold every pruned weight as ``values``, ``crow`` and ``col`` (see :mod:`sparseprune.nn.dialects`), under
the names that the model has without its wrappers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sparseprune.nn import dialects
from sparseprune.nn.dialects import DENSE, MASKED, SPARSE
from sparseprune.nn.masked import Masked
from sparseprune.nn.sites import Site, plain, sites
from sparseprune.nn.sparse import SparseLayer

WRAPPED = "module."  # what the parallel wrappers put before them


def to_file(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """The model's state dict with every pruned weight as ``values``, ``crow`` and ``col``, by plain names.

    Returns:
        the state dict, and the shape of every weight that it has so.
    Raises:
        TypeError: the state dict holds something other than tensors.
    """
    state: dict[str, Any] = dict(model.state_dict())
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"save: expected a state_dict of tensors, got {type(tensor).__name__} in {name!r}; "
                "files hold tensors alone"
            )
    result: dict[str, Tensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    done: dict[nn.Parameter, dict[str, Tensor]] = {}  # a layer may have two names
    for site in sites(model):
        parts = [state.pop(site.prefix + part, None) for part in site.parts]
        if any(part is None for part in parts):
            # Such as what a hook of the user's leaves out.
            continue
        if site.dialect == DENSE:
            result[site.name] = parts[0]
            continue
        shapes[site.name] = site.stored_shape
        if site.parameter not in done:
            done[site.parameter] = _stored(site, dict(zip(site.dialect, parts, strict=True)))
        stem = sparse_prefix(site.name)
        result |= {stem + part: tensor for part, tensor in done[site.parameter].items()}
    return {**result, **{plain(name): tensor for name, tensor in state.items()}}, shapes


def _stored(site: Site, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A pruned weight as files hold it."""
    if site.dialect == SPARSE:
        return dict(given)
    weight, mask = dialects.weight_and_mask(given, site.parameter.shape)
    assert mask is not None
    if site.transposed:
        weight, mask = weight.t(), mask.t()
    return dialects.as_sparse(weight, mask, getattr(site.module, "groups", 1))


def sparse_prefix(name: str) -> str:
    """What the names of the values and of the pattern of a parameter begin with."""
    return name.removesuffix("weight") if name in ("weight", "") or name.endswith(".weight") else f"{name}."


def convert_state_dict(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """A state dict of the same architecture, as this model would have it: names and form of each weight.

    Where layers of the model are dense, pruned weights are written out with zeros. Where they are sparse or
    masked, they take over the pattern of the state dict; a dense weight must be 0 outside the layer's own.

    Args:
        state_dict: of a model in which the same layers may be sparse, masked, dense or pruned by
            ``torch.nn.utils.prune``; names may begin with ``module.`` or hold ``_orig_mod``; left as it is.
        model: the model to load it into; it stays as it is.
    Returns:
        for ``model.load_state_dict``; checked, so that it will not fail halfway.
    Raises:
        TypeError, ValueError: it is of another architecture, or damaged; all that is wrong is listed.
    """
    return converted(state_dict, model, "convert_state_dict")


def converted(
    state_dict: Mapping[str, Any],
    model: nn.Module,
    op: str,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """:func:`convert_state_dict`, with errors that begin with ``op``.

    Args:
        shapes: of weights that are sparse in the state dict, by their names in a dense model, where known.
    """
    wanted = model.state_dict()
    state = {plain(name): tensor for name, tensor in state_dict.items() if tensor is not None}
    state = without_wrapper(state, model)
    result: dict[str, Any] = {}
    used: set[str] = set()
    wrong: list[str] = []
    for site in sites(model):
        dialect, given, names = site.find(state)
        if not dialect or site.prefix + site.parts[0] not in wanted:
            continue
        used |= set(names)
        try:
            shape = (shapes or {}).get(site.name)
            if shape is not None and tuple(shape) != site.stored_shape:
                raise ValueError(f"expected a weight of shape {list(site.stored_shape)}, got {list(shape)}")
            entries = _entries(site, given)
        except (RuntimeError, TypeError, ValueError) as error:
            wrong.append(f"{site.prefix}{site.parts[0]}: {error}")
            entries = dict.fromkeys(site.parts)
        result |= {site.prefix + part: tensor for part, tensor in entries.items()}
    others = [name for name in wanted if name not in result]
    missing = [name for name in others if plain(name) not in state]
    for name in others:
        if name not in missing:
            result[name] = state[plain(name)]
            used.add(plain(name))
            own, given_shape = wanted[name], getattr(result[name], "shape", None)
            if isinstance(own, Tensor) and own.shape != given_shape:
                wrong.append(f"{name}: expected shape {list(own.shape)}, got {list(given_shape or ())}")
    for what, names in (("missing", missing), ("of no layer of the model", sorted(state.keys() - used))):
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            wrong.append(f"{what}: {', '.join(names[:8])}{more}")
    if wrong:
        lines = "\n  ".join(
            [f"{op}: expected the state of such a {type(model).__name__}, got another:", *wrong]
        )
        raise ValueError(lines)
    return result


def without_wrapper(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The state dict without the ``module.`` of parallel wrappers, where the model has none."""
    own = any(plain(name).startswith(WRAPPED) for name in model.state_dict())
    wrapped = not own and all(name.startswith(WRAPPED) for name in state)
    return {name.removeprefix(WRAPPED) if wrapped else name: tensor for name, tensor in state.items()}


def _entries(site: Site, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """A parameter in the dialect of its layer, checked."""
    module = site.module
    if isinstance(module, SparseLayer) and site.dialect == SPARSE:
        own = module.own_entries(given)
        module._check_given(own, False)
        return own
    if site.dialect == MASKED:
        assert isinstance(module, Masked)
        return module.own_entries(given, site.parts[0])
    own_shape = site.parameter.shape
    if site.dialect == DENSE == dialects.dialect_of(given):
        if not isinstance(given["weight"], Tensor) or given["weight"].shape != own_shape:
            got = list(getattr(given["weight"], "shape", ()))
            raise ValueError(f"expected shape {list(own_shape)}, got {got}")
        return {site.parts[0]: given["weight"]}
    weight, mask = dialects.dense_weight_and_mask(given, own_shape, site.transposed)
    if site.dialect == DENSE:
        return {site.parts[0]: weight}
    if mask is None:
        mask = dialects.kept_by(weight, module.get_buffer(site.parts[1]).to(weight.device) != 0)
    return {site.parts[0]: weight, site.parts[1]: mask.to(weight.dtype)}


def written_out(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """A state dict with every pruned weight of the model as a dense one; all else stays as it is.

    Args:
        state_dict: of plain names; left as it is.
        model: a dense model of the same architecture, of which nothing but names and shapes is asked.
    Raises:
        TypeError, ValueError: a weight does not fit the model's.
    """
    result = dict(state_dict)
    for site in sites(model):
        dialect, given, names = site.find(state_dict)
        if dialect and dialect != DENSE:
            try:
                weight, _ = dialects.dense_weight_and_mask(given, site.parameter.shape, site.transposed)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{site.name}: {error}") from error
            for name in names:
                del result[name]
            result[site.name] = weight
    return result


def pattern_in(state: Mapping[str, Any], name: str) -> dict[str, Tensor] | None:
    """``values``, ``crow`` and ``col`` of a parameter in a state dict of plain names, if it is sparse."""
    dialect, given, _ = dialects.find(state, name)
    return given if dialect == SPARSE else None
