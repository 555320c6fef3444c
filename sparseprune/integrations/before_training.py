"""What the callbacks have in common: a model is pruned and made sparse in place, once."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from sparseprune._sparsify import Layers, sparsify
from sparseprune.format.masks import MasksLike
from sparseprune.nn.kinds import Sparse
from sparseprune.nn.masked import Masked


class Pruning(NamedTuple):
    """What a callback is made with; see :func:`sparseprune.sparsify` for all but the masks."""

    masks: MasksLike | Callable[[Any], MasksLike]
    layers: Layers
    batch_size: int
    example_inputs: Any

    def apply(self, model: nn.Module) -> None:
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
