"""VGG-16 with batch-norm for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparseprune.experiments.models.layers import classifier, conv_norm, image_shape, initialised, scaled

# Channels of the 3 x 3 convolutions of VGG-16 (configuration D); each group ends with 2 x 2 max pooling.
GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16_bn(sample: Sequence[int] = (3, 32, 32), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """VGG-16 with batch-norm and a single linear layer: 14,715,584 weights for 32 x 32 x 3.

    Max pooling rounds sizes up, so that images of 28 x 28 (28-14-7-4-2-1) and smaller ones do not vanish;
    32 x 32 and other multiples of 32 are not affected.

    Args:
        sample: (channels, height, width) of an image.
        classes: number of logits.
        width: factor of the channels.
    Returns:
        a module that takes (N, *sample) and returns logits (N, classes).
    Raises:
        ValueError: samples are no images.
    Reference:
        Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, 2015, arXiv
        1409.1556.
    """
    features = _features("vgg16_bn", sample, width)
    return initialised(nn.Sequential(*features, *classifier(scaled(512, width), classes)))


def vgg_like(sample: Sequence[int] = (3, 32, 32), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """SNIP's VGG-like: `vgg16_bn` with a hidden linear layer of 512; 14,977,728 weights for 32 x 32 x 3.

    Batch-norm stands in place of the dropout of the network's first author, as in SNIP.

    Args:
        sample: (channels, height, width) of an image.
        classes: number of logits.
        width: factor of channels and hidden features.
    Returns:
        a module that takes (N, *sample) and returns logits (N, classes).
    Raises:
        ValueError: samples are no images.
    Reference:
        Lee, Ajanthan, Torr, SNIP: Single-shot Network Pruning based on Connection Sensitivity, 2019, arXiv
        1810.02340.
    """
    hidden = scaled(512, width)
    return initialised(
        nn.Sequential(
            *_features("vgg_like", sample, width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(hidden, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )
    )


def _features(network: str, sample: Sequence[int], width: float) -> list[nn.Module]:
    inputs, _, _ = image_shape(network, sample)
    layers: list[nn.Module] = []
    for group in GROUPS:
        for channels in group:
            outputs = scaled(channels, width)
            layers += [*conv_norm(inputs, outputs), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return layers
