"""What each layer of a network sees: recorded once, for nobody knows before the model has run."""

import copy
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparseprune.cost.products import Products
from sparseprune.format.weights import is_transposed, weight_names
from sparseprune.nn.attention import ProjectedAttention, why_not_projected
from sparseprune.nn.kinds import torch_layer
from sparseprune.nn.masked import DenseLayer
from sparseprune.nn.sparse import SparseLayer
from sparseprune.scores import prunable
from sparseprune.scores.samples import Examples, Sample, batch_of, checked_size

SAMPLES = 2  # of the run


class Call(NamedTuple):
    """One call of a layer, for one sample.

    Attributes:
        input, output: shapes without the dimension of samples.
        input_gradient: whether training computes the input's gradient: not for the first layer.
        positions: (parameter name, at how many places of the sample each of its weights is used, on average)
            of modules that are no layers of torch, or are read and not called; their shapes are ().
    """

    input: tuple[int, ...]
    output: tuple[int, ...]
    input_gradient: bool
    positions: tuple[tuple[str, float], ...] = ()


def record_calls(model: nn.Module, sample: Sample, op: str) -> dict[nn.Module, list[Call]]:
    """Every call of a prunable layer in a forward pass of two samples, of zeros or given.

    Those of an ``nn.MultiheadAttention`` are those of its input projection. Of experts, and of what else is
    multiplied without a call of its layer, products of matrices are counted.

    A copy runs, in eval mode and with the parameters of ``model``: the model, its buffers and the user's
    random numbers stay as they are.

    Args:
        model: module that takes the samples.
        sample: shape of one sample of a model that takes (N, *shape), of the dtype and on the device of its
            first parameter; or example inputs, see :func:`sparseprune.scores.samples.sample_given`.
        op: name that errors begin with.
    Returns:
        calls by the layers of ``model`` (not of its copy), in the order of their first calls.
    Raises:
        ValueError: the shape is none, or the model does not take such samples.
    """
    size = sample if isinstance(sample, Examples) else checked_size(op, sample)
    parameters = list(model.parameters())
    inputs = batch_of(size, SAMPLES, parameters[0] if parameters else torch.zeros(()))
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in parameters}).eval()
    calls: dict[nn.Module, list[Call]] = {}
    projected: dict[nn.Module, nn.Module] = {}

    def note_calls(layer: nn.Module, its_twin: nn.Module) -> None:
        def note(module: nn.Module, x: tuple[Tensor, ...], y: Tensor) -> None:
            call = Call(_of_one(x[0]), _of_one(y), x[0].requires_grad)
            calls.setdefault(layer, []).append(call)

        its_twin.register_forward_hook(note)

    for layer, its_twin in zip(model.modules(), twin.modules(), strict=True):
        if isinstance(its_twin, nn.MultiheadAttention):
            if not isinstance(its_twin, ProjectedAttention) and not why_not_projected(its_twin):
                note_calls(layer.get_submodule("out_proj"), its_twin.out_proj)
                projected[its_twin] = opened = ProjectedAttention.from_attention(its_twin)
                note_calls(layer, opened.in_proj)
        elif isinstance(layer, DenseLayer | SparseLayer) or is_transposed(type(layer)):
            note_calls(layer, its_twin)
    for parent in list(twin.modules()):
        for name, child in parent._modules.items():
            if child in projected:
                parent._modules[name] = projected[child]
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), Products(parameters) as products:
            inputs.call(twin)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        expected = f"input_size to be the shape of a sample that the model takes, got {sample}"
        if isinstance(sample, Examples):
            expected = f"example_inputs to be arguments that the model takes, got {sample}"
        raise ValueError(f"{op}: expected {expected} ({error})") from error
    for layer in model.modules():
        if layer not in calls:
            positions = tuple(
                (name, products.counts[parameter] / parameter.numel() / SAMPLES)
                for name in weight_names(layer)
                if (parameter := layer._parameters[name]) is not None and parameter in products.counts
            )
            if positions:
                calls[layer] = [Call((), (), True, positions)]
    return calls


def _of_one(x: Tensor) -> tuple[int, ...]:
    """A tensor's shape for one sample; rows of which each sample has several are its positions."""
    if x.dim() == 2 and len(x) != SAMPLES:
        return (max(-(-len(x) // SAMPLES), 1), x.shape[1])
    return tuple(x.shape[1:])


class Called(NamedTuple):
    """A prunable weight of a model that runs.

    Attributes:
        attribute: its name in its module.
        weight: the parameter.
        layer: torch's own layer with this weight; None where the module is none, or is not called.
        calls: those of its module.
    """

    attribute: str
    weight: nn.Parameter
    layer: DenseLayer | None
    calls: list[Call]


def called_layers(model: nn.Module, sample: Sample, exclude: Iterable[str]) -> Iterator[tuple[str, Called]]:
    """Every prunable weight by its name; ValueError for one that a forward pass has no use for."""
    calls = record_calls(model, sample, "cost")
    for name, weight in prunable(model, exclude).items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        of_module = calls.get(module, [])
        if not of_module or not any(_is_used(call, attribute) for call in of_module):
            raise ValueError(
                f"cost: expected a forward pass to call every layer, got none of {name!r}; exclude it"
            )
        layer = None if any(call.positions for call in of_module) else torch_layer(module)
        yield name, Called(attribute, weight, layer, of_module)


def _is_used(call: Call, attribute: str) -> bool:
    return not call.positions or attribute in dict(call.positions)
