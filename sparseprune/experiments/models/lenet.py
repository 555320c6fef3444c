"""LeNet-5, as the pruning papers use it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparseprune.experiments.models.layers import image_shape, scaled


def lenet5_caffe(sample: Sequence[int] = (1, 28, 28), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """LeNet-5-Caffe: convolutions of 20 and 50 channels, 5 x 5, no padding; 500 features; 430,500 weights.

    Each convolution is followed by ReLU, which Caffe's own file leaves out, and 2 x 2 max pooling. There is
    no batch-norm.

    Args:
        sample: (channels, height, width) of an image, 16 pixels a side at least; 28 x 28 become 4 x 4 before
            the linear layers, 32 x 32 become 5 x 5.
        classes: number of logits.
        width: factor of channels and hidden features.
    Returns:
        a module that takes (N, *sample) and returns logits (N, classes), with torch's default initialisation.
    Raises:
        ValueError: samples are no images, or too small.
    Reference:
        Lee, Ajanthan, Torr, SNIP: Single-shot Network Pruning based on Connection Sensitivity, 2019, arXiv
        1810.02340.
    """
    channels, *sides = image_shape("lenet5_caffe", sample, smallest=16)
    first, second, hidden = (scaled(n, width) for n in (20, 50, 500))
    height, columns = (((side - 4) // 2 - 4) // 2 for side in sides)
    return nn.Sequential(
        nn.Conv2d(channels, first, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * height * columns, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )
