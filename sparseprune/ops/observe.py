"""What backward passes see of a layer, for whoever wants more than the gradient of the weights it keeps."""

from collections.abc import Hashable
from typing import NamedTuple

from torch import Tensor
from torch.compiler import is_compiling

from sparseprune.ops.autograd import relu_backward


class Seen(NamedTuple):
    """A backward pass through a layer: the gradient of its output before a ReLU, and its input.

    Of a weight that is multiplied by a mask: the gradient of the product, and None.
    """

    g: Tensor
    x: Tensor | None


_observed: dict[Hashable, list[Seen]] = {}


def observe(key: Hashable) -> list[Seen]:
    """A list that grows with every backward pass, in eager mode, through what has this key.

    Args:
        key: address of the checked pattern's ``crow``, or of a masked weight.
    """
    return _observed.setdefault(key, [])


def stop(key: Hashable) -> None:
    _observed.pop(key, None)


def see(key: Tensor, g: Tensor, x: Tensor, y: Tensor | None = None) -> None:
    """Tell of a backward pass; ``y`` is the output where it has a ReLU."""
    # Asked first, so that compiled graphs do not depend on the rest.
    if is_compiling() or not _observed or type(g) is not Tensor:
        return
    if (seen := _observed.get(key.data_ptr())) is not None:
        g = g if y is None else relu_backward(g, y)
        seen.append(Seen(g.detach(), x.detach()))


def see_product(product: Tensor, weight: Tensor) -> None:
    """Tell of backward passes through the product of a weight and its mask, once it has a gradient."""
    if is_compiling() or not _observed or type(product) is not Tensor or not product.requires_grad:
        return
    if (seen := _observed.get(weight.data_ptr())) is not None:
        product.register_hook(lambda g: seen.append(Seen(g.detach(), None)))
