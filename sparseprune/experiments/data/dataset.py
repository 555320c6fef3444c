"""A classification data set in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparseprune.experiments.data.inputs import Inputs


@dataclass(frozen=True)
class Dataset:
    """A classification data set in memory.

    Attributes:
        name: the name that `load` knows it by, with its arguments if it has any.
        source: place that it came from, for a person to read.
        train_x, test_x: inputs, (samples, channels, height, width) for images, (samples, length) for
            signals, normalised to about mean 0 and standard deviation 1; the user's own as they are.
            Float32 tensors, or what becomes float32 a batch at a time, see inputs.py.
        train_y, test_y: labels, int64, (samples,).
    """

    name: str
    source: str
    train_x: Inputs
    train_y: Tensor
    test_x: Inputs
    test_y: Tensor

    @property
    def features(self) -> int:
        """Numbers per sample."""
        return math.prod(self.sample)

    @property
    def sample(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train_x.shape[1:])

    @property
    def classes(self) -> int:
        """Number of labels."""
        return int(max(self.train_y.max(), self.test_y.max())) + 1

    def facts(self) -> dict[str, Any]:
        """What a reader of results must know of it, for files: name, source, samples, shape and classes."""
        return {
            "name": self.name,
            "source": self.source,
            "train": len(self.train_x),
            "test": len(self.test_x),
            "sample": list(self.sample),
            "classes": self.classes,
        }

    def validation(self, count: int = 5000, seed: int = 0) -> Dataset:
        """The training samples alone, some of them held out in place of the test samples.

        Whatever is tuned on it never sees the test samples.

        Args:
            count: number of samples that are held out, drawn at random.
            seed: seed of the draw.
        Returns:
            the data set: the held-out samples are its test part, the others its training part.
        Raises:
            ValueError: count is not between 1 and the number of training samples less one.
        """
        samples = len(self.train_x)
        if not 0 < count < samples:
            raise ValueError(
                f"validation: expected a count from 1 to {samples - 1}, so that some of the {samples} "
                f"training samples of {self.name} are left to train on, got {count}"
            )
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
        held, rest = order[:count], order[count:]
        return replace(
            self,
            source=f"{self.source}, {count} training samples held out for validation",
            train_x=self.train_x[rest],
            train_y=self.train_y[rest],
            test_x=self.train_x[held],
            test_y=self.train_y[held],
        )
