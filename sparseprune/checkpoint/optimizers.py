"""An optimizer's state by parameter name, with a number for each weight that was kept."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune.checkpoint.state import pattern_in
from sparseprune.format.bsr import as_int32, at_blocks, dense_weight
from sparseprune.nn.dialects import SPARSE
from sparseprune.nn.sites import Site, sites

PREFIX = "optimizer:"  # of its tensors' names in a file


def to_file(
    optimizer: Optimizer, model: nn.Module, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of an optimizer.

    Args:
        optimizer: it trains parameters of the model, and no others.
        model: the network.
        state: the model's, as files have it: it says which weights were kept.
    Returns:
        tensors by name, those of a pruned weight (nnzb, V) as its values, and what JSON can hold.
    Raises:
        TypeError: the optimizer keeps something else than numbers and tensors of a parameter.
        ValueError: it trains a parameter that is not the model's.
    """
    of = _by_parameter(model)
    tensors: dict[str, Tensor] = {}
    packed = optimizer.state_dict()
    groups, states = [], {}
    for i, (group, of_group) in enumerate(zip(optimizer.param_groups, packed["param_groups"], strict=True)):
        parameters: list[Tensor] = group["params"]
        if strangers := [list(p.shape) for p in parameters if p not in of]:
            raise ValueError(
                f"save: expected {type(optimizer).__name__} to train parameters of the model, got others, of "
                f"shapes {strangers}; was it made for another copy of the model?"
            )
        options = {
            key: _stored(value, f"{PREFIX}{i}:{key}", tensors)
            for key, value in of_group.items()
            if key not in ("params", "param_names")
        }
        groups.append({"names": [of[p].name for p in parameters], "options": options})
        for parameter, index in zip(parameters, of_group["params"], strict=True):
            site = of[parameter]
            sparse = site.dialect == SPARSE
            pattern = None if sparse else pattern_in(state, site.name)
            if index in packed["state"]:
                kept: dict[str, Any] = {}
                weightwise = []  # what has a number for each weight
                for key, value in packed["state"][index].items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        weightwise.append(key)
                        if pattern is not None:
                            value = _at_pattern(value, pattern, site)
                    kept[key] = _stored(value, f"{PREFIX}{site.name}:{key}", tensors)
                states[site.name] = {"state": kept, "weightwise": weightwise, "sparse": sparse}
    return tensors, {"class": type(optimizer).__name__, "groups": groups, "states": states}


def from_file(
    optimizer: Optimizer,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    target: Mapping[str, Any],
) -> dict[str, Any]:
    """A state dict for an optimizer of the same class, whose model will have loaded ``target``.

    Args:
        optimizer: the optimizer; it stays as it is.
        model: the network that it trains.
        tensors, facts: what :func:`to_file` gave, with the tensors of the file's model.
        target: state dict for the model, by names without wrappers.
    Raises:
        ValueError: it is another optimizer, or has other groups of parameters.
    """
    kind = type(optimizer).__name__
    if facts["class"] != kind:
        raise ValueError(f"load: expected an optimizer {facts['class']}, as the file has it, got {kind}")
    of = _by_parameter(model)
    ours = [[of.get(p) for p in group["params"]] for group in optimizer.param_groups]
    own = [[site.name if site else "a parameter of another model" for site in group] for group in ours]
    theirs = [group["names"] for group in facts["groups"]]
    if [sorted(group) for group in own] != [sorted(group) for group in theirs]:
        differ = sorted({n for g in own for n in g} ^ {n for g in theirs for n in g})
        what = (
            f"these are in one of both alone: {', '.join(differ[:8])}"
            if differ
            else "they are grouped otherwise"
        )
        raise ValueError(
            f"load: expected the {len(theirs)} groups of parameters that {kind} has in the file, got "
            f"{len(own)} others; {what}. Make the optimizer as it was made when it was saved"
        )
    groups, states, index = [], {}, 0
    for group, saved in zip(ours, facts["groups"], strict=True):
        indices = list(range(index, index + len(group)))
        index += len(group)
        options = {key: _restored(value, tensors) for key, value in saved["options"].items()}
        groups.append({**options, "params": indices})
        for i, site in zip(indices, group, strict=True):
            assert site is not None
            if site.name in facts["states"]:
                states[i] = _state(facts["states"][site.name], site, tensors, target)
    return {"state": states, "param_groups": groups}


def _state(
    saved: Mapping[str, Any], site: Site, tensors: Mapping[str, Tensor], target: Mapping[str, Any]
) -> dict[str, Any]:
    """What an optimizer keeps of a parameter, in the form that the parameter has in ``target``."""
    file, own = pattern_in(tensors, site.name), pattern_in(target, site.name)
    result = {}
    for key, value in saved["state"].items():
        entry = _restored(value, tensors)
        if key in saved["weightwise"]:
            if file is not None and own is None:
                crow, col = as_int32(file["crow"], "crow"), as_int32(file["col"], "col")
                shape = site.stored_shape
                entry = dense_weight(entry, crow, col, math.prod(shape[1:])).reshape(shape)
                entry = entry.t().contiguous() if site.transposed else entry
            elif file is None and own is not None:
                entry = _at_pattern(entry, own, site)
        elif isinstance(entry, Tensor) and entry.dim() and saved["sparse"] != (own is not None):
            form = "sparse" if saved["sparse"] else "dense"
            raise ValueError(
                f"load: expected {site.name!r} to be {form} as when it was saved, since {key!r} of the "
                "optimizer has no number for each weight; leave the optimizer out"
            )
        result[key] = entry
    return result


def _by_parameter(model: nn.Module) -> dict[Tensor, Site]:
    """The site of each parameter, the first of those that share it."""
    found: dict[Tensor, Site] = {}
    for site in sites(model):
        found.setdefault(site.parameter, site)
    return found


def _at_pattern(dense: Tensor, pattern: Mapping[str, Tensor], site: Site) -> Tensor:
    """(nnzb, V): the numbers of a tensor of the dense weight's shape that are at a pattern's blocks."""
    matrix = dense.t() if site.transposed else dense.flatten(1)
    return at_blocks(matrix, pattern["crow"], pattern["col"], pattern["values"].shape[1])


def _stored(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON has it; a tensor goes to the others, and its name stands for it."""
    if isinstance(value, Tensor):
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, tuple):
        return {"tuple": [_stored(v, f"{key}:{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, bool | int | float | str | None):
        return value
    raise TypeError(
        f"save: expected an optimizer that keeps numbers and tensors, got {type(value).__name__} in {key!r}; "
        "save its state_dict with torch.save"
    )


def _restored(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return tuple(_restored(v, tensors) for v in value["tuple"])
    return value
