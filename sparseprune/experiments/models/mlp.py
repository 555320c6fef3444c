"""Multi-layer perceptrons: flatten, then linear layers with ReLU between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from sparseprune.experiments.models.layers import scaled


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """A multi-layer perceptron with torch's default initialisation from torch's global generator.

    Args:
        sizes: inputs, hidden widths, outputs: (784, 300, 100, 10) has three linear layers.
    Returns:
        a module that takes (batch, ...) with sizes[0] numbers per sample and returns logits (batch,
        sizes[-1]).
    Raises:
        ValueError: fewer than two sizes, or a size below 1.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"mlp: expected two or more sizes, each at least 1, got {tuple(sizes)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(len(sizes) - 1):
        if i > 0:
            layers.append(nn.ReLU())
        layers.append(nn.Linear(sizes[i], sizes[i + 1]))
    return nn.Sequential(*layers)


def lenet_300_100(
    sample: Sequence[int] = (1, 28, 28), classes: int = 10, width: float = 1.0
) -> nn.Sequential:
    """LeNet-300-100, the fully connected network that pruning papers use: 784-300-100-10, 266,200 weights.

    Args:
        sample: shape of one sample; it is flattened.
        classes: number of logits.
        width: factor of the hidden widths.
    Returns:
        the module; see `mlp`.
    Reference:
        LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition, 1998.
    """
    return _perceptron(sample, (300, 100), classes, width)


def wide_mlp(sample: Sequence[int] = (1, 28, 28), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """A wide perceptron, 784-1024-1024-10: 1,861,632 weights.

    Args:
        sample: shape of one sample; it is flattened.
        classes: number of logits.
        width: factor of the hidden widths.
    Returns:
        the module; see `mlp`.
    """
    return _perceptron(sample, (1024, 1024), classes, width)


def article_mlp(sample: Sequence[int] = (40_000,), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """The example network of the magazine article that this project starts from: 40000-1000-1000-1000-10.

    It has 40000*1000 + 1000*1000 + 1000*1000 + 1000*10 = 42,010,000 weights, biases excluded. The article
    says 42,100,000, which is wrong.

    Args:
        sample: shape of one sample; it is flattened.
        classes: number of logits.
        width: factor of the hidden widths.
    Returns:
        the module; see `mlp`.
    """
    return _perceptron(sample, (1000, 1000, 1000), classes, width)


def _perceptron(sample: Sequence[int], hidden: Sequence[int], classes: int, width: float) -> nn.Sequential:
    return mlp((math.prod(sample), *(scaled(features, width) for features in hidden), classes))
