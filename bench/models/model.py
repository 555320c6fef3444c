"""A model as its users meet it, and the batches of their training scripts."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.scores.losses import Loss

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
CLASSES = 10
VOCABULARY = 60


@dataclass(frozen=True)
class Model:
    """A model of some library, small, with random weights.

    Attributes:
        name: library and class or function, such as "timm/resnet18".
        make: function that makes it; weights come from torch's global generator.
        batch: what a training script gives it: a dict of arguments, or (inputs ..., target).
        loss: as :func:`sparseprune.prune` takes it.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Any
    loss: Loss

    @property
    def library(self) -> str:
        """The package that it is of; "torch" and "sparseprune" are always there."""
        return self.name.partition("/")[0]

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.library) is not None

    def arguments(self, batch: Any) -> Arguments:
        """What the model itself is called with for a batch: (args, kwargs)."""
        return ((), dict(batch)) if isinstance(batch, Mapping) else (tuple(batch[:-1]), {})


def of_output(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss that models of transformers compute from labels."""
    loss: Tensor = model(**batch).loss
    return loss


def of_all_inputs(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross entropy of a model that takes several inputs, (N, ..., classes) against (N, ...)."""
    *inputs, target = batch
    return F.cross_entropy(model(*inputs).flatten(0, -2), target.flatten())


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape: int, count: int = VOCABULARY, seed: int = 0) -> Tensor:
    """Integers 2 .. count - 1: the first two are often special."""
    return torch.randint(2, count, shape, generator=torch.Generator().manual_seed(seed))


def labels(count: int, classes: int = CLASSES) -> Tensor:
    return torch.arange(count) % classes


def images(count: int = 4, size: int = 32, channels: int = 3) -> tuple[Tensor, Tensor]:
    """(images (N, C, H, W), labels (N,))"""
    return numbers(count, channels, size, size), labels(count)


def sentences(count: int = 4, length: int = 12) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` (N, L), of which the last sentence is half padding."""
    mask = torch.ones(count, length, dtype=torch.long)
    mask[-1, length // 2 :] = 0
    return {"input_ids": tokens(count, length), "attention_mask": mask}
