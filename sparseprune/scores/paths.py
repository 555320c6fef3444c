"""Which weights lie on a path from the input to the output, and how many paths lead through each.

A path takes one connection after the other, from an element of the input to an element of the output. Its
network has a mask's ones in place of the weights, no biases, and sums in place of everything that is no
weight, so that the sum of its outputs R(m) is the number of paths, and m ⊙ ∂R/∂m counts those through each
weight.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparseprune.format.bsr import check_mask
from sparseprune.scores.base import prunable
from sparseprune.scores.samples import Sample, shape_of
from sparseprune.scores.sums import SUMS

LAYERS = {"linear"} | {f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in (1, 2, 3)}


def paths(model: nn.Module, masks: Mapping[str, Tensor], sample: Sample) -> dict[str, Tensor]:
    """Count the paths from an element of the input to an element of the output through each weight:

        c = m ⊙ ∂R/∂m,  R = Σ outputs for an input of ones, with the masks m in place of the weights.

    Pointwise functions, normalisations and dropout are the identity, pools and means are sums over their
    windows, of which every input counts, and attention is a sum of queries, keys and values. Biases and other
    constants begin no path; parameters of other layers are ones. What else a model calls runs as it is, on
    numbers that are not negative; where that makes negative ones, or more than masks decides what is a path
    (the maximum of all positions, a gate without inputs), the model is refused.

    Args:
        model: a dense network that takes one floating-point tensor (N, *shape) and returns a tensor; it stays
            as it is.
        masks: ``{parameter name: bool tensor of the parameter's shape}``, True = keep; weights of linear and
            convolutional layers without a mask are all kept.
        sample: shape of one sample, such as (3, 32, 32), or example inputs.
    Returns:
        ``{parameter name: float64 tensor of the weight's shape}`` of all prunable weights: whole numbers,
        rounded as float64 is; 0 exactly where there is no path.
    Raises:
        TypeError, ValueError: masks do not fit the model.
        NoPathsError: samples do not, paths cannot be followed through it, or there are more than 1.8e308.
    Reference:
        Vysogorets, Kempe, "Connectivity matters: neural network pruning through the lens of effective
        sparsity", 2021, arXiv:2107.02306, section 3; Tanaka, Kunin, Yamins, Ganguli, "Pruning neural networks
        without any data by iteratively conserving synaptic flow", 2020, arXiv:2006.05467.
    """
    return _through(model, masks, sample, "paths", cut=False)


def live(model: nn.Module, masks: Mapping[str, Tensor], sample: Sample) -> dict[str, Tensor]:
    """Tell whether each weight is kept and on a path from the input to the output.

    The share of the weights that are is the effective density. This is ``paths(...) > 0`` at any depth: after
    every layer activations and their gradients are cut to 0 and 1, so that nothing overflows. See
    :func:`paths` for the arguments, errors and source.

    Returns:
        ``{parameter name: bool tensor of the weight's shape}`` of all prunable weights.
    """
    return {name: n > 0 for name, n in _through(model, masks, sample, "live", cut=True).items()}


def dead_units(alive: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the output units of each layer (neurons, channels: rows of the weight) without a live weight.

    Args:
        alive: what :func:`live` returned.
    """
    return {name: int((~of.flatten(1).any(1)).sum()) for name, of in alive.items()}


def _through(
    model: nn.Module, masks: Mapping[str, Tensor], sample: Sample, op: str, cut: bool
) -> dict[str, Tensor]:
    weights, given = _weights_and_masks(model, masks, op)
    if not weights:
        return {}
    try:
        input_size = shape_of(sample, op)
    except ValueError as error:
        raise NoPathsError(f"{error}; paths begin at the elements of one") from error
    device = next(iter(weights.values())).device
    modes = [(module, module.training) for module in model.modules()]
    cuda = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=cuda):
        leaf_of = {
            weight: given.get(weight, torch.ones_like(weight, dtype=torch.bool)).to(device, torch.float64)
            for weight in weights.values()
        }
        state = {name: _float64(buffer.detach().clone()) for name, buffer in model.named_buffers()}
        for name, parameter in model.named_parameters():
            constant = torch.zeros_like if name.rpartition(".")[2].endswith("bias") else torch.ones_like
            state[name] = leaf_of.get(parameter, _float64(constant(parameter.detach())))
        leaves = [leaf.requires_grad_() for leaf in leaf_of.values()]
        try:
            for module, _ in modes:
                module.training = False
            # Not a leaf, so that the model may change it in place.
            x = torch.ones(1, *input_size, dtype=torch.float64, device=device, requires_grad=True).clone()
            with _Sums(leaves, cut):
                y = torch.func.functional_call(model, state, (x,))
            if not isinstance(y, Tensor) or not y.requires_grad:
                raise TypeError("its output is no tensor that depends on the input")
            of_leaves = torch.autograd.grad(y.sum(), leaves, materialize_grads=True)
            counts = [
                _checked(leaf.detach() * of_leaf) for leaf, of_leaf in zip(leaves, of_leaves, strict=True)
            ]
        # Whatever a model does that it does not do with its own numbers.
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise NoPathsError(
                f"{op}: expected a model through which paths can be followed from one sample of shape "
                f"{input_size!r}, got {type(model).__name__}: {reason}"
            ) from error
        finally:
            for module, mode in modes:
                module.training = mode
    return dict(zip(weights, counts, strict=True))


def _weights_and_masks(
    model: nn.Module, masks: Mapping[str, Tensor], op: str
) -> tuple[dict[str, nn.Parameter], dict[nn.Parameter, Tensor]]:
    """The prunable weights and whatever else has a mask, and the masks by parameter."""
    weights = prunable(model)
    first = {weight: name for name, weight in weights.items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    given = {}
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(
                f"{op}: expected names of the model's parameters, got {name!r}; were the masks made for "
                "another model? densify() one that is sparse"
            )
        check_mask(mask, parameters[name].shape, f"{op}: {name!r}")
        given[parameters[name]] = mask
        weights.setdefault(first.get(parameters[name], name), parameters[name])
    return weights, given


def _float64(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _checked(numbers: Tensor) -> Tensor:
    """The numbers, none of which is negative: sums of them are zero only where there is no path."""
    if bool(numbers.isinf().any()):
        raise ValueError("it has more than 1.8e308 paths; live() has no such limit")
    if not bool((numbers >= 0).all()):
        raise ValueError("it makes negative numbers of positive ones")
    return numbers


class NoPathsError(ValueError):
    """Paths cannot be followed through a model, or are too many."""


class _Sums(TorchFunctionMode):
    """While a model runs, replaces what is no weight by sums, and checks what goes through its layers."""

    def __init__(self, leaves: Collection[Tensor], cut: bool) -> None:
        super().__init__()
        self.leaves, self.cut = {id(leaf) for leaf in leaves}, cut

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # x.relu(), x.relu_() and F.relu; x - y, x.sub(y) and torch.sub.
        full, kwargs = getattr(func, "__name__", ""), dict(kwargs or {})
        name = full.strip("_")
        if name == "set_grad_enabled":
            # Also a frozen part has paths.
            return None
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        if name in LAYERS:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if weight.requires_grad and not {id(weight), id(weight._base)} & self.leaves:
                raise ValueError(
                    "it computes weights from those that have masks; densify() a masked model first"
                )
            return _Layer.apply(func(*args, **kwargs), self.cut)
        if name not in SUMS or not any(isinstance(x, Tensor) and x.requires_grad for x in args):
            return func(*args, **kwargs)
        if full.endswith("_") and not full.endswith("__"):
            return args[0].copy_(SUMS[name](args[0].clone(), *args[1:], **kwargs))
        return SUMS[name](*args, **kwargs)


class _Layer(torch.autograd.Function):
    """What a layer gives and the gradient that it gets: checked, and cut to 0 and 1 if so wished."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, cut: bool) -> Tensor:
        ctx.cut = cut
        return (_checked(y) > 0).to(y.dtype) if cut else _checked(y).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,) = gradients
        return ((_checked(g) > 0).to(g.dtype) if ctx.cut else _checked(g)), None
