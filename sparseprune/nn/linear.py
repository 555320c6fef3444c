"""``SparseLinear``: a drop-in for ``nn.Linear`` that stores and computes only the weights that were kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune import ops
from sparseprune.fallback import dense_weight
from sparseprune.pattern import check_block, check_mask, csr_from_mask, mask_from_csr

PLAN_NAMES = ("plan", "plan_t")  # buffers derived from the pattern; never saved


class SparseLinear(nn.Module):
    """``y = x W^T + b`` with a W that is zero outside a fixed pattern.

    ``values`` (nnz, 1) is the only weight parameter: gradients and optimizer state have its size. The pattern
    is in the buffers ``crow`` int32 (out_features + 1,) and ``col`` int32 (nnz,).

    A tensor whose strides are already batch-inner passes through without a copy, and the output keeps that
    layout.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        bias: whether to add a learned bias (out_features,).
        crow: row starts of the pattern; without a pattern the layer keeps no weight until a ``state_dict``
            with one is loaded. Usually a layer is made by :meth:`from_dense`.
        col: columns of the pattern, ascending within each row.
    """

    values: nn.Parameter
    crow: Tensor
    col: Tensor
    plan: Tensor
    plan_t: Tensor
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
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        if (crow is None) != (col is None):
            raise ValueError("SparseLinear: expected both crow and col, or neither, got one of them")
        if crow is None or col is None:
            crow = torch.zeros(out_features + 1, dtype=torch.int32, device=device)
            col = torch.zeros(0, dtype=torch.int32, device=device)
        self.values = nn.Parameter(torch.zeros(len(col), 1, device=device, dtype=dtype))
        _check_dtype(self.values.dtype)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self._set_pattern(crow, col)

    def _set_pattern(self, crow: Tensor, col: Tensor) -> None:
        if crow.shape != (self.out_features + 1,):
            raise ValueError(
                f"SparseLinear: expected crow.shape == [{self.out_features + 1}] (out_features + 1), "
                f"got {list(crow.shape)}"
            )
        pattern = ops.plans(crow, col, self.in_features)
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
            block: None or (1, 1).
        Raises:
            TypeError: the mask is not bool, or the weight's dtype has no kernels.
            ValueError: the mask's shape or the block does not fit.
        """
        weight = linear.weight
        check_mask(mask, weight.shape, "SparseLinear.from_dense")
        check_block(block, "SparseLinear.from_dense")
        _check_dtype(weight.dtype)
        crow, col, flat = csr_from_mask(mask.to(weight.device))
        with torch.no_grad():
            layer = cls(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                weight.device,
                weight.dtype,
                crow=crow,
                col=col,
            )
            layer.values.copy_(weight.reshape(-1)[flat][:, None])
            layer.values.requires_grad_(weight.requires_grad)
            if linear.bias is not None:
                layer.bias.copy_(linear.bias)
                layer.bias.requires_grad_(linear.bias.requires_grad)
        return layer.train(linear.training)

    def to_dense(self) -> nn.Linear:
        """An ``nn.Linear`` with the same weights, and zeros where they were pruned."""
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
        return mask_from_csr(self.crow, self.col, self.in_features)

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
        y = ops.linear(samples, self.values, self.pattern, self.bias)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        kept = len(self.col)
        total = max(self.in_features * self.out_features, 1)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, nnz={kept}, sparsity={1 - kept / total:.4f}"
        )

    # ---- plans follow the pattern: rebuilt wherever torch moves, loads or copies the module ----------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseLinear:
        _check_dtype(fn(self.values.new_empty(0)).dtype)  # before anything is changed
        device = self.crow.device
        super()._apply(fn, recurse)
        if self.crow.device != device and not self.crow.is_meta:
            self._set_pattern(self.crow, self.col)
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
                self._take_over(given)
        except (RuntimeError, ValueError) as error:  # the layer is as it was, whatever strict says
            error_msgs.append(f"{prefix.removesuffix('.') or 'SparseLinear'}: {error}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _take_over(self, given: dict[str, Tensor]) -> None:
        """Give the layer a checkpoint's pattern and room for its values; the parameter stays the same one."""
        if len(given) < 3:
            raise ValueError(f"expected values, crow and col together, got {', '.join(given)}")
        crow, col = given["crow"].to(self.crow.device), given["col"].to(self.col.device)
        shape = (col.numel(), 1)
        if given["values"].shape != shape:
            raise ValueError(
                f"expected values.shape == {list(shape)} (nonzeros of the checkpoint's pattern), "
                f"got {list(given['values'].shape)}"
            )
        if not (torch.equal(crow, self.crow) and torch.equal(col, self.col)):
            self._set_pattern(crow.clone(), col.clone())
            self.values.data = self.values.new_zeros(shape)
            self.values.grad = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_buffers"] = {k: v for k, v in self._buffers.items() if k not in PLAN_NAMES}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set_pattern(self.crow, self.col)


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"SparseLinear: expected float32 (or float64, for checking gradients), got {dtype}, which has no "
            "sparse kernels yet; keep the layer in float32, or densify() the model first"
        )
