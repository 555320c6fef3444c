"""The numbers of a convolution."""

from typing import NamedTuple


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

    @property
    def cols(self) -> int:
        """Columns of the weight as a matrix."""
        return self.in_channels // self.groups * self.kernel_h * self.kernel_w

    def output_size(self, height: int, width: int, op: str = "conv2d") -> tuple[int, int]:
        """``(height, width)`` of the output for an input of this height and width.

        Raises:
            ValueError: the padded input is smaller than the kernel's reach.
        """

        padded = (height + self.pad_top + self.pad_bottom, width + self.pad_left + self.pad_right)
        reach = (self.dilation_h * (self.kernel_h - 1) + 1, self.dilation_w * (self.kernel_w - 1) + 1)
        for name, size, least in zip(("height", "width"), padded, reach, strict=True):
            if size < least:
                raise ValueError(
                    f"{op}: expected a padded input of at least {least} (the kernel's reach) in {name}, "
                    f"got {size}"
                )
        return (padded[0] - reach[0]) // self.stride_h + 1, (padded[1] - reach[1]) // self.stride_w + 1
