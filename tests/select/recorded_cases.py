"""Calls of ``prune`` whose masks were recorded, with arithmetic that is exact on every machine.

Weights, inputs and targets are small multiples of powers of two in float64, and losses are polynomials, so
that every order of summation gives the same scores: the masks depend on the selection alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(8, 8, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 10))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        Residual(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 2 * 2, 10),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (perceptron, (12,)),
    "convolutional": (convolutional, (3, 6, 6)),
}


def exact_model(name: str) -> nn.Module:
    """The model with weights of -1, -1/2, 0, 1/2 and 1."""
    numbers = np.random.default_rng([1, *name.encode()])
    model = MODELS[name][0]().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(numbers.integers(-2, 3, tuple(parameter.shape)) / 2))
    return model


def exact_batches(name: str, count: int = 2) -> list[tuple[Tensor, Tensor]]:
    numbers = np.random.default_rng([2, *name.encode()])
    sample = MODELS[name][1]
    return [
        (
            torch.from_numpy(numbers.integers(-2, 3, (4, *sample)).astype(np.float64)),
            torch.from_numpy(numbers.integers(-2, 3, (4, 10)).astype(np.float64)),
        )
        for _ in range(count)
    ]


def exact_loss(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).sum() / 2


def calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """``(id, model, arguments of prune)`` of every recorded call."""
    options: dict[str, dict[str, Any]] = {"grasp": {"temperature": 1.0}}
    for model in MODELS:
        for method in ("random", "magnitude", "gradient", "snip", "grasp"):
            of_method = {"method": method, **options.get(method, {})}
            targets: list[dict[str, Any]] = [
                {"sparsity": sparsity, "scope": scope, "min_per_layer": floor}
                for sparsity in (0.0, 0.5, 0.9, 0.97)
                for scope in ("global", "layer")
                for floor in (0, 1, 7)
                if not (scope == "global" and sparsity == 0.97 and floor == 7)
            ]
            targets += [
                {"flops": flops, "cost_exponent": exponent, "min_per_layer": 1}
                for flops in (0.02, 0.1, 0.4, 1.0)
                for exponent in (0.0, 0.25, 0.5, 1.0)
            ]
            for target in targets:
                for rows in (1, 2, 4, 8):
                    given = {"allow_empty": True, **of_method, **target, "block": (rows, 1)}
                    said = " ".join(f"{key}={value}" for key, value in given.items())
                    yield f"{model} {said}", model, given
        excluding = {"method": "snip", "sparsity": 0.8, "exclude": ("0",), "block": (2, 1)}
        yield f"{model} excluded", model, excluding
        yield f"{model} another seed", model, {"method": "random", "sparsity": 0.8, "seed": 3}


def exact_scores(negative: bool) -> dict[str, Tensor]:
    """Scores with many ties, for the functions that select."""
    numbers = np.random.default_rng(3)
    shapes = {"first": (16, 27), "second": (32, 64), "third": (24, 5, 3, 3), "last": (10, 32)}
    low = -40 if negative else 0
    return {name: torch.from_numpy(numbers.integers(low, 90, of) / 64).float() for name, of in shapes.items()}


def digest(masks: Mapping[str, Tensor]) -> str:
    """What identifies masks: names, shapes and every bit."""
    known = hashlib.sha256()
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        known.update(f"{name} {tuple(mask.shape)} ".encode())
        known.update(np.packbits(mask.contiguous().numpy()).tobytes())
    kept = sum(int(mask.sum()) for mask in masks.values())
    return f"{kept} {known.hexdigest()[:16]}"


def without_remedies(outcome: str) -> str:
    """An outcome as far as it is recorded: of an error what was expected and what came."""
    return outcome.partition(";")[0]


def outcome(call: Callable[[], Mapping[str, Tensor]]) -> str:
    """The digest of the masks, or the error."""
    try:
        return digest(call())
    except ValueError as error:
        return f"ValueError: {error}"
