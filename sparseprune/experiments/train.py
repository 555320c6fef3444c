"""A plain torch training loop with a clock: Adam or SGD, cosine decay to zero, cross-entropy.

The same loop serves dense and sparse models, so that a comparison of two of them compares nothing else. The
optimizers are torch's fused ones, the fastest on a CPU: fused Adam updates a dense network several times
faster than the default, and a dense contender with a slow optimizer would flatter the sparse ones.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseprune.experiments.data import Dataset, batches
from sparseprune.experiments.data.inputs import Inputs
from sparseprune.experiments.data.iteration import room
from sparseprune.experiments.meter import UNMEASURED, Meter
from sparseprune.experiments.optimizers import learning_rate, make_optimizer
from sparseprune.experiments.rewiring import EVERY, Moves
from sparseprune.nn.sparse import SparseLayer

EVALUATION_BATCH = 500  # samples


@dataclass(frozen=True)
class CurvePoint:
    """A point of a training curve: passes over the data, seconds so far, test accuracy (0 ... 1)."""

    epoch: float
    seconds: float
    accuracy: float


@dataclass(frozen=True)
class TrainResult:
    """What one training run did.

    Attributes:
        accuracy: fraction of the test samples that the model got right at the end.
        epochs: passes over the training data since step 0, a fraction where the training ended within one.
        steps: optimizer steps of this run.
        seconds: wall-clock time of the whole loop, data included, evaluation excluded.
        evaluation_seconds: wall-clock time of all evaluations.
        step_seconds: median time of one step, its data included.
        curve: test accuracy after each pass, and at the end.
        bytes: bytes of "parameters", "gradients", "optimizer" and "buffers"; see `state_bytes`.
        cpu_seconds: time of all threads in those seconds; None in results from before it was measured.
        joules: energy in those seconds; None where nothing measures it.
        energy: what measured it, or "not measured" and why; see `sparseprune.experiments.meter`.
        moves: how often the pattern of its layers moved.
    """

    accuracy: float
    epochs: float
    steps: int
    seconds: float
    evaluation_seconds: float
    step_seconds: float
    curve: tuple[CurvePoint, ...]
    bytes: dict[str, int]
    cpu_seconds: float | None = None
    joules: float | None = None
    energy: str = UNMEASURED
    moves: int = 0


def train(
    model: nn.Module,
    data: Dataset,
    *,
    epochs: int | None = None,
    seconds: float | None = None,
    batch_size: int = 256,
    optimizer: str = "adam",
    lr: float | None = None,
    seed: int = 0,
    start: int = 0,
    stop: int | None = None,
    rewire: str | None = None,
    every: int = EVERY,
    clock: Callable[[], float] = time.perf_counter,
    on_progress: Callable[[float], None] | None = None,
) -> TrainResult:
    """Train a model in place, for a number of epochs or for a wall-clock time.

    The learning rate falls as lr * (1 + cos(pi * p)) / 2, where p is the part done of the steps or of the
    time, so that the schedule completes either way.

    Args:
        model: any module that takes `data.train_x` and returns logits (batch, classes).
        data: what to train and test on.
        epochs: passes over the training data; this or `seconds`.
        seconds: time to train, evaluation excluded; the first step that reaches it is the last.
        batch_size: samples per step; the last step of a pass has what is left over.
        optimizer: one of `OPTIMIZERS`, "adam" or "sgd".
        lr: learning rate at the start; the optimizer's default when None.
        seed: seed of the order of the samples.
        start, stop: first step of the run and the one before which it ends, of those of `epochs`; samples and
            learning rates are those of a run of all steps. The optimizer starts anew.
        rewire: "rigl" or "set": the pattern of sparse and masked layers moves in the first three quarters of
            the training; see `sparseprune.Rewire`. Its time counts.
        every: steps from one move to the next.
        clock: function that returns seconds; replaced in tests.
        on_progress: function that is called after every step with the part of the run that is done, 0 ... 1.
    Returns:
        the figures of the run; the model is left trained, in training mode, with its last gradients.
    Raises:
        ValueError: not exactly one of epochs and seconds is given, one of the numbers is out of range, or the
            pattern cannot move.
    """
    if (epochs is None) == (seconds is None):
        raise ValueError(
            f"train: expected either epochs or seconds, got epochs={epochs} and seconds={seconds}"
        )
    if epochs is not None and epochs < 1:
        raise ValueError(f"train: expected epochs >= 1, got {epochs}")
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"train: expected more than 0 seconds, got {seconds}")
    lr = learning_rate(optimizer, lr)
    order = torch.Generator().manual_seed(seed)
    updates = make_optimizer(model, optimizer, lr)
    per_epoch = steps_per_epoch(len(data.train_x), batch_size)
    # 1 with a batch size of which batches() says what is wrong.
    steps = 0 if epochs is None else epochs * max(per_epoch, 1)
    stop = steps if stop is None else stop
    if (start, stop) != (0, steps) and not 0 <= start < stop <= steps:
        raise ValueError(
            f"train: expected 0 <= start < stop <= {steps} (steps of its epochs), got {start} and {stop}"
        )
    moves = None
    if rewire is not None:
        moves = Moves(model, updates, rewire, every, seed, steps if seconds is None else None, start)
    into = room(data.train_x, batch_size)
    samples = _rest_of_pass(data, batch_size, order, into, *divmod(start, max(per_epoch, 1)))
    step_seconds: list[float] = []
    curve: list[CurvePoint] = []
    evaluation_seconds = elapsed = part = 0.0
    # Done of the whole schedule; `part` is that of this run.
    done = start / steps if steps else 0.0
    meter = Meter(next(model.parameters()).device)
    model.train()
    meter.start()
    begin = stamp = clock()
    while part < 1:
        for x, y in samples:
            for group in updates.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * done)) / 2
            _step(model, updates, x, y)
            if moves is not None:
                moves.step(done)
            now = clock()
            step_seconds.append(now - stamp)
            stamp = now
            elapsed = now - begin - evaluation_seconds
            if seconds is None:
                done = (start + len(step_seconds)) / steps
                part = len(step_seconds) / (stop - start)
            else:
                done = part = min(elapsed / seconds, 1.0)
            meter.update()
            if on_progress is not None:
                on_progress(part)
            if part >= 1:
                break
        meter.stop()
        accuracy = evaluate(model, data.test_x, data.test_y)
        curve.append(CurvePoint((start + len(step_seconds)) / per_epoch, elapsed, accuracy))
        samples = batches(data.train_x, data.train_y, batch_size, order, into)
        if part < 1:
            meter.start()
        now = clock()
        evaluation_seconds += now - stamp
        stamp = now
    return TrainResult(
        accuracy=curve[-1].accuracy,
        epochs=curve[-1].epoch,
        steps=len(step_seconds),
        seconds=elapsed,
        evaluation_seconds=evaluation_seconds,
        step_seconds=statistics.median(step_seconds),
        curve=tuple(curve),
        bytes=state_bytes(model, updates),
        cpu_seconds=meter.cost.cpu_seconds,
        joules=meter.cost.joules,
        energy=meter.cost.source,
        moves=0 if moves is None else moves.count,
    )


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Optimizer steps of a pass over so many samples."""
    return math.ceil(samples / batch_size) if batch_size > 0 else 0


def warm_up(
    model: nn.Module, data: Dataset, batch_size: int = 256, optimizer: str = "adam", steps: int = 3
) -> None:
    """Train and evaluate a copy of the model for a few steps, so that a timed run does not start cold.

    Args:
        model: any module; it is left as it is.
        data: what to train on.
        batch_size: samples per step.
        optimizer: see `train`.
        steps: number of steps.
    """
    model = copy.deepcopy(model).train()
    updates = make_optimizer(model, optimizer, learning_rate(optimizer, None))
    for x, y in itertools.islice(batches(data.train_x, data.train_y, batch_size, torch.Generator()), steps):
        _step(model, updates, x, y)
    evaluate(model, data.test_x[:EVALUATION_BATCH], data.test_y[:EVALUATION_BATCH])


def evaluate(model: nn.Module, x: Inputs, y: Tensor) -> float:
    """Fraction of samples whose largest logit is the label's.

    Args:
        model: module that returns logits (batch, classes); its training or evaluation mode is restored.
        x: inputs, (samples, ...); see `sparseprune.experiments.data.inputs`.
        y: labels, int64, (samples,).
    Returns:
        accuracy, 0 ... 1.
    Raises:
        ValueError: there are no samples.
    """
    if len(x) == 0:
        raise ValueError("evaluate: expected at least one sample, got 0")
    training = model.training
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(inputs).argmax(1) == labels).sum())
            for inputs, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True)
        )
    model.train(training)
    return right / len(x)


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes that training holds, counted from the tensors that are really there; call it after a step.

    Args:
        model: module whose parameters, gradients and buffers are counted.
        optimizer: optimizer of which every tensor of its state is counted.
    Returns:
        bytes of "parameters", "gradients", "optimizer" and "buffers" (of a sparse layer: its pattern, the
        copy of it that was checked, and plans).
    """
    gradients = (p.grad for p in model.parameters() if p.grad is not None)
    state = (v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor))
    checked = (t for module in model.modules() if isinstance(module, SparseLayer) for t in module.pattern)
    return {
        "parameters": sum(p.nbytes for p in model.parameters()),
        "gradients": sum(g.nbytes for g in gradients),
        "optimizer": sum(v.nbytes for v in state),
        "buffers": sum(t.nbytes for t in (*model.buffers(), *checked)),
    }


def _rest_of_pass(
    data: Dataset, batch_size: int, order: torch.Generator, into: Tensor, passes: int, skipped: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches that are left after so many passes over the data and so many batches."""
    for _ in range(passes):
        # The first batch draws the order of its pass.
        next(batches(data.train_x, data.train_y, batch_size, order, into))
    samples = batches(data.train_x, data.train_y, batch_size, order, into)
    for _ in range(skipped):
        next(samples)
    return samples


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
