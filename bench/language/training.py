"""Training of a language model for a number of steps, and what it has learned after some of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.language.contenders import autocast, cross_entropy
from bench.language.text import Text, pieces, sample

BATCH = 8  # pieces of text in a step
LENGTH = 256  # characters of a piece
WARM_UP = 0.05  # part of the steps in which the rate rises
WEIGHT_DECAY, BETAS, CLIP = 0.1, (0.9, 0.95), 1.0  # nanoGPT's
CURVE_PIECES, LAST_PIECES = 64, 384  # of held-out text, at a point of the curve and at the end


@dataclass(frozen=True)
class Learned:
    """What a run has come to.

    Attributes:
        bits: cross-entropy of the validation or test text at the end, bits a character.
        curve: (steps so far, bits a character of the validation text).
        steps: optimizer steps.
        wall_seconds: time of training here, evaluation excluded, on a machine that may have been busy.
    """

    bits: float
    curve: tuple[tuple[int, float], ...]
    steps: int
    wall_seconds: float


class Trainer:
    """A model and its optimizer: AdamW (fused), a rate that rises and falls, clipped gradients."""

    def __init__(self, model: nn.Module, text: Tensor, *, lr: float, precision: str, seed: int) -> None:
        self.model, self.text, self.lr, self.precision = model.train(), text, lr, precision
        self.order = torch.Generator().manual_seed(seed)
        named = list(model.named_parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in named if "norm" not in name]},
            {"params": [p for name, p in named if "norm" in name], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)

    def step(self, done: float) -> None:
        """One step, at this part (0 ... 1) of the training."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * rate_at(done)
        x, y = sample(self.text, BATCH, LENGTH, self.order)
        with autocast(self.precision):
            loss = cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()


def train(
    model: nn.Module,
    text: Text,
    *,
    steps: int,
    lr: float,
    precision: str,
    seed: int,
    points: Sequence[float] = (),
    test: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Learned:
    """Train a model in place.

    Args:
        model: characters (batch, length) -> logits.
        text: what to train and validate on.
        steps: number of steps, 1 at least.
        lr: highest rate.
        precision: see `autocast`.
        seed: seed of the pieces that are trained on.
        points: parts of the steps, 0 ... 1, after which the validation text is looked at.
        test: whether the bits at the end are the test text's, and not the validation text's.
        clock: function that returns seconds.
    Returns:
        what it has come to; bits are NaN where training diverged.
    """
    trainer = Trainer(model, text.train, lr=lr, precision=precision, seed=seed)
    looks = {max(1, round(point * steps)) for point in points}
    curve: list[tuple[int, float]] = []
    wall_seconds = 0.0
    begin = clock()
    for number in range(steps):
        trainer.step(number / steps)
        if number + 1 in looks:
            wall_seconds += clock() - begin
            curve.append((number + 1, bits(model, text.validation, CURVE_PIECES, precision)))
            begin = clock()
    wall_seconds += clock() - begin
    held_out = text.test if test else text.validation
    return Learned(bits(model, held_out, LAST_PIECES, precision), tuple(curve), steps, wall_seconds)


def rate_at(done: float) -> float:
    """Factor of the highest rate at a part of the training: up in a line, and down to 0 as a cosine."""
    if done < WARM_UP:
        return (done + 1e-3) / (WARM_UP + 1e-3)
    return (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


def bits(model: nn.Module, text: Tensor, count: int, precision: str) -> float:
    """Cross-entropy of so many pieces of a text, bits a character."""
    model.eval()
    x, y = pieces(text, LENGTH, count)
    with torch.no_grad(), autocast(precision):
        nats = [
            len(some) * cross_entropy(model(some), following).item()
            for some, following in zip(x.split(BATCH), y.split(BATCH), strict=True)
        ]
    model.train()
    return sum(nats) / count / math.log(2)
