"""Residual networks: for small images a 3 x 3 stem and basic blocks of two 3 x 3 convolutions; ResNet-50."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sparseprune.experiments.models.layers import classifier, conv_norm, image_shape, initialised, scaled


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)).

    The shortcut is x itself, or a 1 x 1 convolution with batch-norm where the shape changes (option B).

    Args:
        inputs, outputs: numbers of channels.
        stride: stride of the first convolution and the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(inputs, outputs, stride=stride)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = conv_norm(outputs, outputs)
        same_shape = stride == 1 and inputs == outputs
        self.shortcut = nn.Sequential(*([] if same_shape else conv_norm(inputs, outputs, 1, stride)))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(residual + self.shortcut(x))


class Bottleneck(nn.Module):
    """relu(bn(conv1x1(relu(bn(conv3x3(relu(bn(conv1x1(x)))))))) + shortcut(x)).

    The stride is that of the 3 x 3 convolution, as in today's libraries.

    Args:
        inputs: number of channels of x.
        hidden: number of channels of the two inner results; the block gives four times as many.
        stride: stride of the 3 x 3 convolution and the shortcut.
    """

    def __init__(self, inputs: int, hidden: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * hidden
        self.conv1, self.bn1 = conv_norm(inputs, hidden, 1)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = conv_norm(hidden, hidden, stride=stride)
        self.relu2 = nn.ReLU()
        self.conv3, self.bn3 = conv_norm(hidden, outputs, 1)
        same_shape = stride == 1 and inputs == outputs
        self.shortcut = nn.Sequential(*([] if same_shape else conv_norm(inputs, outputs, 1, stride)))
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        return self.relu3(self.bn3(self.conv3(y)) + self.shortcut(x))


def resnet(
    sample: Sequence[int],
    classes: int,
    channels: Sequence[int],
    blocks: int,
    width: float = 1.0,
    *,
    stem_stride: int = 1,
) -> nn.Sequential:
    """A residual network with one stage of basic blocks for each of `channels`.

    There is no pooling before the blocks (CIFAR stem). Every stage but the first halves height and width,
    rounding up: 28 x 28 and 32 x 32 both work.

    Args:
        sample: (channels, height, width) of an image.
        classes: number of logits.
        channels: channels of each stage.
        blocks: number of blocks in each stage.
        width: factor of the channels.
        stem_stride: stride of the first convolution.
    Returns:
        a module that takes (N, *sample) and returns logits (N, classes).
    Raises:
        ValueError: samples are no images.
    Reference:
        He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2016, arXiv 1512.03385.
    """
    colours, _, _ = image_shape("resnet", sample)
    inputs = scaled(channels[0], width)
    layers: list[nn.Module] = [*conv_norm(colours, inputs, stride=stem_stride), nn.ReLU()]
    for stage, outputs in enumerate(scaled(n, width) for n in channels):
        for block in range(blocks):
            layers.append(BasicBlock(inputs, outputs, 2 if stage > 0 and block == 0 else 1))
            inputs = outputs
    return initialised(nn.Sequential(*layers, *classifier(inputs, classes)))


def resnet8(sample: Sequence[int] = (1, 28, 28), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """A small ResNet for a laptop: stem of stride 2, 32, 64 and 128 channels, one block each; see `resnet`.

    306,720 weights for 28 x 28 x 1, at a third of the operations of ResNet-20.
    """
    return resnet(sample, classes, (32, 64, 128), 1, width, stem_stride=2)


def resnet20(sample: Sequence[int] = (3, 32, 32), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """ResNet-20 for CIFAR: 270,896 weights, 272,474 parameters for 32 x 32 x 3; see `resnet`."""
    return resnet(sample, classes, (16, 32, 64), 3, width)


def resnet32(sample: Sequence[int] = (3, 32, 32), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """ResNet-32 for CIFAR: 464,432 weights, 466,906 parameters for 32 x 32 x 3; see `resnet`."""
    return resnet(sample, classes, (16, 32, 64), 5, width)


def resnet18(sample: Sequence[int] = (3, 32, 32), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """ResNet-18 with a CIFAR stem: 11,164,352 weights, 11,173,962 parameters, 32 x 32 x 3; see `resnet`."""
    return resnet(sample, classes, (64, 128, 256, 512), 2, width)


def resnet50(sample: Sequence[int] = (3, 224, 224), classes: int = 1000, width: float = 1.0) -> nn.Sequential:
    """ResNet-50 for ImageNet: 25,502,912 weights, 25,557,032 parameters for 224 x 224 x 3 and 1000 classes.

    Arguments, result and reference as of `resnet`; the stem has stride 2, and a pool of stride 2 follows.
    """
    colours, _, _ = image_shape("resnet50", sample)
    inputs = scaled(64, width)
    layers: list[nn.Module] = [*conv_norm(colours, inputs, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for stage, blocks in enumerate((3, 4, 6, 3)):
        hidden = scaled(64 * 2**stage, width)
        for block in range(blocks):
            layers.append(Bottleneck(inputs, hidden, 2 if stage > 0 and block == 0 else 1))
            inputs = 4 * hidden
    return initialised(nn.Sequential(*layers, *classifier(inputs, classes)))
