"""Scores of the prunable weights of a network, one file and one function a method: higher score = keep.

All take the same arguments and leave the model as it was: weights, buffers, gradients, ``requires_grad``,
modes and torch's random state are bit-identical afterwards, also after an error. Forward passes run with
dropout off (everything but normalisation is in evaluation mode), so a score depends on the model and the data
alone.

Args:
    model: the network.
    batches: iterable of (input, target), moved to the model's device one at a time.
    loss: function of (model(input), target) that returns a scalar.
    bn: statistics that batch-norm uses, the batch's (``"train"``, as in the training that follows) or the
        running ones (``"eval"``).
    exclude: names of parameters or modules to leave out.
Returns:
    ``{parameter name: float32 tensor of the weight's shape}``.
Raises:
    ValueError: there are no batches, or ``loss`` is not a scalar that depends on the weights.
    TypeError: ``batches`` is not an iterable of (input, target).
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from sparseprune.scores.base import Batches, Loss, Scores, prunable
from sparseprune.scores.gradient import gradient
from sparseprune.scores.grasp import grasp
from sparseprune.scores.magnitude import magnitude
from sparseprune.scores.random import random
from sparseprune.scores.snip import snip

Method = Callable[[nn.Module, Batches | None, Loss], Mapping[str, Tensor]]

METHODS: dict[str, Callable[..., Scores]] = {
    "random": random,
    "magnitude": magnitude,
    "gradient": gradient,
    "snip": snip,
    "grasp": grasp,
}
# Options of a method beside the model, the batches, the loss and what is excluded.
OPTIONS: dict[str, tuple[str, ...]] = {
    "random": ("seed",),
    "magnitude": (),
    "gradient": ("bn",),
    "snip": ("bn",),
    "grasp": ("bn", "temperature"),
}


def scorer(
    method: str | Method, exclude: Iterable[str] = (), *, seed: int = 0, **options: Any
) -> Callable[[nn.Module, Batches | None, Loss], Scores]:
    """Bind the options of a method: what is left takes (model, batches, loss).

    Args:
        method: a name in ``METHODS``, or a function ``(model, batches, loss) -> {parameter name: score}`` of
            the user's own, higher = keep.
        exclude: names of parameters or modules that are not scored.
        seed: seed of the method ``"random"``.
        options: the method's other options; None leaves one at its default.
    Returns:
        a function whose result has a score of the weight's shape for every prunable weight that is not
        excluded, in the order of the modules.
    Raises:
        TypeError: the method is neither a name nor a function, or has no such option.
        ValueError: the name is not known.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not isinstance(method, str):
        if not callable(method):
            raise TypeError(
                "prune: expected method to be a name or a function (model, batches, loss) -> "
                f"{{parameter name: score}}, got {type(method).__name__}"
            )
        if given:
            raise TypeError(
                f"prune: expected no options of a method of your own, got {', '.join(given)}; "
                "bind them with functools.partial"
            )
        return functools.partial(_checked, method, list(exclude))
    if method not in METHODS:
        raise ValueError(
            f"prune: expected method to be one of {', '.join(METHODS)}, got {method!r}; "
            "or give a function (model, batches, loss) -> {parameter name: score}"
        )
    if unknown := [name for name in given if name not in OPTIONS[method]]:
        raise TypeError(
            f"prune: expected options of method {method!r} ({', '.join(OPTIONS[method]) or 'it has none'}), "
            f"got {', '.join(unknown)}"
        )
    if "seed" in OPTIONS[method]:
        given["seed"] = seed
    return functools.partial(METHODS[method], exclude=list(exclude), **given)


def _checked(
    method: Method, exclude: list[str], model: nn.Module, batches: Batches | None, loss: Loss
) -> Scores:
    """Scores of a user's own method: of every prunable weight, in its shape and on its device."""
    scored = method(model, batches, loss)
    if not isinstance(scored, Mapping):
        raise TypeError(
            f"prune: expected the method to return {{parameter name: score}}, got {type(scored).__name__}"
        )
    result = {}
    for name, weight in prunable(model, exclude).items():
        score = scored.get(name)
        if not isinstance(score, Tensor) or score.shape != weight.shape or not score.is_floating_point():
            got = f"{score.dtype} {list(score.shape)}" if isinstance(score, Tensor) else repr(score)
            raise ValueError(
                f"prune: expected the method to score {name!r} with a floating-point tensor of shape "
                f"{list(weight.shape)}, got {got}"
            )
        result[name] = score.detach().to(weight.device)
    return result
