"""Batch normalisation that adds a residual and applies a ReLU in the same pass: ``BatchNormAct2d``, and one
for timm's layer of that name."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparseprune.format.memory import in_layout, is_batch_inner_images
from sparseprune.nn.conv import has_many_samples
from sparseprune.ops.batch_norm import normalize, normalize_with
from sparseprune.ops.devices import dtypes_of_sums
from sparseprune.ops.transforms import transformed

Norm = TypeVar("Norm", bound=nn.BatchNorm2d)


class BatchNormAct2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with what follows it in a network: ``relu(batch_norm(x) + residual)``.

    Parameters, buffers, ``state_dict`` keys and numbers are those of ``nn.BatchNorm2d``. It is fast on
    batch-inner activations (see :class:`SparseConv2d`), of which it reads and writes whole channels.

    Args:
        relu: whether the layer applies a ReLU.
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
    def from_batch_norm(cls, norm: nn.BatchNorm2d, relu: bool = False) -> "BatchNormAct2d":
        """A layer with the parameters and buffers of ``norm``: the same tensors, not copies.

        Raises:
            TypeError: ``norm`` is not just an ``nn.BatchNorm2d``: a derived class may compute something else.
        """
        if type(norm) is not nn.BatchNorm2d:
            raise TypeError(
                f"{cls.__name__}.from_batch_norm: expected an nn.BatchNorm2d, got {type(norm).__name__}; "
                "leave it as it is"
            )
        layer = _with_tensors_of(norm, cls)
        layer.relu = relu
        return layer

    def to_batch_norm(self) -> nn.BatchNorm2d:
        """An ``nn.BatchNorm2d`` with copies of the parameters and buffers; it does neither add nor ReLU."""
        return _with_tensors_of(copy.deepcopy(self), nn.BatchNorm2d)

    @property
    def applies_relu(self) -> bool:
        """Whether the output is that of a ReLU."""
        return self.relu

    @property
    def is_last(self) -> bool:
        """Whether the layer computes nothing after the normalisation, and may take in what follows it."""
        return not self.relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``relu(batch_norm(x) + residual)``.

        Args:
            x: (N, num_features, H, W), any memory layout.
            residual: tensor of x's shape, or None.
        Returns:
            x's shape.
        """
        inner = self.batch_inner if has_many_samples(x) else False
        # Torch's own functions have rules for all of its transforms.
        if not transformed() and self._has_kernels_for(x, residual):
            return self._fused(x, residual, inner)
        y = super().forward(x)
        if residual is not None:
            y = y + residual
        if self.applies_relu:
            y = y.relu()
        return in_layout(y, is_batch_inner_images(x) if inner is None else inner)

    def _has_kernels_for(self, x: Tensor, residual: Tensor | None) -> bool:
        numbers = (self.weight, self.bias, self.running_mean, self.running_var)
        sums = dtypes_of_sums(x.device)
        # Torch refuses a single value per channel where it computes statistics.
        fewest = 2 if self.training or self.running_mean is None else 1
        return (
            (x.is_cpu or x.is_cuda)
            and x.dtype in sums
            and x.dim() == 4
            and x.shape[1] == self.num_features
            and x.numel() >= fewest * self.num_features
            and all(
                t is None or (t.device == x.device and t.dtype in (x.dtype, sums[x.dtype])) for t in numbers
            )
            and (
                residual is None
                or (residual.device == x.device and residual.dtype == x.dtype and residual.shape == x.shape)
            )
        )

    def _fused(self, x: Tensor, residual: Tensor | None, inner: bool | None) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if not self.training and mean is not None and var is not None:
            inputs = (x, self.weight, self.bias, mean, var, residual, self.eps, self.applies_relu, inner)
            given: Tensor = normalize_with(*inputs)
            return given
        y, batch_mean, batch_var = normalize(
            x, self.weight, self.bias, residual, self.eps, self.applies_relu, inner
        )
        if self.training and self.track_running_stats:
            self._track(batch_mean, batch_var, x.numel() // self.num_features)
        return y

    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Update the running statistics as torch does: with the unbiased variance of ``count`` values."""
        factor = 0.0 if self.momentum is None else self.momentum
        with torch.no_grad():
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
                if self.momentum is None:
                    factor = 1.0 / float(self.num_batches_tracked)
            if self.running_mean is not None and self.running_var is not None:
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
                self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), factor)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", relu=True" if self.relu else "")


class BatchNormAnyAct2d(BatchNormAct2d):
    """timm's ``BatchNormAct2d``: batch normalisation, something that drops, and any activation.

    A ReLU with nothing dropped before it is computed in the same pass.

    Attributes:
        drop, act: modules; those of timm's layer.
        kind: timm's class.
        others: those of :class:`BatchNormAct2d`.
    """

    drop: nn.Module
    act: nn.Module
    kind: Any

    @classmethod
    def from_batch_norm(cls, norm: Any, relu: bool = False) -> "BatchNormAnyAct2d":
        """A layer with the parameters, buffers and modules of ``norm``: the same, not copies.

        Raises:
            TypeError: ``norm`` is not timm's layer.
        """
        if not is_norm_with_act(norm):
            raise TypeError(
                f"{cls.__name__}.from_batch_norm: expected timm's BatchNormAct2d, got {type(norm).__name__}; "
                "leave it as it is"
            )
        layer = _with_tensors_of(norm, cls)
        layer.relu, layer.kind = relu, type(norm)
        layer.drop, layer.act = norm.drop, norm.act
        return layer

    def to_batch_norm(self) -> nn.BatchNorm2d:
        """timm's layer, with copies of the parameters, buffers and modules."""
        like = copy.deepcopy(self)
        norm = _with_tensors_of(like, self.kind)
        norm.drop, norm.act = like.drop, like.act
        return norm

    @property
    def applies_relu(self) -> bool:
        return self.relu or (type(self.drop) is nn.Identity and type(self.act) is nn.ReLU)

    @property
    def is_last(self) -> bool:
        return not self.relu and all(type(part) is nn.Identity for part in (self.drop, self.act))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``act(drop(batch_norm(x)))``; a residual only with no activation but ``relu``."""
        y = super().forward(x, residual)
        return y if self.applies_relu else self.act(self.drop(y))


def is_norm_with_act(module: nn.Module) -> bool:
    """Whether this is timm's ``BatchNormAct2d``."""
    kind = type(module)
    return kind.__name__ == "BatchNormAct2d" and kind.__module__.split(".")[0] == "timm"


def _with_tensors_of(norm: nn.BatchNorm2d, kind: type[Norm]) -> Norm:
    """A layer of that class with the settings, the parameters and the buffers of another."""
    with torch.device("meta"):
        layer = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name, parameter in norm._parameters.items():
        layer.register_parameter(name, parameter)
    for name, buffer in norm._buffers.items():
        layer._buffers[name] = buffer
    return layer.train(norm.training)
