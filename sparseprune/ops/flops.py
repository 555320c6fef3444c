"""What ``torch.utils.flop_counter`` counts for the operators: products of kept weights, two operations each.

As for torch's own operators, biases, ReLUs and batch normalisation count nothing.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

Shape = torch.Size


def _spmm(x: Shape, values: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(values) * x[1]


def _spmm_t(g: Shape, values: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(values) * g[1]


def _sddmm(g: Shape, x: Shape, crow: Shape, col: Shape, *rest: Any, **_: Any) -> int:
    return 2 * prod(col) * rest[-1] * g[1]


def _spmm_backward(g: Shape, x: Shape, values: Shape, *_: Any, **__: Any) -> int:
    return 4 * prod(values) * g[1]


def _places(images: Shape) -> int:
    """Samples times positions of (N, C, H, W)."""
    return images[0] * prod(images[2:])


def _conv2d(x: Shape, values: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * prod(values) * _places(out_shape)


def _conv2d_t(g: Shape, values: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(values) * _places(g)


def _conv2d_sddmm(g: Shape, x: Shape, crow: Shape, col: Shape, *rest: Any, **_: Any) -> int:
    return 2 * prod(col) * rest[-1] * _places(g)


def _conv2d_backward(g: Shape, x: Shape, values: Shape, *_: Any, **__: Any) -> int:
    return 4 * prod(values) * _places(g)


FORMULAS: dict[str, Callable[..., int]] = {
    "spmm": _spmm,
    "spmm_t": _spmm_t,
    "sddmm": _sddmm,
    "spmm_backward": _spmm_backward,
    "conv2d": _conv2d,
    "conv2d_act": _conv2d,
    "conv2d_t": _conv2d_t,
    "conv2d_sddmm": _conv2d_sddmm,
    "conv2d_backward": _conv2d_backward,
}


def register() -> None:
    """Make the formulas known to torch; anew for operators that were defined anew."""
    for name, formula in FORMULAS.items():
        operator = getattr(torch.ops.sparseprune, name)
        if operator not in flop_registry:
            register_flop_formula(operator)(formula)
