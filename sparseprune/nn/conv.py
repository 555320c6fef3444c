"""``SparseConv2d`` and ``SparseConv1d``: drop-ins for torch's convolutions that store and compute only the
weights that were kept."""

from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from sparseprune.format.geometry import check_arguments
from sparseprune.format.memory import is_batch_inner_images
from sparseprune.nn.sparse import SparseLayer, pattern_of_mask
from sparseprune.ops.convolution import ConvPattern, Geometry, conv_pattern, convolve

FEW_SAMPLES = 16  # below, the kernels compute ordinary (N, C, H, W) memory, and layers hand it on

# What torch's convolutions are made from, beside bias, device and dtype.
ARGUMENTS = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    "padding_mode",
)

Layer = TypeVar("Layer", bound="_SparseConv")


def has_many_samples(x: Tensor) -> bool:
    """Whether there are so many that layers hand batch-inner memory on.

    A program that is exported for any number of samples is to serve few.
    """
    if torch.compiler.is_exporting():
        return statically_known_true(x.shape[0] >= FEW_SAMPLES)
    return x.shape[0] >= FEW_SAMPLES


class _SparseConv(SparseLayer):
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    rows_name = "out_channels"
    dense_class: ClassVar[Any]  # nn.Conv1d or nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        crow: Tensor | None = None,
        col: Tensor | None = None,
        block: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        check_arguments(
            type(self).__name__,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
        # Torch's own layer, without memory, checks the arguments and writes them out.
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        like = self.dense_class(*sizes, bias=False, padding_mode=padding_mode, device="meta")
        for name in ARGUMENTS:
            setattr(self, name, getattr(like, name))
        # (left, right) of a 1-d layer, (left, right, top, bottom) of a 2-d one
        self._pad = tuple(like._reversed_padding_repeated_twice)
        self._init_weight(bias, device, dtype, crow, col, block)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out_channels, in_channels / groups, *kernel_size)"""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def geometry(self) -> Geometry:
        """What the operators want to know; padding of other modes than zeros is not among it."""
        pad = self._pad if self.padding_mode == "zeros" else (0,) * len(self._pad)
        (left, right), (top, bottom) = pad[:2], pad[2:] or (0, 0)
        kernel_h, kernel_w = self.kernel_size if len(self.kernel_size) == 2 else (1, *self.kernel_size)
        stride_h, stride_w = self.stride if len(self.stride) == 2 else (1, *self.stride)
        dilation_h, dilation_w = self.dilation if len(self.dilation) == 2 else (1, *self.dilation)
        return Geometry(
            self.in_channels,
            kernel_h,
            kernel_w,
            stride_h,
            stride_w,
            top,
            bottom,
            left,
            right,
            dilation_h,
            dilation_w,
            self.groups,
        )

    def _planned(self, crow: Tensor, col: Tensor, block_rows: int) -> ConvPattern:
        if self.out_channels // self.groups % block_rows:
            raise ValueError(
                f"{type(self).__name__}: expected out_channels / groups divisible by {block_rows} (rows of a "
                f"block), got {self.out_channels} / {self.groups}; a block cannot cross groups"
            )
        return conv_pattern(crow, col, self.geometry, block_rows)

    @classmethod
    def from_dense(
        cls: type[Layer], conv: Any, mask: Tensor, *, block: tuple[int, int] | None = None
    ) -> Layer:
        """A sparse layer with the weights of ``conv`` that ``mask`` keeps; ``conv`` is not changed.

        Args:
            conv: the dense layer, of torch's class.
            mask: bool, of the weight's shape, True = keep.
            block: (V, 1), V in 1, 2, 4, 8, 16, blocks of ``mask.flatten(1)``; None takes the largest V that
                divides out_channels / groups and for which the mask is made of whole blocks.
        Raises:
            TypeError: the mask is not bool, or the weight's dtype has no kernels.
            ValueError: the mask's shape does not fit, or it is not made of whole blocks.
        """
        weight = conv.weight
        crow, col, block_rows = pattern_of_mask(
            mask, weight, block, f"{cls.__name__}.from_dense", conv.groups
        )
        made = {name: getattr(conv, name) for name in ARGUMENTS}
        made |= {"bias": conv.bias is not None, "device": weight.device, "dtype": weight.dtype}
        layer = cls(**made, crow=crow, col=col, block=(block_rows, 1))
        layer._take_weights(conv)
        return layer

    def to_dense(self) -> Any:
        """Torch's own layer with the same weights, and zeros where they were pruned."""
        made = {name: getattr(self, name) for name in ARGUMENTS}
        made |= {"bias": self.bias is not None, "device": self.values.device, "dtype": self.values.dtype}
        conv = nn.utils.skip_init(self.dense_class, **made)
        return self._give_weights(conv)

    def _check_input(self, x: Tensor) -> None:
        dims = len(self.kernel_size) + 2
        # The dimension of channels: 1, or 0 without a batch.
        channels = x.dim() - dims + 1
        if channels not in (0, 1) or (not torch.jit.is_tracing() and x.shape[channels] != self.in_channels):
            sizes = ", ".join(["height", "width"][4 - dims :])
            raise ValueError(
                f"{type(self).__name__}: expected x.shape == [samples, {self.in_channels} (in_channels), "
                f"{sizes}] or the same without samples, got {list(x.shape)}"
            )

    def _convolve(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        inner = self.batch_inner
        if inner:
            inner = has_many_samples(x)
        if self.padding_mode != "zeros":
            if inner is None:
                # The padded copy is not batch-inner any more.
                inner = is_batch_inner_images(x)
            pad = self._pad if len(self._pad) == 4 else (*self._pad, 0, 0)
            x = F.pad(x, pad, mode=self.padding_mode)
        return convolve(x, self.values, self.pattern, self.geometry, self.bias, inner, residual, relu)

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}",
            f"stride={self.stride}",
        ]
        zero, one = (0,) * len(self.kernel_size), (1,) * len(self.kernel_size)
        parts += [f"padding={self.padding}"] if self.padding != zero else []
        parts += [f"dilation={self.dilation}"] if self.dilation != one else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += ["bias=False"] if self.bias is None else []
        parts += [f"padding_mode={self.padding_mode}"] if self.padding_mode != "zeros" else []
        return ", ".join([*parts, self._repr_of_weight()])


class SparseConv2d(_SparseConv):
    """``nn.Conv2d`` with a weight that is zero outside a fixed pattern of blocks of V output channels.

    Takes the arguments of ``nn.Conv2d`` and has its attributes. The pattern is one of ``weight.flatten(1)``,
    (out_channels, in_channels / groups * kernel height * kernel width); see :class:`SparseLinear` for
    ``values``, ``crow`` and ``col``, for the dtypes, and for writing to ``weight``. V divides
    out_channels / groups.

    Paddings other than zeros are written out first, at the price of a copy. Depthwise convolutions
    compute correctly, but no faster than dense ones.

    Args:
        crow, col, block: the pattern; see :class:`SparseLinear`. Usually :meth:`from_dense` makes a layer.

    Attributes:
        batch_inner: layout of the output in memory. None: as the input's. False: ordinary, (N, C, H, W).
            True: samples innermost, [C, H, W, N] in memory, which is what the kernels want with 16 samples or
            more: pointwise layers keep it, so that a network is brought into it once. :func:`sparsify` sets
            it. With fewer samples the output is then ordinary. Shapes and numbers are the same.
    """

    dense_class = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)``, or without N, to the same with out_channels; any memory layout."""
        self._check_input(x)
        return self._convolve(x) if x.dim() == 4 else self._convolve(x[None])[0]


class SparseConv1d(_SparseConv):
    """``nn.Conv1d`` with a weight that is zero outside a fixed pattern; see :class:`SparseConv2d`."""

    dense_class = nn.Conv1d

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, L)``, or without N, to the same with out_channels; any memory layout."""
        self._check_input(x)
        x = x.unsqueeze(-2)
        return (self._convolve(x) if x.dim() == 4 else self._convolve(x[None])[0]).squeeze(-2)
