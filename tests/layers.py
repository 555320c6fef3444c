"""A step of a sparse layer beside the dense layer with the same weights, for the tests of modules."""

import bounds
import torch
from torch import Tensor, nn

from sparseprune.format.bsr import at_blocks


def check_step(sparse: nn.Module, dense: nn.Module, x: Tensor, y: Tensor, g: Tensor | None = None) -> None:
    """``y``, and what was computed of its gradient ``g``, within the error bounds of the dense layer's sums.

    Pruned weights of ``dense`` are zero. Without ``g``, only ``y`` is compared.
    """
    relu = getattr(sparse, "relu", False)
    gradient = torch.zeros_like(y) if g is None else g.detach() * (y.detach() > 0) if relu else g
    expected = bounds.of_layer(dense, x, gradient)
    exact = expected["y"].exact
    bounds.assert_within(y, exact.relu() if relu else exact, bounds.of_sums(expected["y"], y.dtype), "y")
    if g is None:
        return

    def stored(weight: Tensor) -> Tensor:
        return at_blocks(weight.flatten(1), sparse.crow.cpu(), sparse.col.cpu(), sparse.block[0])

    for name, grad, sums in [
        ("x", x.grad, expected["x"]),
        ("values", sparse.values.grad, expected["weight"].map(stored)),
        *([] if sparse.bias is None else [("bias", sparse.bias.grad, expected["bias"])]),
    ]:
        if grad is not None:
            bounds.assert_sums(grad, sums, f"gradient of {name}")
