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
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparseprune import ops
from sparseprune.cost import machine
from sparseprune.cost.calls import Sizes
from sparseprune.format.memory import in_layout
from sparseprune.nn import SparseLinear
from sparseprune.nn.conv import FEW_SAMPLES
from sparseprune.nn.sparse import SparseLayer

MOST_ROUNDS = 50
ENOUGH_SECONDS = 0.05  # of all rounds; there are two at least, since the first one warms up

# Highest densities, by V, at which convolutions of unknown size are assumed to train faster sparse. Measured
# on 2 cores with AVX-512, 1 x 1 and 3 x 3 kernels of 16 to 512 channels, 32 x 32 to 4 x 4, 16 and 64 samples:
# at least 1.3 times as fast for V = 1, about 1.2 for V = 4 (at 0.6: 1.0).
DENSEST = {1: 0.3, 2: 0.3, 4: 0.5, 8: 0.5, 16: 0.5}
# The same on GPUs, by dtype, for V < 8 and V >= 8. A model, not a measurement: dense convolutions run on
# tensor cores, in TF32 or half precision, at eight and more times the rate of ordinary float32 arithmetic.
DENSEST_ON_CUDA = {torch.float32: (0.05, 0.05), torch.float16: (0.02, 0.1), torch.bfloat16: (0.02, 0.1)}


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


@dataclass(frozen=True)
class Assumption:
    """Sparse or dense without measuring, for a convolution whose input's size is not known."""

    facts: str
    use_sparse: bool

    def __str__(self) -> str:
        if ops.extension is None:
            return "plain torch, no sparse kernels"
        return f"assumed: {self.facts}; give input_size to measure"


def assume(sparse: SparseLayer, batch_size: int) -> Assumption:
    """Sparse where training is faster at all sizes of images that were tried, not only at some.

    That is up to the densities ``DENSEST`` (half of them with few samples), in float32, with vector
    instructions; on a GPU up to ``DENSEST_ON_CUDA``.

    Args:
        sparse: the sparse layer.
        batch_size: samples in a step.
    """
    density, dtype = _density(sparse), sparse.values.dtype
    densest = DENSEST[sparse.block[0]] * (1 if batch_size >= FEW_SAMPLES else 0.5)
    facts = f"density {density:.3g}, {_name(dtype)}, batch {batch_size}"
    if sparse.values.is_cuda:
        densest = DENSEST_ON_CUDA[dtype][sparse.block[0] >= 8]
        return Assumption(facts + ", CUDA", ops.has_kernels(sparse.values.device) and density <= densest)
    vectors = ops.extension is not None and ops.extension.isa() != "scalar"
    return Assumption(facts, vectors and dtype == torch.float32 and density <= densest)


class BetweenSparse(nn.Module):
    """A dense convolution between sparse ones: batch-inner activations are converted for it and back."""

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        return in_layout(self.dense(in_layout(x, False)), True)


def choose(
    sparse: SparseLayer,
    make_dense: Callable[[], nn.Module],
    batch_size: int,
    sizes: Sizes | None = None,
    *,
    between_sparse: bool = False,
) -> Choice:
    """The seconds of a layer like this one, from the file or measured now and written there.

    Args:
        sparse: the sparse layer; not changed.
        make_dense: makes its dense twin, if need be.
        batch_size: samples in a step.
        sizes: of the layer's activations; a linear layer has its input's size itself.
        between_sparse: see :class:`BetweenSparse`, for 2-d convolutions.
    """
    file, on = choices_file(), machine.key(sparse.values.device)
    layer = key_of(sparse, batch_size, sizes, between_sparse)
    known = load(file).get(on, {}).get(layer)
    if known is None:
        dense = make_dense()
        known = measure(sparse, BetweenSparse(dense) if between_sparse else dense, batch_size, sizes)
        _save(file, on, layer, known)
    return known


def key_of(
    layer: SparseLayer, batch_size: int, sizes: Sizes | None = None, between_sparse: bool = False
) -> str:
    """What a layer's seconds depend on, as the file names it."""
    shape = "x".join(map(str, layer.weight_shape))
    if isinstance(layer, SparseLinear):
        kind = f"linear {shape}"
        if sizes is not None and len(sizes.input) > 1:
            kind += f", input {'x'.join(map(str, sizes.input))}"
    else:
        assert sizes is not None
        kind = f"conv {shape}, {_steps(layer)}input {'x'.join(map(str, sizes.input))}"
    return (
        f"{kind}, density {_density(layer):.3g}, block {layer.block[0]}x1, "
        f"{_name(layer.values.dtype)}, batch {batch_size}"
        + ("" if layer.values.requires_grad else ", frozen")
        + ("" if sizes is None or sizes.input_gradient else ", first")
        + (", between sparse layers" if between_sparse else "")
    )


def _steps(conv: SparseLayer) -> str:
    """What of a convolution is not as usual."""
    usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"}
    text = ""
    for name, one in usual.items():
        value = getattr(conv, name)
        if value != one and set(value if isinstance(value, tuple) else (value,)) != {one}:
            text += f"{name} {'x'.join(map(str, value)) if isinstance(value, tuple) else value}, "
    return text


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _density(layer: SparseLayer) -> float:
    return layer.values.numel() / max(math.prod(layer.weight_shape), 1)


def measure(sparse: SparseLayer, dense: nn.Module, batch_size: int, sizes: Sizes | None = None) -> Choice:
    """Time training steps (forward and all gradients) of two layers in turn; the fastest step of each counts.

    A sparse convolution is timed as it will run: on batch-inner activations, where there are samples enough,
    but for the input of the first layer, which comes as the user gives it. The dense one has ordinary ones,
    unless it is :class:`BetweenSparse`.

    Args:
        sparse: the sparse layer; not changed.
        dense: its dense twin.
        batch_size: samples in a step.
        sizes: see :func:`choose`.
    """
    first = sizes is not None and not sizes.input_gradient
    if sizes is None:
        rows, cols = sparse.weight_shape
        sizes = Sizes((cols,), (rows,), True)
    inner = not isinstance(sparse, SparseLinear) and batch_size >= FEW_SAMPLES
    between = isinstance(dense, BetweenSparse)
    layout = sparse.batch_inner
    try:
        sparse.batch_inner = True if inner else layout
        return Choice(
            *_fastest(
                _Step.of(sparse, batch_size, sizes, inner and not first, inner, first),
                _Step.of(dense, batch_size, sizes, between and not first, between, first),
            )
        )
    finally:
        sparse.batch_inner = layout


def measure_dense(layer: nn.Module, batch_size: int, sizes: Sizes) -> float:
    """Seconds of the fastest training step of a layer that has no sparse twin."""
    (seconds,) = _fastest(_Step.of(layer, batch_size, sizes, False, False, not sizes.input_gradient))
    return seconds


class _Step(NamedTuple):
    """One layer's training step: forward and all gradients."""

    layer: nn.Module
    x: Tensor
    g: Tensor
    wanted: list[Tensor]

    @classmethod
    def of(
        cls, layer: nn.Module, batch_size: int, sizes: Sizes, x_inner: bool, g_inner: bool, first: bool
    ) -> _Step:
        like = next(layer.parameters())
        x = _ramp(like, batch_size, sizes.input, x_inner).requires_grad_(not first)
        g = _ramp(like, batch_size, sizes.output, g_inner)
        return cls(layer, x, g, [t for t in (x, *layer.parameters()) if t.requires_grad])

    def __call__(self) -> None:
        y = self.layer(self.x)
        if self.wanted:
            torch.autograd.grad(y, self.wanted, self.g)


def _fastest(*steps: _Step) -> list[float]:
    """Seconds of each step's fastest run; they take turns."""
    best = [math.inf] * len(steps)
    rounds, begin = 0, time.perf_counter()
    with torch.enable_grad():
        while rounds < 2 or (rounds < MOST_ROUNDS and time.perf_counter() - begin < ENOUGH_SECONDS):
            for i, step in enumerate(steps):
                start = clock(step.x.device)
                step()
                best[i] = min(best[i], clock(step.x.device) - start)
            rounds += 1
    return best


def clock(device: torch.device) -> float:
    """Seconds, when all that was launched is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _ramp(like: Tensor, batch_size: int, size: tuple[int, ...], batch_inner: bool) -> Tensor:
    # Not random: measuring must not disturb the user's random numbers.
    x = torch.linspace(-1, 1, batch_size * math.prod(size), device=like.device, dtype=like.dtype)
    return x.reshape(*size, batch_size).movedim(-1, 0) if batch_inner else x.reshape(batch_size, *size)


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
