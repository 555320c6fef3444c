"""Tensors in whatever holds them: dicts, tuples, lists, dataclasses, and objects of other libraries."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor


def with_each(function: Callable[[Any], Any], value: Any) -> Any:
    """The same object with ``function(leaf)`` in place of each leaf; ``value`` itself stays as it is.

    A leaf is a tensor, or another object with a method ``to``. Mappings, tuples, lists and dataclasses, also
    of classes derived from these, are copied; anything else, such as a string, is handed on.
    """
    if isinstance(value, Mapping):
        items = {key: with_each(function, item) for key, item in value.items()}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return items
        result: Any = copy.copy(value)
        for key, item in items.items():
            result[key] = item
        return result
    if callable(getattr(value, "to", None)):
        return function(value)
    if isinstance(value, tuple | list):
        parts = [with_each(function, part) for part in value]
        # A named tuple takes its parts one by one.
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        result = copy.copy(value)
        for field in dataclasses.fields(value):
            # Also of a frozen one.
            object.__setattr__(result, field.name, with_each(function, getattr(value, field.name)))
        return result
    return value


def moved(value: Any, device: torch.device) -> Any:
    """The same object with its tensors on a device."""
    return with_each(lambda leaf: leaf.to(device), value)


def leaves_in(value: Any) -> list[Any]:
    """The leaves of an object, see :func:`with_each`, in its order."""
    found: list[Any] = []

    def note(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    with_each(note, value)
    return found


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of an object, in its order."""
    return [leaf for leaf in leaves_in(value) if isinstance(leaf, Tensor)]


def described(value: object) -> str:
    """What an object is and holds, for errors: "a dict of (input_ids, labels)"."""
    name = type(value).__name__
    article = "an" if name[:1].lower() in "aeiou" else "a"
    if isinstance(value, Mapping):
        return f"{article} {name} of ({', '.join(map(str, value))})"
    if isinstance(value, tuple | list):
        return f"{article} {name} of ({', '.join(type(part).__name__ for part in value)})"
    return f"{article} {name}"
