"""A classification data set in memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """A classification data set in memory.

    Attributes:
        name: the name that `load` knows it by.
        source: place that it came from, for a person to read.
        train_x, test_x: inputs, float32, (samples, channels, height, width) for images, (samples, length)
            for signals, normalised to about mean 0 and standard deviation 1; the user's own as they are.
        train_y, test_y: labels, int64, (samples,).
    """

    name: str
    source: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def features(self) -> int:
        """Numbers per sample."""
        return self.train_x[0].numel()

    @property
    def sample(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train_x.shape[1:])

    @property
    def classes(self) -> int:
        """Number of labels."""
        return int(max(self.train_y.max(), self.test_y.max())) + 1
