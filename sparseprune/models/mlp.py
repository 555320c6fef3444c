"""Multi-layer perceptrons: flatten, then linear layers with ReLU between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

# Hidden layer widths by model name; inputs and outputs follow the data.
MODELS: dict[str, tuple[int, ...]] = {
    "lenet_300_100": (300, 100),
    "wide_mlp": (1024, 1024),
    "article_mlp": (1000, 1000, 1000),
}


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


def lenet_300_100(in_features: int = 784, classes: int = 10) -> nn.Sequential:
    """LeNet-300-100, the fully connected network that pruning papers use: 784-300-100-10, 266,200 weights.

    Args:
        in_features: numbers per sample.
        classes: number of logits.
    Returns:
        the module; see `mlp`.
    Reference:
        LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition, 1998.
    """
    return mlp((in_features, *MODELS["lenet_300_100"], classes))


def wide_mlp(
    in_features: int = 784, widths: Sequence[int] = MODELS["wide_mlp"], classes: int = 10
) -> nn.Sequential:
    """A wide perceptron, 784-1024-1024-10 by default: 1,861,632 weights.

    Args:
        in_features: numbers per sample.
        widths: hidden widths.
        classes: number of logits.
    Returns:
        the module; see `mlp`.
    """
    return mlp((in_features, *widths, classes))


def article_mlp(in_features: int = 40_000, classes: int = 10) -> nn.Sequential:
    """The example network of the magazine article that this project starts from: 40000-1000-1000-1000-10.

    It has 40000*1000 + 1000*1000 + 1000*1000 + 1000*10 = 42,010,000 weights, biases excluded. The article
    says 42,100,000, which is wrong.

    Args:
        in_features: numbers per sample.
        classes: number of logits.
    Returns:
        the module; see `mlp`.
    """
    return mlp((in_features, *MODELS["article_mlp"], classes))


def layer_sizes(name: str, in_features: int, classes: int) -> tuple[int, ...]:
    """Sizes of a model of the registry on given data.

    Args:
        name: one of `MODELS`.
        in_features: numbers per sample.
        classes: number of logits.
    Returns:
        inputs, hidden widths, outputs.
    Raises:
        ValueError: an unknown name.
    """
    if name not in MODELS:
        raise ValueError(f"layer_sizes: unknown model {name!r}; known are {', '.join(MODELS)}")
    return (in_features, *MODELS[name], classes)


def weight_count(sizes: Sequence[int]) -> int:
    """Number of weights, biases excluded, of the perceptron with these layer sizes."""
    return sum(a * b for a, b in itertools.pairwise(sizes))


def build(sizes: Sequence[int], seed: int) -> nn.Sequential:
    """Make a perceptron whose initial weights depend on the seed alone.

    Torch's global generator is left as it was.

    Args:
        sizes: see `mlp`; `layer_sizes` and `small_dense` give them.
        seed: of the initial weights.
    Returns:
        the module; see `mlp`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mlp(sizes)


def small_dense(sizes: Sequence[int], weights: int) -> tuple[int, ...]:
    """Shrink the hidden layers of a perceptron in proportion until it has about so many weights.

    Args:
        sizes: inputs, hidden widths (at least one), outputs of the large network.
        weights: wanted number of weights, biases excluded.
    Returns:
        sizes of the network of the same depth, inputs and outputs whose number of weights is nearest; a tie
        goes to the smaller one.
    Raises:
        ValueError: there is no hidden layer, or weights is outside 1 ... `weight_count(sizes)`.
    """
    first, *hidden, last = sizes
    if not hidden:
        raise ValueError(
            f"small_dense: expected at least one hidden layer to shrink, got sizes {tuple(sizes)}"
        )
    most = weight_count(sizes)
    if not 1 <= weights <= most:
        raise ValueError(
            f"small_dense: expected weights in 1 ... {most} (the large network's), got {weights}"
        )
    widest = max(hidden)
    candidates = [
        (first, *(max(1, round(width * units / widest)) for width in hidden), last)
        for units in range(1, widest + 1)
    ]
    return min(
        candidates, key=lambda candidate: (abs(weight_count(candidate) - weights), weight_count(candidate))
    )
