"""What sizes of activations a model's layers meet: known to nobody before the model has run once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparseprune.nn.masked import DenseLayer
from sparseprune.nn.sparse import SparseLayer

SAMPLES = 2  # of the run


class Sizes(NamedTuple):
    """Of one sample, where a layer is called (first).

    Attributes:
        input, output: shapes without the dimension of samples.
        input_gradient: whether training computes the input's gradient: not for the first layer.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]
    input_gradient: bool


def layer_sizes(model: nn.Module, input_size: Sequence[int], op: str) -> dict[nn.Module, Sizes]:
    """Sizes of every linear and convolutional layer that a forward pass of two samples of zeros calls.

    A copy runs, in eval mode and with the parameters of ``model``: the model, its buffers and the user's
    random numbers stay as they are.

    Args:
        model: takes (N, *input_size), of the dtype and on the device of its first parameter.
        input_size: shape of one sample.
        op: how errors begin.
    Returns:
        sizes by the layers of ``model`` (not of its copy).
    Raises:
        ValueError: the model does not take such samples.
    """
    parameters = list(model.parameters())
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in parameters}).eval()
    seen: dict[nn.Module, Sizes] = {}
    for layer, its_twin in zip(model.modules(), twin.modules(), strict=True):
        if isinstance(layer, DenseLayer | SparseLayer):

            def note(module: nn.Module, x: tuple[Tensor, ...], y: Tensor, layer: nn.Module = layer) -> None:
                sizes = Sizes(tuple(x[0].shape[1:]), tuple(y.shape[1:]), x[0].requires_grad)
                seen.setdefault(layer, sizes)

            its_twin.register_forward_hook(note)
    x = torch.zeros(SAMPLES, *input_size)
    if parameters:
        x = x.to(parameters[0].device, parameters[0].dtype)
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            twin(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"{op}: expected input_size to be the shape of a sample that the model takes, "
            f"got {tuple(input_size)} ({error})"
        ) from error
    return seen
