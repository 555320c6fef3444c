"""Scores of the prunable weights of a network, one function a method: higher score = keep.

Every function returns ``{parameter name: float32 tensor of the weight's shape}`` and leaves the model as it
was: weights, buffers, gradients, ``requires_grad``, modes and torch's random state are bit-identical
afterwards, also after an error. Forward passes run with dropout off (everything but normalisation is in
evaluation mode), so a score depends on the model and the data alone; ``bn`` says which statistics
batch-norm uses, the batch's (``"train"``, as in the training that follows) or the running ones
(``"eval"``).
"""

from __future__ import annotations

from collections.abc import Callable

from sparseprune.scores.base import Batches, Loss, Scores, prunable
from sparseprune.scores.gradient import gradient
from sparseprune.scores.grasp import grasp
from sparseprune.scores.magnitude import magnitude
from sparseprune.scores.random import random
from sparseprune.scores.snip import snip

METHODS: dict[str, Callable[..., Scores]] = {
    "random": random,
    "magnitude": magnitude,
    "gradient": gradient,
    "snip": snip,
    "grasp": grasp,
}

__all__ = [
    "METHODS",
    "Batches",
    "Loss",
    "Scores",
    "gradient",
    "grasp",
    "magnitude",
    "prunable",
    "random",
    "snip",
]
