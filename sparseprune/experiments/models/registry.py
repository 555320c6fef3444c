"""Networks by name, with initial weights from a seed, and a small dense network of as many weights."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from sparseprune.experiments.models.lenet import lenet5_caffe
from sparseprune.experiments.models.mlp import article_mlp, lenet_300_100, wide_mlp
from sparseprune.experiments.models.resnet import resnet8, resnet18, resnet20, resnet32
from sparseprune.experiments.models.vgg import vgg16_bn, vgg_like
from sparseprune.experiments.models.wide_resnet import wrn_16_4, wrn_16_8, wrn_22_8

# name -> function of (shape of one sample, classes, width)
MODELS: dict[str, Callable[[Sequence[int], int, float], nn.Module]] = {
    make.__name__: make
    for make in (
        lenet_300_100,
        wide_mlp,
        article_mlp,
        lenet5_caffe,
        resnet8,
        resnet20,
        resnet32,
        resnet18,
        vgg_like,
        vgg16_bn,
        wrn_16_4,
        wrn_16_8,
        wrn_22_8,
    )
}
WIDTHS = 10_000  # `small_dense` chooses among 1 / WIDTHS, 2 / WIDTHS ... of the network's width


@dataclass(frozen=True)
class Network:
    """All that decides a network's shape.

    Attributes:
        name: one of `MODELS`.
        sample: shape of one sample: (1, 28, 28) for a gray image, (40,) for a signal.
        classes: number of logits.
        width: multiplies the channels of convolutions and the hidden features of linear layers.
    """

    name: str
    sample: tuple[int, ...]
    classes: int
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise ValueError(f"Network: unknown model {self.name!r}; known are {', '.join(MODELS)}")
        if not self.width > 0:
            raise ValueError(f"Network: expected width > 0, got {self.width}")


def build(network: Network, seed: int) -> nn.Module:
    """Make a network whose initial weights depend on the seed alone.

    Args:
        network: which.
        seed: of the initial weights.
    Returns:
        a module that takes (N, *network.sample) and returns logits (N, network.classes).
    Raises:
        ValueError: the network cannot take such samples.
    """
    with seeded(seed):
        return MODELS[network.name](network.sample, network.classes, network.width)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it torch's global generator starts from the seed; afterwards it is as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def weight_count(network: Network) -> int:
    """Number of weights of the network's linear and convolutional layers; no biases, no batch-norm."""
    with torch.device("meta"):
        model = MODELS[network.name](network.sample, network.classes, network.width)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)


def small_dense(network: Network, weights: int) -> Network:
    """Shrink a network's width until it has about so many weights.

    Args:
        network: the large network.
        weights: wanted number of weights, biases excluded.
    Returns:
        the network of the same depth whose number of weights is nearest; a tie goes to the smaller one.
    Raises:
        ValueError: weights is outside 1 ... `weight_count(network)`.
    """
    most = weight_count(network)
    if not 1 <= weights <= most:
        raise ValueError(
            f"small_dense: expected weights in 1 ... {most} (the large network's), got {weights}"
        )

    def candidate(part: int) -> Network:
        return replace(network, width=network.width * part / WIDTHS)

    parts = range(1, WIDTHS + 1)
    # The first that has more than that, and the one before it: more width never means fewer weights.
    i = bisect.bisect_right(parts, weights, key=lambda part: weight_count(candidate(part)))
    nearest = [candidate(part) for part in parts[max(i - 1, 0) : i + 1]]
    return min(nearest, key=lambda small: abs(weight_count(small) - weights))
