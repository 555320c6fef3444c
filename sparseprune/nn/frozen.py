"""Modules of networks that are frozen for inference: a convolution that computes what follows it, and what is
left of a batch-norm."""

from typing import Any

from torch import Tensor, nn

from sparseprune.format.memory import in_layout, is_batch_inner_images
from sparseprune.nn.conv import SparseConv2d, has_many_samples


class SparseConvAct2d(SparseConv2d):
    """``relu(conv(x) + residual)``, with one pass over the output; :func:`sparseprune.freeze` makes it.

    Attributes:
        relu: whether there is a ReLU.
        others: those of :class:`SparseConv2d`.
    """

    relu: bool = True

    @property
    def is_last(self) -> bool:
        """Whether the layer computes nothing after the convolution, and may take in what follows it."""
        return not self.relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """As of :class:`SparseConv2d`; ``residual`` of the output's shape."""
        self._check_input(x)
        if x.dim() == 4:
            return self._convolve(x, residual, self.relu)
        return self._convolve(x[None], None if residual is None else residual[None], self.relu)[0]

    def to_dense(self) -> Any:
        raise ValueError(
            "densify: expected a model as it was before freeze(), which takes batch-norms and ReLUs into "
            "convolutions, got a frozen one; densify that model instead"
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + (", relu=True" if self.relu else "")


class AddAct2d(nn.Module):
    """``relu(x + residual)``: what is left of a batch-norm that a dense convolution has taken in.

    Args:
        relu: whether there is a ReLU.

    Attributes:
        batch_inner: layout of the output in memory, as of :class:`BatchNormAct2d`.
    """

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.relu = relu
        self.batch_inner: bool | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Tensors of one shape, (N, channels, H, W), to the same shape."""
        y = x if residual is None else x + residual
        y = y.relu() if self.relu else y
        inner = is_batch_inner_images(x) if self.batch_inner is None else self.batch_inner
        return in_layout(y, inner and has_many_samples(x))

    def extra_repr(self) -> str:
        return f"relu={self.relu}"


class FoldedNorm1d(nn.Identity):
    """What is left of an ``nn.BatchNorm1d`` that a linear layer has taken in: nothing, for (N, features)."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 2:
            raise ValueError(
                "FoldedNorm1d: expected (samples, features), over which freeze() took the batch-norm to be, "
                f"got {list(input.shape)}; use the model as it was before"
            )
        return input
