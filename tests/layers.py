"""What tests of modules share: layouts of images, and a step of a sparse layer beside the dense one's."""

import bounds
import torch
from torch import Tensor, nn

from sparseprune.format.bsr import at_blocks
from sparseprune.format.memory import in_layout

LAYOUTS = ("contiguous", "batch-inner", "channels-last", "sliced")  # of images (N, C, H, W) in memory


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers, laid out otherwise in memory."""
    if layout == "batch-inner":
        return in_layout(x, True)
    if layout == "channels-last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return torch.cat([x, x], 3)[..., : x.shape[3]]
    return x


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
