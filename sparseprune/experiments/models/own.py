"""Networks that a user's own function makes."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune.experiments import reference
from sparseprune.scores import prunable

SAMPLES = 2  # in the batch that is tried


def find(name: str) -> Callable[..., Any]:
    """The function; ValueError where there is none.

    Args:
        name: ``"package.module:function"``.
    """
    return reference.find(name, _op(name, 1.0))


def has_width(name: str) -> bool:
    """Whether the function takes a factor of its width: a keyword ``width`` whose default is 1, or none.

    Args:
        name: ``"package.module:function"``.
    """
    signature = reference.signature_of(find(name))
    parameter = signature.parameters.get("width") if signature else None
    return (
        parameter is not None
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and (parameter.default is inspect.Parameter.empty or parameter.default == 1)
    )


def make(name: str, args: Mapping[str, Any], width: float) -> nn.Module:
    """Call the function.

    Args:
        name: ``"package.module:function"``.
        args: its keyword arguments.
        width: factor of the network's width (times that of ``args``, if there is one), for functions that
            take it.
    Returns:
        a module of its own, also where the function returns the same one again.
    Raises:
        ValueError: the function cannot be found, does not take these arguments, raises, or returns no module.
    """
    op, arguments = _op(name, width), dict(args)
    if has_width(name):
        factor = arguments.get("width", 1.0)
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise ValueError(f"{op}: expected a number as width, got {factor!r}")
        arguments["width"] = factor * width
    given = f"--model-args '{json.dumps(dict(args))}'"
    with warnings.catch_warnings():
        # `check` says what is wrong with a network of no width.
        warnings.filterwarnings("ignore", "Initializing zero-element tensors is a no-op")
        made = reference.call(find(name), arguments, op, given)
    if not isinstance(made, nn.Module):
        raise ValueError(f"{op}: expected a torch.nn.Module, got {_kind(made)}; return the network")
    return copy.deepcopy(made)


def check(name: str, model: nn.Module, width: float, sample: Sequence[int], classes: int | None) -> None:
    """Raise ValueError, with both shapes, unless a network can be pruned and takes such data.

    Args:
        name: ``"package.module:function"``.
        model: what `make` returned at this width; a batch runs through it in eval mode.
        width: factor of the network's width.
        sample: shape of one sample.
        classes: number of labels, and of logits at least; None where there are no labels.
    """
    op = _op(name, width)
    remedy = "" if width == 1 else "; let no layer shrink to nothing: max(1, round(n * width))"
    weights = list(prunable(model))
    if not weights:
        raise ValueError(f"{op}: expected Linear or Conv1d/2d/3d layers, found none; nothing can be pruned")
    x = torch.zeros(SAMPLES, *sample)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            y = model.eval()(x)
    except Exception as error:
        first = model.get_submodule(weights[0].rpartition(".")[0])
        raise ValueError(
            f"{op}: expected a network that takes batches of shape {tuple(x.shape)}, as the samples have it; "
            f"it begins with {first} and raised {reference.told(error)}{remedy}"
        ) from error
    if classes is None:
        return
    if not isinstance(y, Tensor) or y.dim() != 2 or len(y) != SAMPLES or y.shape[1] < classes:
        raise ValueError(
            f"{op}: expected logits of shape {(SAMPLES, classes)} for samples of shape {tuple(sample)} and "
            f"{classes} classes, got {_kind(y)}"
        )


def _kind(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _op(name: str, width: float) -> str:
    return f"model {name}" if width == 1 else f"model {name} at width {width:.3g}"
