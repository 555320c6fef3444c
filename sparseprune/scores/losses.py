"""The two forms of a loss: of (output, target), and of (model, batch)."""

import inspect
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.scores.nested import described

# loss(model(input), target), or loss(model, batch)
Loss = Callable[..., Tensor]
BatchLoss = Callable[[nn.Module, Any], Tensor]
EXAMPLE = "loss=lambda model, batch: model(**batch).loss"


def takes_model(loss: Loss) -> bool:
    """Whether a loss is given the model and the batch: its first parameter is named ``model``.

    Raises:
        TypeError: it cannot be called.
    """
    if not callable(loss):
        raise TypeError(
            "loss: expected a function of (model(input), target), or one whose first parameter is named "
            f"model, such as {EXAMPLE}, got {described(loss)}"
        )
    try:
        signature = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except (TypeError, ValueError):
        # A function of C++ tells no names.
        return False
    return next(iter(signature.parameters), None) == "model"


def of_batch(loss: Loss) -> BatchLoss:
    """A loss of either form as a function of (model, batch)."""
    if takes_model(loss):
        return loss

    def of_pair(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, target = batch
        output = model(x)
        if loss is F.cross_entropy:
            check_logits(output)
        return loss(output, target)

    return of_pair


def check_logits(output: object) -> None:
    """Raise TypeError for an output that is no tensor."""
    if not isinstance(output, Tensor):
        logits = "model(batch[0]).logits" if hasattr(output, "logits") else "model(batch[0])[0]"
        raise TypeError(
            f"loss: expected model(input) to be a tensor of logits, got {described(output)}; give a loss "
            f"that takes the model: loss=lambda model, batch: F.cross_entropy({logits}, batch[1])"
        )
