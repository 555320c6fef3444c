"""What sparse layers have in common: a weight of fixed pattern, stored in blocks of V rows x 1 column."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune import ops
from sparseprune.format.bsr import (
    as_int32,
    at_blocks,
    bsr_from_mask,
    check_block,
    check_mask,
    dense_weight,
    mask_from_bsr,
    pattern_of_largest_blocks,
)
from sparseprune.nn import dialects
from sparseprune.nn.computed import computed_weight
from sparseprune.nn.pattern import PatternBuffers, same_pattern
from sparseprune.nn.values import (
    Carried,
    Parametrizations,
    check_dtype,
    living_optimizers,
    positions,
    resize,
    states_of,
)

Dense = TypeVar("Dense", nn.Linear, nn.Conv1d, nn.Conv2d)


class SparseLayer(PatternBuffers):
    """A layer whose weight, ``weight.flatten(1)`` as a matrix, is zero outside a fixed pattern of blocks.

    ``values`` (nnzb, V) is the only weight parameter: gradients and optimizer state have its size. The
    pattern is in the buffers ``crow`` and ``col``: see :class:`PatternBuffers`.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    batch_inner: bool | None = None
    choice: str = ""  # why this layer is sparse, where sparsify() measured

    rows_name: ClassVar[str]  # what the layer calls the weight's rows

    # ---- what a layer says of itself -----------------------------------------------------------------------

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight of the dense layer."""
        raise NotImplementedError

    def _planned(self, crow: Tensor, col: Tensor, block_rows: int) -> Any:
        """A pattern with its plans, as the operators want it; raises if it is malformed."""
        raise NotImplementedError

    def to_dense(self) -> Any:
        """Torch's own layer with the same weights, and zeros where they were pruned."""
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
        crow, col = as_int32(crow, f"{name}: crow"), as_int32(col, f"{name}: col")
        self.values = nn.Parameter(torch.zeros(len(col), block_rows, device=device, dtype=dtype))
        check_dtype(self.values, name)
        if bias:
            self.bias = nn.Parameter(torch.zeros(rows, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.register_buffer("crow", crow)
        self.register_buffer("col", col)
        self._use_buffers(block_rows)

    def _check_pattern(self, crow: Tensor, col: Tensor, block_rows: int) -> Any:
        """A copy of a pattern with its plans; raises if it is none of this layer."""
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
        # Tensors made in inference mode do not tell whether they were written to.
        with torch.inference_mode(False):
            checked = self._planned(crow.clone(), col.clone(), block_rows)
        for plan in checked[2:]:
            ops.forget_with(plan)
        return checked

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
        """The weight written out, with zeros: a new tensor each time; differentiable.

        What is written to it, ``values`` keep; see :class:`sparseprune.nn.computed.ComputedWeight`.
        """
        crow, col, *_ = self.pattern
        weight = dense_weight(self.values, crow, col, self._cols).reshape(self.weight_shape)
        return computed_weight(weight, self.values, self._store_weight, type(self).__name__)

    def _store_weight(self, weight: Tensor) -> None:
        if "values" not in self._parameters:
            raise RuntimeError(
                f"{type(self).__name__}: expected values without a parametrization to write a weight to; "
                "remove it first"
            )
        crow, col, *_ = self.pattern
        self.values.copy_(at_blocks(weight.flatten(1), crow, col, self.block[0]))
        weight.masked_fill_(~self.mask, 0)

    def reset_parameters(self) -> None:
        """New weights and bias: those that torch draws for the dense layer, of which the pruned ones go."""
        dense = self.to_dense()
        dense.reset_parameters()
        with torch.no_grad():
            self.weight.copy_(dense.weight)
            if self.bias is not None:
                self.bias.copy_(dense.bias)

    @property
    def mask(self) -> Tensor:
        """Where weights were kept, bool, of the weight's shape: a new tensor at each call."""
        crow, col, *_ = self.pattern
        return mask_from_bsr(crow, col, self._cols, self.block[0]).reshape(self.weight_shape)

    @property
    def block(self) -> tuple[int, int]:
        """(V, 1): rows and columns of a block of the pattern."""
        return (self.values.shape[1], 1)

    def _repr_of_weight(self) -> str:
        kept = self.values.numel()
        return (
            f"nnz={kept}, sparsity={1 - kept / max(math.prod(self.weight_shape), 1):.4f}, block={self.block}"
        )

    # ---- the pattern changes -------------------------------------------------------------------------------

    def move_pattern(self, crow: Tensor, col: Tensor, optimizers: Sequence[Optimizer] = ()) -> None:
        """Give the layer another pattern: weights that stay keep their values, new ones are 0.

        So do the gradient and whatever the optimizers keep for each value (momentum, Adam's moments, ...).
        With as many blocks as before, ``values`` keeps its memory too, and compiled graphs go on.

        Args:
            crow: int32 (rows / V + 1,), starts of the block rows; V stays.
            col: int32 (nnzb,), columns, ascending within each block row.
            optimizers: those that train the layer.
        Raises:
            ValueError: this is no pattern of the layer; nothing was changed.
        """
        if "values" not in self._parameters:
            raise ValueError(
                f"{type(self).__name__}: expected values without a parametrization; remove it first"
            )
        old, values = self.pattern, self.values
        new = self._check_pattern(crow.to(old[0].device), col.to(old[0].device), self.block[0])
        before, after = (positions(pattern[0], pattern[1], self._cols) for pattern in (old, new))
        carried = Carried(before, after)
        with torch.no_grad():
            if len(before) == len(after):
                # In the same memory, which buckets of gradients and flat optimizers may share.
                numbers = [state[key] for state, key in states_of(values, optimizers)]
                for t in (values, *([] if values.grad is None else [values.grad]), *numbers):
                    t.copy_(carried(t))
            else:
                for state, key in states_of(values, optimizers):
                    state[key] = carried(state[key])
                grad = None if values.grad is None else carried(values.grad)
                values.grad = None
                values.data = carried(values.detach())
                values.grad = grad
            self._write_buffers(new)
        self._use(new)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseLayer":
        # Before anything is changed.
        check_dtype(fn(self.values.new_empty(0)), type(self).__name__)
        block_rows, device = self.block[0], self.pattern[0].device
        super()._apply(fn, recurse)
        if device.type == "meta" and not self.crow.is_meta:
            # Memory without numbers, from to_empty(): no weight until a state_dict is loaded.
            self.values.data = self.values.new_zeros(0, block_rows)
            self.crow.zero_()
            self.col = self.col.new_zeros(0)
            self._use_buffers(block_rows)
        elif self.crow.device != device:
            self._use_buffers(block_rows)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                f"{type(self).__name__}: expected weight to be written to, got another one in its place, but "
                "it is computed from values; use weight.copy_(...), which keeps the pattern, or make a layer "
                "with from_dense()"
            )
        if name == "parametrizations" and type(value) is nn.ModuleDict:
            value = Parametrizations()
        super().__setattr__(name, value)

    # ---- checkpoints and copies ----------------------------------------------------------------------------

    def own_entries(self, given: Mapping[str, Any]) -> dict[str, Tensor]:
        """A weight of any dialect (see :mod:`sparseprune.nn.dialects`) as ``values``, ``crow`` and ``col``.

        A mask brings its pattern with it. A dense weight without one must be 0 outside the layer's pattern;
        a layer that keeps nothing yet takes the pattern of those that are not 0.

        Args:
            given: tensors by the names of a dialect.
        Raises:
            TypeError, ValueError: it does not fit the layer.
        """
        if "values" in given:
            return {"values": given["values"], **_in_int32(given)}
        shape, transposed = torch.Size(self.weight_shape), dialects.is_transposed(self)
        weight, mask = dialects.weight_and_mask(given, shape[::-1] if transposed else shape)
        if transposed:
            weight, mask = weight.t(), None if mask is None else mask.t()
        own = self.mask.to(weight.device)
        if mask is None:
            mask = dialects.kept_by(weight, own) if own.any() else weight != 0
        if not torch.equal(mask, own):
            return dialects.as_sparse(weight, mask, getattr(self, "groups", 1))
        crow, col = (t.to(weight.device) for t in self.pattern[:2])
        return {"values": at_blocks(weight.flatten(1), crow, col, self.block[0]), "crow": crow, "col": col}

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
        try:
            dialect, found, names = dialects.find(state_dict, f"{prefix}weight")
            if dialect not in ((), dialects.SPARSE) and "values" in self._parameters:
                state_dict = dialects.replaced(state_dict, names, prefix, self.own_entries(found))
            present = {name: state_dict.get(prefix + name) for name in ("crow", "col")}
            state_dict = dialects.replaced(state_dict, [], prefix, _in_int32(present))
        except (RuntimeError, TypeError, ValueError) as error:
            error_msgs.append(f"{prefix.removesuffix('.') or type(self).__name__}: {error}")
            return
        own = [name for name, t in (*self._parameters.items(), *self._buffers.items()) if t is not None]
        given = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
        try:
            if not {"crow", "col"} <= given.keys():
                self._follow_buffers()
            pattern = self._check_given(given, local_metadata.get("assign_to_params_buffers", False))
        except (RuntimeError, TypeError, ValueError) as error:
            error_msgs.append(f"{prefix.removesuffix('.') or type(self).__name__}: {error}")
            return
        if pattern is not self._checked:
            shape = given.get("values", self.values).shape
            if shape != self.values.shape:
                resize(self.values, shape, type(self).__name__, living_optimizers(error_msgs))
            self.values.grad = None
        with torch.no_grad():
            self._write_buffers(pattern)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._use(pattern)

    def _check_given(self, given: dict[str, Any], assign: bool) -> Any:
        """The pattern of a checkpoint, checked, or that of the layer where it is the same."""
        for name, t in given.items():
            if not isinstance(t, Tensor):
                raise TypeError(f"expected {name} to be a tensor, got {type(t).__name__}")
        values = given.get("values", self.values)
        crow, col = given.get("crow", self._checked[0]), given.get("col", self._checked[1])
        dialects.check_values(values, col)
        if "values" not in self._parameters and values.shape != self.values.shape:
            raise ValueError(
                f"expected values.shape == {list(self.values.shape)}, those of the parametrization, got "
                f"{list(values.shape)}; remove the parametrization before loading another pattern"
            )
        if "bias" in given and self.bias is not None and given["bias"].shape != self.bias.shape:
            raise ValueError(
                f"expected bias.shape == {list(self.bias.shape)} ({self.rows_name}), "
                f"got {list(given['bias'].shape)}"
            )
        if assign:
            for t in (values, given.get("bias")):
                if t is not None:
                    check_dtype(t, type(self).__name__)
        device = crow.device if assign else self.crow.device
        crow, col = crow.to(device), col.to(device)
        same = same_pattern((crow, col), self._checked)
        if not same and ("crow" in given) != ("col" in given):
            raise ValueError("expected crow and col together, or those of the layer, got one of them")
        if same and values.shape == self.values.shape:
            return self._checked
        return self._check_pattern(crow, col, values.shape[1])


def _in_int32(given: Mapping[str, Any]) -> dict[str, Any]:
    """``crow`` and ``col``, those that are tensors, in int32."""
    pattern = {name: given.get(name) for name in ("crow", "col")}
    return {name: as_int32(t, name) for name, t in pattern.items() if isinstance(t, Tensor)}


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
    block_rows = None if block is None else check_block(block, op)
    try:
        if block_rows is None:
            return pattern_of_largest_blocks(matrix.to(weight.device), groups)
        return (*bsr_from_mask(matrix.to(weight.device), block_rows), block_rows)
    except ValueError as error:
        raise ValueError(f"{op}: {error}") from None
