"""What the networks share: widths, initial weights, convolution with batch-norm, the data's shape."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def scaled(channels: int, width: float) -> int:
    """Channels (or features) of a layer in a network of this width: in proportion, at least one."""
    return max(1, round(channels * width))


def image_shape(network: str, sample: Sequence[int], smallest: int = 1) -> tuple[int, int, int]:
    """Check that samples are images, (channels, height, width), of `smallest` pixels a side at least.

    Raises:
        ValueError: they are not.
    """
    if len(sample) != 3 or sample[0] < 1 or min(sample[1:]) < smallest:
        raise ValueError(
            f"{network}: expected samples of shape (channels, height, width), {smallest} pixels a side at "
            f"least, got {tuple(sample)}; choose another data set, or a perceptron"
        )
    channels, height, width = sample
    return channels, height, width


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size (but for its stride) and its batch-norm, which makes a bias idle."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def classifier(features: int, classes: int) -> list[nn.Module]:
    """Average over all positions, then one linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


def initialised(network: nn.Sequential) -> nn.Sequential:
    """Draw the weights of all convolutions anew from N(0, 2 / (outputs * kernel size)).

    Reference:
        He, Zhang, Ren, Sun, Delving Deep into Rectifiers, 2015, arXiv 1502.01852.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
