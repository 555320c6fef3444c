"""What each layer of a network sees: recorded once, for nobody knows before the model has run."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparseprune.nn.masked import DenseLayer
from sparseprune.nn.sparse import SparseLayer
from sparseprune.scores import prunable

SAMPLES = 2  # of the run


class Call(NamedTuple):
    """One call of a layer, for one sample.

    Attributes:
        input, output: shapes without the dimension of samples.
        input_gradient: whether training computes the input's gradient: not for the first layer.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]
    input_gradient: bool


def record_calls(model: nn.Module, input_size: Sequence[int], op: str) -> dict[nn.Module, list[Call]]:
    """Every call of a linear or convolutional layer in a forward pass of two samples of zeros.

    A copy runs, in eval mode and with the parameters of ``model``: the model, its buffers and the user's
    random numbers stay as they are.

    Args:
        model: module that takes (N, *input_size), of the dtype and on the device of its first parameter.
        input_size: shape of one sample.
        op: name that errors begin with.
    Returns:
        calls by the layers of ``model`` (not of its copy), in the order of their first calls.
    Raises:
        ValueError: ``input_size`` is no shape, or the model does not take such samples.
    """
    if not isinstance(input_size, Sequence) or not all(is_size(size) for size in input_size):
        raise ValueError(
            f"{op}: expected input_size to be the shape of one sample, such as (3, 32, 32), "
            f"got {input_size!r}"
        )
    parameters = list(model.parameters())
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in parameters}).eval()
    calls: dict[nn.Module, list[Call]] = {}
    for layer, its_twin in zip(model.modules(), twin.modules(), strict=True):
        if isinstance(layer, DenseLayer | SparseLayer):

            def note(module: nn.Module, x: tuple[Tensor, ...], y: Tensor, layer: nn.Module = layer) -> None:
                call = Call(tuple(x[0].shape[1:]), tuple(y.shape[1:]), x[0].requires_grad)
                calls.setdefault(layer, []).append(call)

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
    return calls


def called_layers(
    model: nn.Module, input_size: Sequence[int], exclude: Iterable[str]
) -> Iterator[tuple[str, DenseLayer, list[Call]]]:
    """``(parameter name, layer, its calls)`` of every prunable layer; ValueError for one without calls."""
    calls = record_calls(model, input_size, "cost")
    for name in prunable(model, exclude):
        layer = model.get_submodule(name.rpartition(".")[0])
        if layer not in calls:
            raise ValueError(
                f"cost: expected a forward pass to call every layer, got none of {name!r}; exclude it"
            )
        assert isinstance(layer, DenseLayer)
        yield name, layer, calls[layer]


def is_size(size: object) -> bool:
    """Whether this is a whole number above 0."""
    return isinstance(size, Integral) and not isinstance(size, bool) and int(size) > 0
