"""A small convolutional network for large images that show little."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sparseprune.experiments.models.layers import image_shape, scaled


def small_conv(sample: Sequence[int] = (1, 200, 200), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """Convolutions of 8 channels, 7 x 7, and of 32, 5 x 5, each with 2 x 2 max pooling, batch norm and ReLU.

    Then one linear layer. The first convolution moves by four pixels, and a step at 200 x 200 takes less than
    half of what the article's perceptron takes. Positions are flattened, not averaged: where something is may
    matter. 52,872 weights at 200 x 200 and 10 classes. Without batch norm it learns nothing from some seeds
    at the rate that is best for others.

    Args:
        sample: (channels, height, width) of an image, 16 pixels a side at least.
        classes: number of logits.
        width: factor of the channels.
    Returns:
        a module that takes (N, *sample) and returns logits (N, classes), with torch's default initialisation.
    Raises:
        ValueError: samples are no images, or too small.
    """
    channels, *sides = image_shape("small_conv", sample, smallest=16)
    first, second = scaled(8, width), scaled(32, width)
    height, columns = ((side + 3) // 4 // 2 // 2 for side in sides)
    network = nn.Sequential(
        nn.Conv2d(channels, first, 7, stride=4, padding=3),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 5, padding=2),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * height * columns, classes),
    )
    # It then trains twice as fast on a CPU.
    nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
    return network
