"""The dialects in which checkpoints hold the weight of a layer, and a weight of one in another.

sparse   values, crow, col            SparseLinear, SparseConv1d, SparseConv2d
pruned   weight_orig, weight_mask     torch.nn.utils.prune
masked   weight, mask                 MaskedLinear and its like
dense    weight                       torch's own layers
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparseprune.format.bsr import (
    BLOCK_ROWS,
    as_int32,
    at_blocks,
    dense_weight,
    mask_from_bsr,
    pattern_of_largest_blocks,
)
from sparseprune.format.weights import is_transposed as is_transposed_kind

Dialect = tuple[str, ...]

SPARSE: Dialect = ("values", "crow", "col")
PRUNED: Dialect = ("weight_orig", "weight_mask")
MASKED: Dialect = ("weight", "mask")
DENSE: Dialect = ("weight",)


def find(
    state_dict: Mapping[str, Any], name: str, mask: bool = True
) -> tuple[Dialect, dict[str, Any], list[str]]:
    """What a state dict has of a parameter, in whichever dialect.

    Args:
        state_dict: tensors by name.
        name: the parameter's name in the dense model, such as "0.weight".
        mask: whether a mask beside it is its own.
    Returns:
        the dialect, () if there is nothing; tensors by its names; their names in the state dict.
    """
    stem, dot, last = name.rpartition(".")
    base = stem + dot
    for dialect, names in _places(name):
        if all(full in state_dict for full in names) and (mask or dialect != MASKED):
            return dialect, {part: state_dict[full] for part, full in zip(dialect, names, strict=True)}, names
    if last.startswith("in_proj_"):
        # A MultiheadAttention whose projection is a layer.
        return find(state_dict, f"{base}in_proj.{last.removeprefix('in_proj_')}", mask)
    return (), {}, []


def _places(name: str) -> list[tuple[Dialect, list[str]]]:
    """The names of the parts of a parameter in each dialect."""
    stem, dot, last = name.rpartition(".")
    base = stem + dot
    sparse = base if last == "weight" else f"{name}."
    return [
        (SPARSE, [sparse + part for part in SPARSE]),
        (PRUNED, [f"{name}_orig", f"{name}_mask"]),
        (MASKED, [name, base + mask_name(last)]),
        (DENSE, [name]),
    ]


def all_names(name: str) -> list[str]:
    """All names that a parameter and its parts may have, in any dialect."""
    return list(dict.fromkeys(part for _, names in _places(name) for part in names))


def mask_name(parameter: str) -> str:
    """Name of the buffer that holds the mask of a parameter."""
    return "mask" if parameter == "weight" else f"{parameter}_mask"


def dialect_of(given: Mapping[str, Any]) -> Dialect:
    """The dialect of a weight of which these are the parts."""
    return next(d for d in (SPARSE, PRUNED, MASKED, DENSE) if d[0] in given and d[-1] in given)


def is_transposed(module: nn.Module) -> bool:
    """Whether a layer is transformers' ``Conv1D`` or was made from one: its weight is (inputs, outputs)."""
    original = getattr(module, "original", None)
    kind = getattr(original, "kind", original) or type(module)
    return is_transposed_kind(kind)


def weight_and_mask(given: Mapping[str, Any], shape: torch.Size) -> tuple[Tensor, Tensor | None]:
    """A weight of any dialect written out, with its mask, or None where the dialect has none.

    Args:
        given: tensors by name; ``values`` (nnzb, V), ``crow`` and ``col`` of any integers.
        shape: the weight's.
    Returns:
        weight of ``shape``, 0 where the mask is False, and mask, bool of ``shape``.
    Raises:
        TypeError: something is no tensor, or the indices are no integers.
        ValueError: the tensors do not fit each other, or the shape.
    """
    dialect = dialect_of(given)
    for name in dialect:
        if not isinstance(given[name], Tensor):
            raise TypeError(f"expected {name} to be a tensor, got {type(given[name]).__name__}")
    if dialect == SPARSE:
        values, crow, col = given["values"], as_int32(given["crow"], "crow"), as_int32(given["col"], "col")
        cols = check_pattern(values, crow, col, shape)
        weight = dense_weight(values.detach(), crow, col, cols).reshape(shape)
        return weight, mask_from_bsr(crow, col, cols, values.shape[1]).reshape(shape)
    for name in dialect:
        if given[name].shape != shape:
            raise ValueError(f"expected {name}.shape == {list(shape)}, got {list(given[name].shape)}")
    weight = given[dialect[0]].detach()
    if dialect == DENSE:
        return weight, None
    mask = given[dialect[1]] != 0
    return weight.masked_fill(~mask, 0), mask


def check_values(values: Tensor, col: Tensor) -> None:
    """Raise ValueError unless there are values (nnzb, V) of as many blocks as columns."""
    if values.dim() != 2 or values.shape[0] != col.numel() or values.shape[1] not in BLOCK_ROWS:
        raise ValueError(
            f"expected values.shape == [{col.numel()} (blocks of the checkpoint's pattern), "
            f"one of {', '.join(map(str, BLOCK_ROWS))} (rows of a block)], got {list(values.shape)}"
        )


def check_pattern(values: Tensor, crow: Tensor, col: Tensor, shape: torch.Size | tuple[int, ...]) -> int:
    """Raise ValueError unless this is a pattern of a weight of that shape; the columns of its matrix."""
    rows, cols = shape[0], torch.Size(shape[1:]).numel()
    check_values(values, col)
    if crow.dim() != 1 or col.dim() != 1 or (len(crow) - 1) * values.shape[1] != rows:
        raise ValueError(
            f"expected a pattern of {rows} rows, got crow.shape {list(crow.shape)} and blocks of "
            f"{values.shape[1]} rows"
        )
    # Within a row, columns ascend.
    starts = torch.zeros(len(col) + 1, dtype=torch.bool, device=col.device)
    if crow[0] != 0 or crow[-1] != len(col) or (crow[1:] < crow[:-1]).any():
        raise ValueError(f"expected crow to ascend from 0 to {len(col)} (blocks)")
    starts[crow.long()] = True
    ascends = (col[1:] > col[:-1]) | starts[1:-1]
    if not ascends.all() or (len(col) and (col.min() < 0 or col.max() >= cols)):
        raise ValueError(f"expected columns of a row to ascend within 0 .. {cols - 1}")
    return cols


def as_sparse(weight: Tensor, mask: Tensor, groups: int = 1) -> dict[str, Tensor]:
    """``values``, ``crow`` and ``col`` of a weight, in the mask's largest blocks that cut no group.

    Args:
        weight: (rows, ...).
        mask: bool, of the weight's shape.
        groups: number of groups of a convolution.
    """
    crow, col, block_rows = pattern_of_largest_blocks(mask.flatten(1), groups)
    return {"values": at_blocks(weight.flatten(1), crow, col, block_rows), "crow": crow, "col": col}


def kept_by(weight: Tensor, mask: Tensor) -> Tensor:
    """The mask, if the weight is 0 elsewhere; ValueError if it is not."""
    lost = int((weight.masked_select(~mask) != 0).sum())
    if lost:
        raise ValueError(
            f"expected a weight that is 0 where the layer's mask is False, got {lost} others, which would be "
            "lost: a dense checkpoint does not say what is pruned; load it into the dense model and call "
            "sparsify() then, or set it to 0 there with apply_masks()"
        )
    return mask


def replaced(
    state_dict: Mapping[str, Any], names: list[str], prefix: str, entries: Mapping[str, Any]
) -> dict[str, Any]:
    """A copy of a state dict with a layer's entries in place of those of some names."""
    state = {name: t for name, t in state_dict.items() if name not in names}
    return {**state, **{prefix + name: t for name, t in entries.items()}}


class LoadsAnyDialect(nn.Module):
    """A layer with buffers that are masks of its parameters; it loads checkpoints of any dialect."""

    buffer_of: ClassVar[Mapping[str, str]] = {"weight": "mask"}  # the mask of each parameter that has one

    def own_entries(self, given: Mapping[str, Any], parameter: str) -> dict[str, Tensor]:
        """A parameter of any dialect and its mask, by their names here.

        Args:
            given: tensors by the names of a dialect.
            parameter: name of the parameter.
        Raises:
            TypeError, ValueError: it does not fit.
        """
        # Read as an attribute, it may be the product with its mask.
        own, buffer = self._parameters[parameter], self.buffer_of[parameter]
        assert own is not None
        weight, mask = dense_weight_and_mask(given, own.shape, is_transposed(self))
        if mask is None:
            mask = kept_by(weight, self.get_buffer(buffer).to(weight.device))
        return {parameter: weight, buffer: mask}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """A layer that cannot load something that it is given stays as it is."""
        state = state_dict
        try:
            for parameter, buffer in self.buffer_of.items():
                given_mask = prefix + buffer in state_dict and prefix + parameter in state_dict
                dialect, given, names = find(state_dict, prefix + parameter)
                if dialect and not given_mask and parameter in self._parameters:
                    state = replaced(state, names, prefix, self.own_entries(given, parameter))
        except (RuntimeError, TypeError, ValueError) as error:
            error_msgs.append(f"{prefix.removesuffix('.') or type(self).__name__}: {error}")
            return
        super()._load_from_state_dict(
            state, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def dense_weight_and_mask(
    given: Mapping[str, Any], shape: torch.Size, transposed: bool
) -> tuple[Tensor, Tensor | None]:
    """:func:`weight_and_mask` of a weight of ``shape``, whose transpose is what is stored where sparse."""
    if not transposed or dialect_of(given) != SPARSE:
        return weight_and_mask(given, shape)
    weight, mask = weight_and_mask(given, shape[::-1])
    assert mask is not None
    return weight.t().contiguous(), mask.t().contiguous()
