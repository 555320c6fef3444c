"""Networks by name, with initial weights from a seed, and a small dense network of as many weights."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from sparseprune.experiments.models import own
from sparseprune.experiments.models.lenet import lenet5_caffe
from sparseprune.experiments.models.mlp import article_mlp, lenet_300_100, wide_mlp
from sparseprune.experiments.models.resnet import resnet8, resnet18, resnet20, resnet32, resnet50
from sparseprune.experiments.models.small_conv import small_conv
from sparseprune.experiments.models.vgg import vgg16_bn, vgg_like
from sparseprune.experiments.models.wide_resnet import wrn_16_4, wrn_16_8, wrn_22_8
from sparseprune.scores import prunable

# name -> function of (shape of one sample, classes, width)
MODELS: dict[str, Callable[[Sequence[int], int, float], nn.Module]] = {
    make.__name__: make
    for make in (
        lenet_300_100,
        wide_mlp,
        article_mlp,
        lenet5_caffe,
        small_conv,
        resnet8,
        resnet20,
        resnet32,
        resnet18,
        resnet50,
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
        name: one of `MODELS`, or ``"package.module:function"``, a function of the user's own that returns a
            module.
        sample: shape of one sample: (1, 28, 28) for a gray image, (40,) for a signal.
        classes: number of logits.
        width: factor of the channels of convolutions and the hidden features of linear layers.
        args: keyword arguments of the user's function.
    """

    name: str
    sample: tuple[int, ...]
    classes: int
    width: float = 1.0
    args: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if ":" in self.name:
            own.find(self.name)
        elif self.name not in MODELS:
            raise ValueError(
                f"Network: unknown model {self.name!r}; known are {', '.join(MODELS)}, and functions of your "
                "own as package.module:function"
            )
        if self.name in MODELS and self.args:
            raise ValueError(f"Network: {self.name} takes no arguments, got {dict(self.args)}")
        if not self.width > 0:
            raise ValueError(f"Network: expected width > 0, got {self.width}")

    @property
    def has_width(self) -> bool:
        """Whether narrower ones can be made."""
        return self.name in MODELS or own.has_width(self.name)

    def to_dict(self) -> dict[str, Any]:
        """Fields for files, without ``args`` where there are none."""
        fields = dataclasses.asdict(self)
        return fields if self.args else {name: value for name, value in fields.items() if name != "args"}


def build(network: Network, seed: int) -> nn.Module:
    """Make a network whose initial weights depend on the seed alone.

    Args:
        network: what to make.
        seed: seed of the initial weights.
    Returns:
        a module that takes (N, *network.sample) and returns logits (N, network.classes).
    Raises:
        ValueError: the network cannot take such samples, or the user's function fails.
    """
    with seeded(seed):
        if network.name in MODELS:
            return MODELS[network.name](network.sample, network.classes, network.width)
        return own.make(network.name, network.args, network.width)


def outline(network: Network) -> nn.Module:
    """The network for counting only: without memory for its weights, unless a user's function makes it."""
    if network.name not in MODELS:
        return build(network, 0)
    with torch.device("meta"):
        return build(network, 0)


def check(network: Network, classes: int | None) -> None:
    """Raise ValueError unless the network of a user's function can be pruned and takes the data.

    Args:
        network: any; those of `MODELS` fit the data that they are made for.
        classes: number of labels; None where there are no labels.
    """
    if network.name not in MODELS:
        own.check(network.name, build(network, 0), network.width, network.sample, classes)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it torch's global generator starts from the seed; afterwards it is as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def weight_count(network: Network) -> int:
    """Number of weights of the network's linear and convolutional layers; no biases, no batch-norm."""
    return sum(weight.numel() for weight in prunable(outline(network)).values())


def small_dense(network: Network, weights: int) -> Network:
    """Shrink a network's width until it has about so many weights.

    Args:
        network: the large network; it has a width.
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
    return narrowed(network, weights, weight_count)


def narrowed(network: Network, wanted: float, size: Callable[[Network], float]) -> Network:
    """The narrower network whose size is nearest to the wanted one; a tie goes to the smaller one.

    Args:
        network: the large network; it has a width.
        wanted: its size, or less.
        size: what is compared, such as `weight_count`; more width never means less.
    Raises:
        ValueError: a user's function fails at such a width, or makes what does not take the data.
    """

    def candidate(part: int) -> Network:
        return replace(network, width=network.width * part / WIDTHS)

    def size_of(part: int) -> float:
        try:
            return size(candidate(part))
        except ValueError:
            # Too narrow to be a network; `check` says why, if it is the one.
            return 0.0

    parts = range(1, WIDTHS + 1)
    # The first that is larger than that, and the one before it.
    i = bisect.bisect_right(parts, wanted, key=size_of)
    nearest = min(parts[max(i - 1, 0) : i + 1], key=lambda part: abs(size_of(part) - wanted))
    small = candidate(nearest)
    check(small, small.classes)
    return small
