"""``BatchNormAct2d``: batch normalisation that adds a residual and applies a ReLU in the same pass."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from sparseprune.fallback.batch_norm import in_layout
from sparseprune.fallback.convolution import is_batch_inner_images
from sparseprune.nn.conv import FEW_SAMPLES

Norm = TypeVar("Norm", bound=nn.BatchNorm2d)


class BatchNormAct2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with what follows it in a network: ``relu(batch_norm(x) + residual)``.

    Parameters, buffers, ``state_dict`` keys and numbers are those of ``nn.BatchNorm2d``. It is fast on
    batch-inner activations (see :class:`SparseConv2d`), of which it reads and writes whole channels.

    Args:
        relu: whether to apply a ReLU.
        others: those of ``nn.BatchNorm2d``.

    Attributes:
        batch_inner: layout of the output in memory, as of :class:`SparseConv2d`. None: batch-inner where the
            input is, otherwise ordinary.
    """

    batch_inner: bool | None
    relu: bool

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        relu: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.relu = relu
        self.batch_inner = None

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d, relu: bool = False) -> BatchNormAct2d:
        """A layer with the parameters and buffers of ``norm``: the same tensors, not copies.

        Raises:
            TypeError: ``norm`` is not just an ``nn.BatchNorm2d``: a derived class may compute something else.
        """
        if type(norm) is not nn.BatchNorm2d:
            raise TypeError(
                f"{cls.__name__}.from_batch_norm: expected an nn.BatchNorm2d, got {type(norm).__name__}; "
                "leave it as it is"
            )
        layer = cls(
            norm.num_features,
            norm.eps,
            norm.momentum,
            norm.affine,
            norm.track_running_stats,
            device="meta",
            relu=relu,
        )
        return _with_tensors_of(norm, layer)

    def to_batch_norm(self) -> nn.BatchNorm2d:
        """An ``nn.BatchNorm2d`` with copies of the parameters and buffers; it does neither add nor ReLU."""
        like = copy.deepcopy(self)
        norm = nn.BatchNorm2d(
            self.num_features,
            self.eps,
            self.momentum,
            self.affine,
            self.track_running_stats,
            device="meta",
        )
        return _with_tensors_of(like, norm)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``relu(batch_norm(x) + residual)``.

        Args:
            x: (N, num_features, H, W), any memory layout.
            residual: of x's shape, or None.
        Returns:
            x's shape.
        """
        y = super().forward(x)
        if residual is not None:
            y = y + residual
        if self.relu:
            y = y.relu()
        inner = self.batch_inner if len(x) >= FEW_SAMPLES else False
        return in_layout(y, is_batch_inner_images(x) if inner is None else inner)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", relu=True" if self.relu else "")


def _with_tensors_of(norm: nn.BatchNorm2d, layer: Norm) -> Norm:
    for name, parameter in norm._parameters.items():
        layer.register_parameter(name, parameter)
    for name, buffer in norm._buffers.items():
        layer._buffers[name] = buffer
    return layer.train(norm.training)
