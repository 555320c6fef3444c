"""Wide residual networks: batch-norm and ReLU before each convolution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sparseprune.experiments.models.layers import classifier, image_shape, initialised, scaled


class PreActivationBlock(nn.Module):
    """conv(relu(bn(conv(a)))) + shortcut, with a = relu(bn(x)).

    The shortcut is x itself, or a 1 x 1 convolution of a where the shape changes.

    Args:
        inputs, outputs: numbers of channels.
        stride: stride of the first convolution and the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same_shape = stride == 1 and inputs == outputs
        self.shortcut = None if same_shape else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        residual = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


def wrn(
    depth: int, widening: int, sample: Sequence[int], classes: int = 10, width: float = 1.0
) -> nn.Sequential:
    """WRN-depth-widening: three stages of 16, 32 and 64 channels times `widening`, after a stem of 16.

    The second and third stage halve height and width, rounding up: 28 x 28 and 32 x 32 both work.

    Args:
        depth: 6n + 4, for n blocks in each stage: 16, 22, 28 ...
        widening: the paper's factor k.
        sample: (channels, height, width) of an image.
        classes: number of logits.
        width: factor of all channels, the stem's too.
    Returns:
        a module that takes (N, *sample) and returns logits (N, classes).
    Raises:
        ValueError: the depth is not of that form, or samples are no images.
    Reference:
        Zagoruyko, Komodakis, Wide Residual Networks, 2016, arXiv 1605.07146.
    """
    blocks, rest = divmod(depth - 4, 6)
    if blocks < 1 or rest != 0:
        raise ValueError(f"wrn: expected a depth of 6n + 4 (10, 16, 22, ...), got {depth}")
    colours, _, _ = image_shape("wrn", sample)
    inputs = scaled(16, width)
    layers: list[nn.Module] = [nn.Conv2d(colours, inputs, 3, padding=1, bias=False)]
    for stage, outputs in enumerate(scaled(n * widening, width) for n in (16, 32, 64)):
        for block in range(blocks):
            layers.append(PreActivationBlock(inputs, outputs, 2 if stage > 0 and block == 0 else 1))
            inputs = outputs
    return initialised(
        nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(), *classifier(inputs, classes))
    )


def wrn_16_4(sample: Sequence[int] = (3, 32, 32), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """WRN-16-4: 2.7 million parameters; see `wrn`."""
    return wrn(16, 4, sample, classes, width)


def wrn_16_8(sample: Sequence[int] = (3, 32, 32), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """WRN-16-8: 11.0 million parameters; see `wrn`."""
    return wrn(16, 8, sample, classes, width)


def wrn_22_8(sample: Sequence[int] = (3, 32, 32), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """WRN-22-8: 17.2 million parameters; see `wrn`."""
    return wrn(22, 8, sample, classes, width)
