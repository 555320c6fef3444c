"""``SparseLinear``: a drop-in for ``nn.Linear`` that stores and computes only the weights that were kept."""

import math

import torch
from torch import Tensor, nn

from sparseprune import ops
from sparseprune.format.sizes import check_size
from sparseprune.nn.sparse import SparseLayer, pattern_of_mask


class SparseLinear(SparseLayer):
    """``y = x W^T + b`` with a W that is zero outside a fixed pattern of blocks of V rows x 1 column.

    ``values`` (nnzb, V) is the only weight parameter: gradients and optimizer state have its size. The
    pattern is in the buffers ``crow`` int32 (out_features / V + 1,) and ``col`` int32 (nnzb,). V = 1 is
    unstructured; larger blocks compute faster.

    In float32 or bfloat16 (or float64: slow, for checking gradients). Products of bfloat16 are summed in
    float32. Under autocast it computes in autocast's dtype, as ``nn.Linear`` does.

    ``weight``, the dense one, is computed from ``values``, and keeps what is written to it where weights are:
    ``nn.init.xavier_uniform_(layer.weight)``, ``layer.weight.data.normal_()`` or ``layer.weight.mul_(0.5)``
    work as on ``nn.Linear``, except within compiled graphs. Do not initialise ``values`` by its shape, which
    does not tell the number of inputs. The layer is no ``nn.Linear`` for ``isinstance``: what initialises
    layers by their class passes it by, so initialise before :func:`sparsify`, or ask for ``SparseLinear``,
    too.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension, divisible by V.
        bias: whether the layer adds a learned bias (out_features,).
        crow: starts of the pattern's block rows; without a pattern the layer keeps no weight until a
            ``state_dict`` with one is loaded. Usually a layer is made by :meth:`from_dense`.
        col: columns of the pattern, ascending within each block row.
        block: (V, 1), V in 1, 2, 4, 8, 16.

    Attributes:
        batch_inner: layout of the output in memory. None: as the input's. False: ordinary, features
            innermost. True: samples innermost, strides (1, samples), which is what the kernels want: a sparse
            layer reads such an input without a copy, and pointwise layers keep it, so that a stack of sparse
            layers transposes once at each end. Shapes and numbers are the same. :func:`sparsify` sets it
            within a network; with fewer than 16 samples it matters little.
        relu: whether the layer gives ``max(y, 0)``. :func:`sparsify` sets it where a ReLU followed.
    """

    relu: bool = False

    rows_name = "out_features"

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
        check_size("SparseLinear", "in_features", in_features)
        check_size("SparseLinear", "out_features", out_features)
        self.in_features = in_features
        self.out_features = out_features
        self._init_weight(bias, device, dtype, crow, col, block)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out_features, in_features)"""
        return (self.out_features, self.in_features)

    @property
    def is_last(self) -> bool:
        """Whether the layer has no ReLU yet, and may take in one that follows."""
        return not self.relu

    def _planned(self, crow: Tensor, col: Tensor, block_rows: int) -> ops.Pattern:
        return ops.plans(crow, col, self.in_features, block_rows)

    @classmethod
    def from_dense(
        cls, linear: nn.Linear, mask: Tensor, *, block: tuple[int, int] | None = None
    ) -> "SparseLinear":
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
        crow, col, block_rows = pattern_of_mask(mask, weight, block, "SparseLinear.from_dense")
        sizes = (linear.in_features, linear.out_features, linear.bias is not None)
        layer = cls(*sizes, weight.device, weight.dtype, crow=crow, col=col, block=(block_rows, 1))
        layer._take_weights(linear)
        return layer

    def to_dense(self) -> nn.Linear:
        """An ``nn.Linear`` with the same weights, and zeros where they were pruned.

        It has no ReLU: where ``relu`` is set, one must follow (:func:`densify` of a whole model sees to it).
        """
        # Not nn.Linear(...), which would fill the weight with the user's random numbers.
        sizes, like = (self.in_features, self.out_features, self.bias is not None), self.values
        linear = nn.utils.skip_init(nn.Linear, *sizes, device=like.device, dtype=like.dtype)
        return self._give_weights(linear)

    def forward(self, x: Tensor) -> Tensor:
        """``(*, in_features)`` to ``(*, out_features)``; any leading dimensions, none included."""
        # A trace would take the comparison for a constant, and warn.
        if not torch.jit.is_tracing() and (x.dim() == 0 or x.shape[-1] != self.in_features):
            raise ValueError(
                f"SparseLinear: expected x.shape[-1] == {self.in_features} (in_features), "
                f"got x.shape {list(x.shape)}"
            )
        samples = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), self.in_features)
        # Not self.values, for which nn.Module takes a microsecond; unless it is parametrized.
        own = self._parameters
        values, bias = own.get("values"), own.get("bias")
        if values is None:
            values = self.values
        if bias is None:
            bias = self.bias
        y = ops.linear(samples, values, self.pattern, bias, self.batch_inner, self.relu)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self._repr_of_weight()}" + (", relu=True" if self.relu else "")
        )
