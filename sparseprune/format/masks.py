"""Masks as users have them, made into ``{parameter name: bool tensor}``."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy
import torch
from torch import Tensor, nn

from sparseprune.format import tensor_file
from sparseprune.format.weights import all_weights

MasksLike: TypeAlias = Mapping[str, Any] | Sequence[Any] | str | os.PathLike[str]

WRAPPERS = ("module", "_orig_mod")  # what data-parallel training and torch.compile put into names
NUMBERS = (
    "expected a mask of 0 and 1 (1 = keep), got other numbers in {}; scores become masks with topk_masks()"
)


def masks_of(model: nn.Module, masks: MasksLike, op: str) -> dict[str, Tensor]:
    """Masks of any form by the names of a model's parameters; see :func:`normal_masks`.

    A list has masks of the prunable weights, in the order of the modules.
    """
    weights = all_weights(model)
    names = [name for weight in weights for name in weight.names]
    return normal_masks(masks, names, op, [weight.name for weight in weights if not weight.why_not])


def normal_masks(
    masks: MasksLike, names: Sequence[str], op: str, in_order: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Masks of any form as ``{parameter name: bool tensor}``.

    Args:
        masks: by name, or a list in the order of ``in_order``, or a file of safetensors, such as
            ``sparseprune prune --out`` writes. Each is a tensor or an array of numpy, bool or of 0 and 1 in
            any type. Names may have ``module.`` or ``_orig_mod.`` more or less than the model's.
        names: names of the model's parameters. A mask of none of them keeps its name.
        op: name that errors begin with.
        in_order: names of the weights that a list has masks of; all of ``names`` where it is None.
    Returns:
        a tensor that is a bool tensor already is not copied.
    Raises:
        FileNotFoundError: there is no such file.
        TypeError: a mask is no tensor or array.
        ValueError: it holds something other than 0 and 1; a list has another length; two names are one.
    """
    if isinstance(masks, str | os.PathLike):
        masks, _ = tensor_file.read(masks, op)
    if not isinstance(masks, Mapping):
        if isinstance(masks, Tensor | numpy.ndarray) or not isinstance(masks, Sequence):
            raise TypeError(
                f"{op}: expected masks by parameter name, a list of them or a file, "
                f"got {type(masks).__name__}"
            )
        of_list = list(names if in_order is None else in_order)
        if len(masks) != len(of_list):
            raise ValueError(
                f"{op}: expected a list of {len(of_list)} masks, one for each of {', '.join(of_list)}, "
                f"got {len(masks)}; give them by parameter name"
            )
        masks = dict(zip(of_list, masks, strict=True))
    known = set(names)
    counts = Counter(map(_bare, names))
    bare = {_bare(name): name for name in names if counts[_bare(name)] == 1}
    result: dict[str, Tensor] = {}
    for given, mask in masks.items():
        name = given if given in known or not isinstance(given, str) else bare.get(_bare(given), given)
        if name in result:
            raise ValueError(f"{op}: expected one mask for {name!r}, got two: {given!r} names it as well")
        result[name] = normal_mask(mask, f"{op}: {given!r}")
    return result


def normal_mask(mask: Any, op: str) -> Tensor:
    """One mask as a bool tensor; see :func:`normal_masks`."""
    if isinstance(mask, numpy.ndarray):
        if mask.dtype.kind not in "biuf":
            raise TypeError(f"{op}: expected a mask of 0 and 1, got an array of {mask.dtype}")
        # Torch takes neither negative strides, arrays that cannot be written, nor the other byte order.
        kept = torch.from_numpy(numpy.array(mask != 0, order="C"))
        if not numpy.array_equal(mask, mask != 0):
            raise ValueError(f"{op}: {NUMBERS.format(mask.dtype)}")
        return kept
    if not isinstance(mask, Tensor):
        raise TypeError(f"{op}: expected the mask to be a tensor or an array, got {type(mask).__name__}")
    if mask.dtype == torch.bool:
        return mask
    keep = mask != 0
    if not torch.equal(keep.to(mask.dtype), mask):
        raise ValueError(f"{op}: {NUMBERS.format(mask.dtype)}")
    return keep


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
