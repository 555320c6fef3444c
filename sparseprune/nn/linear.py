"""``SparseLinear``: a drop-in for ``nn.Linear`` that stores and computes only the weights that were kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune import ops
from sparseprune.fallback import at_blocks, dense_weight
from sparseprune.pattern import (
    BLOCK_ROWS,
    bsr_from_mask,
    check_block,
    check_mask,
    largest_block,
    mask_from_bsr,
)

PLAN_NAMES = ("plan", "plan_t")  # buffers derived from the pattern; never saved


class SparseLinear(nn.Module):
    """``y = x W^T + b`` with a W that is zero outside a fixed pattern of blocks of V rows x 1 column.

    ``values`` (nnzb, V) is the only weight parameter: gradients and optimizer state have its size. The
    pattern is in the buffers ``crow`` int32 (out_features / V + 1,) and ``col`` int32 (nnzb,). V = 1 is
    unstructured; larger blocks compute faster.

    In float32 or bfloat16 (or float64: slow, for checking gradients). Products of bfloat16 are summed in
    float32.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension, divisible by V.
        bias: whether to add a learned bias (out_features,).
        crow: starts of the pattern's block rows; without a pattern the layer keeps no weight until a
            ``state_dict`` with one is loaded. Usually a layer is made by :meth:`from_dense`.
        col: columns of the pattern, ascending within each block row.
        block: (V, 1), V in 1, 2, 4, 8, 16.

    Attributes:
        batch_inner: layout of the output in memory. None: as the input's. False: ordinary, features
            innermost. True: samples innermost, strides (1, samples), which is what the kernels want: a sparse
            layer reads such an input without a copy, and pointwise layers keep it, so that a stack of sparse
            layers transposes once at each end. Shapes and numbers are the same. :func:`sparsify` sets it
            within an ``nn.Sequential``; with fewer than 16 samples it matters little.
        relu: whether the layer gives ``max(y, 0)``. :func:`sparsify` sets it where an ``nn.ReLU`` followed.
    """

    values: nn.Parameter
    crow: Tensor
    col: Tensor
    plan: Tensor
    plan_t: Tensor
    batch_inner: bool | None = None
    relu: bool = False
    choice: str = ""  # why this layer is sparse, where sparsify() measured

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        crow: Tensor | None = None,
        col: Tensor | None = None,
        block: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        block_rows = check_block(block, "SparseLinear")
        self.in_features = in_features
        self.out_features = out_features
        if (crow is None) != (col is None):
            raise ValueError("SparseLinear: expected both crow and col, or neither, got one of them")
        if crow is None or col is None:
            crow = torch.zeros(out_features // block_rows + 1, dtype=torch.int32, device=device)
            col = torch.zeros(0, dtype=torch.int32, device=device)
        self.values = nn.Parameter(torch.zeros(len(col), block_rows, device=device, dtype=dtype))
        _check_dtype(self.values.dtype)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self._set_pattern(crow, col, block_rows)

    def _set_pattern(self, crow: Tensor, col: Tensor, block_rows: int) -> None:
        if self.out_features % block_rows:
            raise ValueError(
                f"SparseLinear: expected out_features divisible by {block_rows} (rows of a block), "
                f"got {self.out_features}"
            )
        block_rows_of_weight = self.out_features // block_rows
        if crow.shape != (block_rows_of_weight + 1,):
            raise ValueError(
                f"SparseLinear: expected crow.shape == [{block_rows_of_weight + 1}] "
                f"(out_features / {block_rows} + 1), got {list(crow.shape)}"
            )
        pattern = ops.plans(crow, col, self.in_features, block_rows)
        self.register_buffer("crow", pattern.crow)
        self.register_buffer("col", pattern.col)
        self.register_buffer("plan", pattern.plan, persistent=False)
        self.register_buffer("plan_t", pattern.plan_t, persistent=False)

    @classmethod
    def from_dense(
        cls, linear: nn.Linear, mask: Tensor, *, block: tuple[int, int] | None = None
    ) -> SparseLinear:
        """A sparse layer with the weights of ``linear`` that ``mask`` keeps; ``linear`` is not changed.

        Args:
            linear: the dense layer.
            mask: bool (out_features, in_features), True = keep.
            block: (V, 1), V in 1, 2, 4, 8, 16; None takes the largest V for which the mask is made of whole
                blocks.
        Raises:
            TypeError: the mask is not bool, or the weight's dtype has no kernels.
            ValueError: the mask's shape does not fit, or it is not made of whole blocks.
        """
        weight = linear.weight
        check_mask(mask, weight.shape, "SparseLinear.from_dense")
        _check_dtype(weight.dtype)
        block_rows = largest_block(mask) if block is None else check_block(block, "SparseLinear.from_dense")
        try:
            crow, col = bsr_from_mask(mask.to(weight.device), block_rows)
        except ValueError as error:
            raise ValueError(f"SparseLinear.from_dense: {error}") from None
        with torch.no_grad():
            layer = cls(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                weight.device,
                weight.dtype,
                crow=crow,
                col=col,
                block=(block_rows, 1),
            )
            layer.values.copy_(at_blocks(weight, crow, col, block_rows))
            layer.values.requires_grad_(weight.requires_grad)
            if linear.bias is not None:
                layer.bias.copy_(linear.bias)
                layer.bias.requires_grad_(linear.bias.requires_grad)
        return layer.train(linear.training)

    def to_dense(self) -> nn.Linear:
        """An ``nn.Linear`` with the same weights, and zeros where they were pruned.

        It has no ReLU: where ``relu`` is set, one must follow (:func:`densify` of a whole model sees to it).
        """
        # Not nn.Linear(...), which would fill the weight with the user's random numbers.
        linear: nn.Linear = nn.utils.skip_init(
            nn.Linear,
            self.in_features,
            self.out_features,
            self.bias is not None,
            device=self.values.device,
            dtype=self.values.dtype,
        )
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        linear.weight.requires_grad_(self.values.requires_grad)
        if self.bias is not None:
            linear.bias.requires_grad_(self.bias.requires_grad)
        return linear.train(self.training)

    @property
    def weight(self) -> Tensor:
        """W written out, (out_features, in_features): a new tensor each time; differentiable."""
        return dense_weight(self.values, self.crow, self.col, self.in_features)

    @property
    def mask(self) -> Tensor:
        """Where weights were kept, bool (out_features, in_features): a new tensor at each call."""
        return mask_from_bsr(self.crow, self.col, self.in_features, self.block[0])

    @property
    def block(self) -> tuple[int, int]:
        """(V, 1): rows and columns of a block of the pattern."""
        return (self.values.shape[1], 1)

    @property
    def pattern(self) -> ops.Pattern:
        return ops.Pattern(self.crow, self.col, self.plan, self.plan_t)

    def forward(self, x: Tensor) -> Tensor:
        """``(*, in_features)`` to ``(*, out_features)``; any leading dimensions, none included."""
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"SparseLinear: expected x.shape[-1] == {self.in_features} (in_features), "
                f"got x.shape {list(x.shape)}"
            )
        samples = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        y = ops.linear(samples, self.values, self.pattern, self.bias, self.batch_inner, self.relu)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        kept = self.values.numel()
        total = max(self.in_features * self.out_features, 1)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, nnz={kept}, sparsity={1 - kept / total:.4f}, "
            f"block={self.block}" + (", relu=True" if self.relu else "")
        )

    # ---- plans follow the pattern: rebuilt wherever torch moves, loads or copies the module ----------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        _check_dtype(fn(self.values.new_empty(0)).dtype)  # before anything is changed
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
        except (RuntimeError, TypeError, ValueError) as error:  # the layer is as it was, whatever strict says
            error_msgs.append(f"{prefix.removesuffix('.') or 'SparseLinear'}: {error}")
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
            _check_dtype(given["values"].dtype)
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
        state["_buffers"] = {k: v for k, v in self._buffers.items() if k not in PLAN_NAMES}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set_pattern(self.crow, self.col, self.block[0])


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise TypeError(
            f"SparseLinear: expected float32 or bfloat16 (or float64, for checking gradients), got {dtype}, "
            "which has no sparse kernels; use bfloat16, or densify() the model first"
        )
