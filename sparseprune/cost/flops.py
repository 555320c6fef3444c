"""Floating-point operations of a training step, from the weights that a model keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune.nn.masked import DenseLayer, Masked


def flops_per_step(model: nn.Module, sample: Sequence[int], batch_size: int) -> int:
    """Floating-point operations of the products of one training step, kept weights only.

    A multiplication and an addition for each kept weight, sample and position of the output, in each of three
    products: forward, weight gradient, input gradient. A layer whose input needs no gradient, such as the
    first, has two. A weight that is pruned costs nothing, though a layer that stays dense with its mask
    enforced does compute it.

    Args:
        model: linear and convolutional layers, dense, masked or sparse; it is run on one sample, and left as
            it is.
        sample: shape of one sample.
        batch_size: samples per step.
    Returns:
        operations; padding counts, and biases, batch-norm, activations, loss and optimizer do not.
    """
    counted = []

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        kept = kept_weights(module)
        assert kept is not None
        rows = output.shape[-1] if hasattr(module, "out_features") else output.shape[1]
        products = 3 if inputs[0].requires_grad else 2
        counted.append(2 * products * kept * (output.numel() // rows))

    hooks = [
        module.register_forward_hook(count) for module in model.modules() if kept_weights(module) is not None
    ]
    training = model.training
    try:
        model.eval()  # batch-norm must not learn from this sample
        with torch.enable_grad():
            model(torch.zeros(1, *sample))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return batch_size * sum(counted)


def kept_weights(module: nn.Module) -> int | None:
    """Number of weights of a linear or convolutional layer that are not pruned; None for other modules."""
    values = getattr(module, "values", None)
    if isinstance(values, Tensor):
        return values.numel()
    if isinstance(module, Masked):
        return int(module.mask.sum())
    return module.weight.numel() if isinstance(module, DenseLayer) else None
