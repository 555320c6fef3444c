"""Sizes that can be counted: indices of patterns are int32, and so are most numbers of the kernels."""

import math
from collections.abc import Sequence


def check_size(op: str, name: str, size: int, least: int = 0) -> None:
    """Raise unless an argument is at least ``least`` and an int32."""
    if not least <= size < 2**31:
        raise ValueError(f"{op}: expected {name} of at least {least} and below 2^31, got {size}")


def check_numbers(op: str, what: str, shape: Sequence[int]) -> None:
    """Raise unless the numbers of a tensor of this shape can be counted, in any order of its dimensions.

    A dimension of size 0 does not make up for others that are too large.
    """
    if math.prod(max(size, 1) for size in shape) >= 2**60:
        raise ValueError(f"{op}: expected {what} of fewer than 2^60 numbers, got a shape of {list(shape)}")
