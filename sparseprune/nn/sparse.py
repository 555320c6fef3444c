"""What sparse layers have in common: a weight of fixed pattern, stored in blocks of V rows x 1 column."""

import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from sparseprune import ops
from sparseprune.format.bsr import (
    BLOCK_ROWS,
    at_blocks,
    bsr_from_mask,
    check_block,
    check_mask,
    dense_weight,
    largest_block,
    mask_from_bsr,
)
from sparseprune.ops.devices import dtypes_of_sums

Dense = TypeVar("Dense", nn.Linear, nn.Conv1d, nn.Conv2d)


class SparseLayer(nn.Module):
    """A layer whose weight, ``weight.flatten(1)`` as a matrix, is zero outside a fixed pattern of blocks.

    ``values`` (nnzb, V) is the only weight parameter: gradients and optimizer state have its size. The
    pattern is in the buffers ``crow`` int32 (rows / V + 1,) and ``col`` int32 (nnzb,); plans, derived from it
    for the kernels, are buffers that are never saved, and rebuilt wherever torch moves, loads or copies the
    module.
    """

    values: nn.Parameter
    crow: Tensor
    col: Tensor
    bias: nn.Parameter | None
    batch_inner: bool | None = None
    choice: str = ""  # why this layer is sparse, where sparsify() measured

    plan_names: ClassVar[tuple[str, ...]]
    rows_name: ClassVar[str]  # what the layer calls the weight's rows

    # ---- what a layer says of itself -----------------------------------------------------------------------

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight of the dense layer."""
        raise NotImplementedError

    def _plans(self, crow: Tensor, col: Tensor, block_rows: int) -> dict[str, Tensor]:
        """The plans of a pattern, by the names in ``plan_names``; raises if the pattern is malformed."""
        raise NotImplementedError

    # ---- weight and pattern --------------------------------------------------------------------------------

    def _init_weight(
        self,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        crow: Tensor | None,
        col: Tensor | None,
        block: tuple[int, int],
    ) -> None:
        name, rows = type(self).__name__, self.weight_shape[0]
        block_rows = check_block(block, name)
        if (crow is None) != (col is None):
            raise ValueError(f"{name}: expected both crow and col, or neither, got one of them")
        if crow is None or col is None:
            crow = torch.zeros(rows // block_rows + 1, dtype=torch.int32, device=device)
            col = torch.zeros(0, dtype=torch.int32, device=device)
        self.values = nn.Parameter(torch.zeros(len(col), block_rows, device=device, dtype=dtype))
        check_dtype(self.values, name)
        if bias:
            self.bias = nn.Parameter(torch.zeros(rows, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self._set_pattern(crow, col, block_rows)

    def _set_pattern(self, crow: Tensor, col: Tensor, block_rows: int) -> None:
        name, rows = type(self).__name__, self.weight_shape[0]
        if rows % block_rows:
            raise ValueError(
                f"{name}: expected {self.rows_name} divisible by {block_rows} (rows of a block), got {rows}"
            )
        if crow.shape != (rows // block_rows + 1,):
            raise ValueError(
                f"{name}: expected crow.shape == [{rows // block_rows + 1}] "
                f"({self.rows_name} / {block_rows} + 1), got {list(crow.shape)}"
            )
        if crow.is_cuda and not ops.has_kernels(crow.device):
            warnings.warn(
                "sparseprune: there are no CUDA kernels in this build, so sparse layers on a GPU compute in "
                "plain torch, no faster than dense ones; install the CUDA toolkit (nvcc) and build it again",
                RuntimeWarning,
                stacklevel=2,
            )
        plans = self._plans(crow, col, block_rows)
        self.register_buffer("crow", crow)
        self.register_buffer("col", col)
        for plan_name, plan in plans.items():
            self.register_buffer(plan_name, plan, persistent=False)

    def _take_weights(self, dense: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
        """The dense layer's weights at the pattern, its bias, what of it is trained, and its mode."""
        with torch.no_grad():
            weight = dense.weight.detach().flatten(1)
            self.values.copy_(at_blocks(weight, self.crow, self.col, self.block[0]))
            self.values.requires_grad_(dense.weight.requires_grad)
            if self.bias is not None and dense.bias is not None:
                self.bias.copy_(dense.bias)
                self.bias.requires_grad_(dense.bias.requires_grad)
        self.train(dense.training)

    def _give_weights(self, dense: Dense) -> Dense:
        """The other way round, zeros where weights were pruned."""
        with torch.no_grad():
            dense.weight.copy_(self.weight)
            if self.bias is not None and dense.bias is not None:
                dense.bias.copy_(self.bias)
        dense.weight.requires_grad_(self.values.requires_grad)
        if self.bias is not None and dense.bias is not None:
            dense.bias.requires_grad_(self.bias.requires_grad)
        return dense.train(self.training)

    @property
    def _cols(self) -> int:
        return math.prod(self.weight_shape[1:])

    @property
    def weight(self) -> Tensor:
        """The weight written out, with zeros: a new tensor each time; differentiable."""
        return dense_weight(self.values, self.crow, self.col, self._cols).reshape(self.weight_shape)

    @property
    def mask(self) -> Tensor:
        """Where weights were kept, bool, of the weight's shape: a new tensor at each call."""
        return mask_from_bsr(self.crow, self.col, self._cols, self.block[0]).reshape(self.weight_shape)

    @property
    def block(self) -> tuple[int, int]:
        """(V, 1): rows and columns of a block of the pattern."""
        return (self.values.shape[1], 1)

    def _repr_of_weight(self) -> str:
        kept = self.values.numel()
        return (
            f"nnz={kept}, sparsity={1 - kept / max(math.prod(self.weight_shape), 1):.4f}, block={self.block}"
        )

    # ---- plans follow the pattern --------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseLayer":
        # Before anything is changed.
        check_dtype(fn(self.values.new_empty(0)), type(self).__name__)
        device = self.crow.device
        super()._apply(fn, recurse)
        if device.type == "meta" and not self.crow.is_meta:
            # Memory without numbers, from to_empty(): no weight until a state_dict is loaded.
            self.values.data = self.values.new_zeros(0, self.block[0])
            self._set_pattern(self.crow.zero_(), self.col.new_zeros(0), self.block[0])
        elif self.crow.device != device:
            self._set_pattern(self.crow, self.col, self.block[0])
        return self

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
        names = ("values", "crow", "col")
        given = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        try:
            if given:
                self._take_over(given, local_metadata.get("assign_to_params_buffers", False))
        except (RuntimeError, TypeError, ValueError) as error:
            # The layer is as it was, whatever strict says.
            error_msgs.append(f"{prefix.removesuffix('.') or type(self).__name__}: {error}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _take_over(self, given: dict[str, Tensor], assign: bool) -> None:
        """Give the layer a checkpoint's pattern and room for its values; the parameter stays the same one."""
        if len(given) < 3:
            raise ValueError(f"expected values, crow and col together, got {', '.join(given)}")
        shape = given["values"].shape
        if len(shape) != 2 or shape[0] != given["col"].numel() or shape[1] not in BLOCK_ROWS:
            raise ValueError(
                f"expected values.shape == [{given['col'].numel()} (blocks of the checkpoint's pattern), "
                f"one of {', '.join(map(str, BLOCK_ROWS))} (rows of a block)], got {list(shape)}"
            )
        if assign:
            check_dtype(given["values"], type(self).__name__)
        device = given["crow"].device if assign else self.crow.device
        crow, col = given["crow"].to(device), given["col"].to(device)
        same = (
            crow.device == self.crow.device
            and not crow.is_meta
            and shape == self.values.shape
            and torch.equal(crow, self.crow)
            and torch.equal(col, self.col)
        )
        if not same:
            self._set_pattern(crow.clone(), col.clone(), shape[1])
            self.values.data = self.values.new_zeros(shape)
            self.values.grad = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_buffers"] = {k: v for k, v in self._buffers.items() if k not in self.plan_names}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set_pattern(self.crow, self.col, self.block[0])


def pattern_of_mask(
    mask: Tensor, weight: Tensor, block: tuple[int, int] | None, op: str, groups: int = 1
) -> tuple[Tensor, Tensor, int]:
    """``(crow, col, V)`` of a mask of a dense layer's weight, checked.

    Args:
        mask: bool tensor of the weight's shape.
        weight: weight of the dense layer.
        block: (V, 1), or None for the largest V for which the mask is made of whole blocks.
        op: name that errors begin with.
        groups: number of groups of a convolution: V divides the output channels of each.
    """
    check_mask(mask, weight.shape, op)
    check_dtype(weight, op.partition(".")[0])
    matrix = mask.flatten(1)
    if block is None:
        block_rows = largest_block(matrix)
        # A mask of whole blocks is one of blocks half as large.
        while len(matrix) // groups % block_rows:
            block_rows //= 2
    else:
        block_rows = check_block(block, op)
    try:
        crow, col = bsr_from_mask(matrix.to(weight.device), block_rows)
    except ValueError as error:
        raise ValueError(f"{op}: {error}") from None
    return crow, col, block_rows


def check_dtype(values: Tensor, layer: str) -> None:
    """Raise unless there are kernels for values of this dtype on this device."""
    if values.dtype in dtypes_of_sums(values.device):
        return
    if values.is_cuda:
        expected, instead = "float32, float16 or bfloat16 on a GPU", "convert it first, or stay on the CPU"
    else:
        expected = "float32 or bfloat16 (or float64, for checking gradients)"
        instead = "use bfloat16, or densify() the model first"
    raise TypeError(
        f"{layer}: expected {expected}, got {values.dtype}, which has no sparse kernels; {instead}"
    )
