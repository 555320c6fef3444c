"""The numbers of a convolution."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sparseprune.format.sizes import check_size


class Geometry(NamedTuple):
    """All numbers of a convolution but the sizes of its input and the number of output channels.

    Row r of the weight ``(out_channels, in_channels / groups * kernel_h * kernel_w)`` is
    ``conv.weight[r].flatten()``. Padding is of zeros.
    """

    in_channels: int
    kernel_h: int
    kernel_w: int
    stride_h: int = 1
    stride_w: int = 1
    pad_top: int = 0
    pad_bottom: int = 0
    pad_left: int = 0
    pad_right: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    groups: int = 1

    @staticmethod
    def checked(op: str, numbers: Sequence[int]) -> "Geometry":
        """A geometry of twelve numbers.

        Raises:
            ValueError: a number is out of range, or a product of them that is computed.
        """
        if len(numbers) != len(ARGUMENTS):
            raise ValueError(
                f"{op}: expected geometry to hold 12 numbers (in_channels, kernel height and width, stride, "
                f"stride, padding top, bottom, left, right, dilation, dilation, groups), got {len(numbers)}"
            )
        result = Geometry(*numbers)
        for argument, number in zip(ARGUMENTS, result, strict=True):
            check_size(op, argument, number, LEAST[argument])
        if result.in_channels % result.groups:
            raise ValueError(
                f"{op}: expected in_channels divisible by groups, got {result.in_channels} and "
                f"{result.groups}"
            )
        for dilation, kernel, reach in zip(result[9:11], result[1:3], result.reach, strict=True):
            if reach >= 2**31:
                raise ValueError(
                    f"{op}: expected a kernel that reaches less than 2^31 pixels, dilation x "
                    f"(kernel_size - 1) + 1, got {dilation} x ({kernel} - 1) + 1"
                )
        if result.cols >= 2**31:
            raise ValueError(
                f"{op}: expected fewer than 2^31 weights of an output channel, in_channels / groups x "
                f"kernel_size, got {result.in_channels} / {result.groups} x {result.kernel_h} x "
                f"{result.kernel_w}"
            )
        return result

    @property
    def cols(self) -> int:
        """Columns of the weight as a matrix."""
        return self.in_channels // self.groups * self.kernel_h * self.kernel_w

    @property
    def reach(self) -> tuple[int, int]:
        """Height and width of what one output reads."""
        return self.dilation_h * (self.kernel_h - 1) + 1, self.dilation_w * (self.kernel_w - 1) + 1

    def output_size(self, height: int, width: int, op: str = "conv2d") -> tuple[int, int]:
        """``(height, width)`` of the output for an input of this height and width.

        Raises:
            ValueError: the padded input is smaller than the kernel's reach, or too large.
        """
        return (
            _outputs(op, "height", height, self[5:7], self.reach[0], self.stride_h),
            _outputs(op, "width", width, self[7:9], self.reach[1], self.stride_w),
        )


# What the user calls them.
ARGUMENTS = (
    *("in_channels", "kernel_size", "kernel_size", "stride", "stride"),
    *("padding", "padding", "padding", "padding", "dilation", "dilation", "groups"),
)
LEAST = {"in_channels": 0, "kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def check_arguments(op: str, **arguments: Any) -> None:
    """Raise unless arguments of a layer, integers or sequences of them, are in range."""
    for name, argument in arguments.items():
        for number in argument if isinstance(argument, Sequence) else (argument,):
            if isinstance(number, int):
                check_size(op, name, number, LEAST.get(name, 0))


def _outputs(op: str, name: str, size: int, pad: tuple[int, ...], reach: int, stride: int) -> int:
    padded = size + pad[0] + pad[1]
    # Sizes are symbols in a graph of any batch and any images, of which nothing is to be assumed.
    if isinstance(size, int):
        if not 0 <= size < 2**31:
            raise ValueError(f"{op}: expected an input of at least 0 and below 2^31 in {name}, got {size}")
        if padded >= 2**31:
            raise ValueError(
                f"{op}: expected a padded input below 2^31 in {name}, got {size} with padding of {pad[0]} "
                f"and {pad[1]}"
            )
    if padded < reach:
        raise ValueError(
            f"{op}: expected a padded input of at least {reach} (the kernel's reach) in {name}, got {padded}"
        )
    return (padded - reach) // stride + 1
