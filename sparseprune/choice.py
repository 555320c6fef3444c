"""Sparse or dense, layer by layer: decided by measuring both on this machine, once.

The seconds are kept in a file that may be read and deleted at any time: ``sparseprune/choices.json`` in
``$XDG_CACHE_HOME`` or ``~/.cache``, or what the environment variable ``SPARSEPRUNE_CHOICES`` names (empty: no
file).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparseprune import machine, ops
from sparseprune.nn import SparseLinear

MOST_ROUNDS = 50
ENOUGH_SECONDS = 0.05  # of all rounds; there are two at least, since the first one warms up


class Choice(NamedTuple):
    """Seconds of one training step of a layer, sparse and dense, and what they decide."""

    sparse: float
    dense: float

    @property
    def use_sparse(self) -> bool:
        return self.sparse < self.dense

    def __str__(self) -> str:
        faster, slower = ("sparse", "dense") if self.use_sparse else ("dense", "sparse")
        return (
            f"{faster} {min(self) * 1e3:.3g} ms, {slower} {max(self) * 1e3:.3g} ms a step"
            if ops.extension is not None
            else "plain torch, no sparse kernels"
        )


def choose(sparse: SparseLinear, make_dense: Callable[[], nn.Module], batch_size: int) -> Choice:
    """The seconds of a layer like this one, from the file or measured now and written there.

    Args:
        sparse: the sparse layer; not changed.
        make_dense: makes its dense twin, if need be.
        batch_size: samples in a step.
    """
    file, on, layer = choices_file(), machine.key(), key_of(sparse, batch_size)
    known = load(file).get(on, {}).get(layer)
    if known is None:
        known = measure(sparse, make_dense(), batch_size)
        _save(file, on, layer, known)
    return known


def key_of(layer: SparseLinear, batch_size: int) -> str:
    """What a layer's seconds depend on, as the file names it."""
    weights = layer.out_features * layer.in_features
    return (
        f"linear {layer.out_features}x{layer.in_features}, "
        f"density {layer.values.numel() / max(weights, 1):.3g}, block {layer.block[0]}x1, "
        f"{str(layer.values.dtype).removeprefix('torch.')}, batch {batch_size}"
        + ("" if layer.values.requires_grad else ", frozen")
    )


def measure(sparse: SparseLinear, dense: nn.Module, batch_size: int) -> Choice:
    """Time training steps (forward and all gradients) of two layers in turn; the fastest step of each counts.

    Args:
        sparse: the sparse layer; not changed.
        dense: its dense twin.
        batch_size: samples in a step.
    """
    rows, cols = sparse.out_features, sparse.in_features
    like = next(sparse.parameters())
    x, g = _ramp(like, batch_size, cols).requires_grad_(), _ramp(like, batch_size, rows)
    layers = [(layer, [x, *(p for p in layer.parameters() if p.requires_grad)]) for layer in (sparse, dense)]
    best = [math.inf, math.inf]
    rounds, begin = 0, time.perf_counter()
    with torch.enable_grad():
        while rounds < 2 or (rounds < MOST_ROUNDS and time.perf_counter() - begin < ENOUGH_SECONDS):
            for i, (layer, wanted) in enumerate(layers):
                start = time.perf_counter()
                torch.autograd.grad(layer(x), wanted, g)
                best[i] = min(best[i], time.perf_counter() - start)
            rounds += 1
    return Choice(*best)


def _ramp(like: Tensor, batch_size: int, features: int) -> Tensor:
    # Not random: measuring must not disturb the user's random numbers.
    x = torch.linspace(-1, 1, batch_size * features, device=like.device, dtype=like.dtype)
    return x.reshape(batch_size, features)


# ---- the file: {machine: {layer: {"sparse": seconds, "dense": seconds}}} -----------------------------------


def choices_file() -> Path | None:
    """Where measured seconds are kept; None: nowhere."""
    named = os.environ.get("SPARSEPRUNE_CHOICES")
    if named is not None:
        return Path(named) if named else None
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sparseprune" / "choices.json"


def load(file: Path | None) -> dict[str, dict[str, Choice]]:
    """What is in the file: nothing where there is none, or (with a warning) where it cannot be read."""
    try:
        return _read(file)
    except (OSError, ValueError) as error:
        warnings.warn(
            f"sparseprune: {file} is ignored ({error}); layers are measured again, and it is written anew",
            RuntimeWarning,
            stacklevel=2,
        )
        return {}


def _read(file: Path | None) -> dict[str, dict[str, Choice]]:
    if file is None or not file.exists():
        return {}
    try:
        known = {
            on: {layer: Choice(seconds["sparse"], seconds["dense"]) for layer, seconds in layers.items()}
            for on, layers in json.loads(file.read_text(encoding="utf-8")).items()
        }
        if not all(
            0 < s < math.inf for layers in known.values() for choice in layers.values() for s in choice
        ):
            raise ValueError("seconds are not above 0")
    except (AttributeError, KeyError, TypeError):
        raise ValueError('expected {machine: {layer: {"sparse": seconds, "dense": seconds}}}') from None
    return known


def _save(file: Path | None, on: str, layer: str, choice: Choice) -> None:
    if file is None:
        return
    known: dict[str, dict[str, Choice]] = {}
    with contextlib.suppress(OSError, ValueError):
        known = _read(file)  # again: another process may have written meanwhile
    known.setdefault(on, {})[layer] = choice
    content = {on: {layer: c._asdict() for layer, c in layers.items()} for on, layers in known.items()}
    new = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        new.replace(file)  # at once: nobody reads half a file
    except OSError as error:
        warnings.warn(
            f"sparseprune: cannot write {file} ({error}), so layers are measured anew each time; "
            "name another file in SPARSEPRUNE_CHOICES, or none with an empty one",
            RuntimeWarning,
            stacklevel=2,
        )
