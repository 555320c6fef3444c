"""What scores are computed from: prunable weights, and numbers drawn for them."""

import logging
from collections.abc import Iterable, Mapping

import numpy
import torch
from torch import Tensor, nn

from sparseprune.format.weights import all_weights

Scores = dict[str, Tensor]
Masks = Mapping[str, Tensor]

log = logging.getLogger(__name__)

QUANTISED = ("torch.ao.nn.quantized", "torch.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def prunable(model: nn.Module, exclude: Iterable[str] = ()) -> dict[str, nn.Parameter]:
    """List the weights that can be pruned, in module order.

    They are those of Linear and Conv1d/2d/3d layers and of classes derived from them, the input projections
    of ``nn.MultiheadAttention``, and those of transformers' ``Conv1D`` and of its experts. A weight that
    modules share, such as that of a language model's head, is not listed, nor is one that is computed from
    other parameters (a parametrisation). A layer that occurs twice is listed under its first name.

    Args:
        model: the network.
        exclude: names of parameters, or of modules with all they contain, to leave out; a layer that
            occurs twice is left out if any of its names is.
    Returns:
        ``{parameter name: parameter}``.
    Raises:
        TypeError: ``model`` is not a module, or a weight is complex.
        ValueError: ``exclude`` names nothing in the model, a lazy layer has no weight yet, or a layer is
            quantised.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"prunable: expected model to be a torch.nn.Module, got {type(model).__name__}")
    excluded = [exclude] if isinstance(exclude, str) else list(exclude)
    modules = dict(model.named_modules(remove_duplicate=False))
    known = set(modules) | {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if unknown := [name for name in excluded if name not in known or name == ""]:
        raise ValueError(
            "exclude: expected names of parameters or modules of the model, "
            f"got {', '.join(map(repr, unknown))}; see model.named_parameters() and model.named_modules()"
        )

    def is_excluded(name: str) -> bool:
        return any(name == out or name.startswith(f"{out}.") for out in excluded)

    for prefix, module in modules.items():
        if type(module).__module__.startswith(QUANTISED) and not is_excluded(prefix):
            raise ValueError(
                f"prunable: expected floating-point layers, got quantised {prefix!r} "
                f"({type(module).__name__}); prune and train first and quantise afterwards, or exclude it"
            )
    found = {}
    for weight in all_weights(model):
        if weight.shared:
            log.info("prunable: %s is not pruned: %s", weight.name, weight.why_not)
        if weight.why_not:
            continue
        if isinstance(weight.parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"prunable: expected a weight, got none yet in lazy {weight.name!r}; run one batch first"
            )
        if not any(map(is_excluded, weight.names)):
            found[weight.name] = weight.parameter
    for name, parameter in found.items():
        if parameter.is_complex():
            raise TypeError(
                f"prunable: expected real weights, got {dtype_of(parameter)} in {name!r}; "
                f"exclude it: exclude=[{name!r}]"
            )
    return found


def dtype_of(tensor: Tensor) -> str:
    """A tensor's dtype in error texts."""
    return str(tensor.dtype).removeprefix("torch.")


def numbers(seed: int, method: str) -> numpy.random.Generator:
    """Random numbers of a method, independent of weights that torch or NumPy drew from the same seed.

    Of weights drawn from the same numbers, the largest would be kept.

    Raises:
        ValueError: ``seed`` is negative.
    """
    if seed < 0:
        raise ValueError(f"{method}: expected seed >= 0, got {seed}")
    return numpy.random.default_rng([*b"sparseprune", seed])


def reordered(values: Tensor, generator: numpy.random.Generator) -> Tensor:
    """The values of a flat tensor in a random order: a fresh draw, where they were drawn independently."""
    return values[torch.from_numpy(generator.permutation(len(values))).to(values.device)]


def score_dtype(weight: Tensor) -> torch.dtype:
    """float64 for weights in float64, else float32."""
    return torch.promote_types(weight.dtype, torch.float32)
