"""What the callbacks have in common: a model is pruned and made sparse in place, once."""

from collections.abc import Callable
from typing import Any

from torch import nn

from sparseprune._sparsify import Layers, sparsify
from sparseprune.format.masks import MasksLike
from sparseprune.nn.kinds import Sparse
from sparseprune.nn.masked import Masked


class BeforeTraining:
    """What a callback is made with, and what it does with a dense model."""

    def __init__(
        self,
        masks: MasksLike | Callable[[Any], MasksLike],
        *,
        layers: Layers = "measured",
        batch_size: int = 256,
        example_inputs: Any = None,
    ) -> None:
        """
        Args:
            masks: masks as :func:`sparseprune.sparsify` takes them; or a function that is given the model and
                returns them, such as ``lambda model: sp.prune(model, batches, loss=...)``.
            layers, batch_size, example_inputs: see :func:`sparseprune.sparsify`.
        """
        self.masks, self.layers = masks, layers
        self.batch_size, self.example_inputs = batch_size, example_inputs

    def make_sparse(self, model: nn.Module) -> None:
        """Make the layers of a dense model sparse, in place.

        Raises:
            TypeError, ValueError: masks or samples do not fit; the model is unchanged.
        """
        masks = self.masks(model) if callable(self.masks) else self.masks
        sparsify(
            model,
            masks,
            inplace=True,
            layers=self.layers,
            batch_size=self.batch_size,
            example_inputs=self.example_inputs,
        )


def is_pruned(model: nn.Module) -> bool:
    """Whether a model has sparse or masked layers."""
    return any(isinstance(module, Sparse | Masked) for module in model.modules())
