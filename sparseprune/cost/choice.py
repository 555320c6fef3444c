"""Sparse or dense, layer by layer: decided by measuring both on this machine, once (see cache.py)."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune import ops
from sparseprune.cost import cache, machine
from sparseprune.cost.cache import Choice
from sparseprune.cost.calls import Call
from sparseprune.cost.timer import Timed, time_in_turns
from sparseprune.format.memory import in_layout
from sparseprune.nn import SparseLinear
from sparseprune.nn.conv import FEW_SAMPLES
from sparseprune.nn.sparse import SparseLayer

log = logging.getLogger(__name__)

# Below 0.05 seconds the system's counters do not show whether other processes computed, too.
ROUNDS: dict[str, Any] = {"fewest": 3, "seconds": 0.05, "patience": 0.5}

# Highest densities, by V, at which convolutions of unknown size are assumed to train faster sparse. Measured
# on 2 cores with AVX-512, 1 x 1 and 3 x 3 kernels of 16 to 512 channels, 32 x 32 to 4 x 4, 16 and 64 samples:
# at least 1.3 times as fast for V = 1, about 1.2 for V = 4 (at 0.6: 1.0).
DENSEST = {1: 0.3, 2: 0.3, 4: 0.5, 8: 0.5, 16: 0.5}
# The same on GPUs, by dtype, for V < 8 and V >= 8. A model, not a measurement: dense convolutions run on
# tensor cores, in TF32 or half precision, at eight and more times the rate of ordinary float32 arithmetic.
DENSEST_ON_CUDA = {torch.float32: (0.05, 0.05), torch.float16: (0.02, 0.1), torch.bfloat16: (0.02, 0.1)}


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
    call: Call | None = None,
    *,
    between_sparse: bool = False,
) -> Choice:
    """The seconds of a layer like this one, from the file or measured now.

    They are written there, unless something disturbed the measurement: then the next call measures again.

    Args:
        sparse: the sparse layer; not changed.
        make_dense: makes its dense twin, if need be.
        batch_size: samples in a step.
        call: shapes of the layer's activations; a linear layer has its input's size itself.
        between_sparse: see :class:`BetweenSparse`, for 2-d convolutions.
    """
    file, on = cache.choices_file(), machine.key(sparse.values.device)
    layer = key_of(sparse, batch_size, call, between_sparse)
    known = cache.load(file).get(on, {}).get(layer)
    if known is None:
        dense = make_dense()
        known = measure(sparse, BetweenSparse(dense) if between_sparse else dense, batch_size, call)
        log.info("%s: %s%s", layer, known, "; not kept" if known.disturbed else "")
        if not known.disturbed:
            cache.save(file, on, layer, known)
    return known


def key_of(
    layer: SparseLayer, batch_size: int, call: Call | None = None, between_sparse: bool = False
) -> str:
    """What a layer's seconds depend on, as the file names it."""
    shape = "x".join(map(str, layer.weight_shape))
    if isinstance(layer, SparseLinear):
        kind = f"linear {shape}"
        if call is not None and len(call.input) > 1:
            kind += f", input {'x'.join(map(str, call.input))}"
    else:
        assert call is not None
        kind = f"conv {shape}, {_steps(layer)}input {'x'.join(map(str, call.input))}"
    return (
        f"{kind}, density {_density(layer):.3g}, block {layer.block[0]}x1, "
        f"{_name(layer.values.dtype)}, batch {batch_size}"
        + ("" if layer.values.requires_grad else ", frozen")
        + ("" if call is None or call.input_gradient else ", first")
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


def measure(sparse: SparseLayer, dense: nn.Module, batch_size: int, call: Call | None = None) -> Choice:
    """Time training steps (forward and all gradients) of two layers in turn; see :func:`time_in_turns`.

    A sparse convolution is timed as it will run: on batch-inner activations, where there are samples enough,
    but for the input of the first layer, which comes as the user gives it. The dense one has ordinary ones,
    unless it is :class:`BetweenSparse`.

    Args:
        sparse: the sparse layer; not changed.
        dense: its dense twin.
        batch_size: samples in a step.
        call: see :func:`choose`.
    """
    if call is None:
        rows, cols = sparse.weight_shape
        call = Call((cols,), (rows,), True)
    inner = not isinstance(sparse, SparseLinear) and batch_size >= FEW_SAMPLES
    between = isinstance(dense, BetweenSparse)
    layout = sparse.batch_inner
    try:
        sparse.batch_inner = True if inner else layout
        steps = [_step(sparse, batch_size, call, inner), _step(dense, batch_size, call, between)]
        (sparse_seconds, dense_seconds), disturbed = time_in_turns(steps, sparse.values.device, **ROUNDS)
        return Choice(sparse_seconds, dense_seconds, disturbed)
    finally:
        sparse.batch_inner = layout


def measure_dense(layer: nn.Module, batch_size: int, call: Call) -> Timed:
    """Time training steps of a layer that has no sparse twin."""
    device = next(layer.parameters()).device
    return time_in_turns([_step(layer, batch_size, call, False)], device, **ROUNDS)


def _step(layer: nn.Module, batch_size: int, call: Call, inner: bool) -> Callable[[], None]:
    """One layer's training step: forward and all gradients, on batch-inner activations or ordinary ones."""
    like = next(layer.parameters())
    # The input of the first layer comes as the user gives it.
    x = _ramp(like, batch_size, call.input, inner and call.input_gradient)
    x.requires_grad_(call.input_gradient)
    g = _ramp(like, batch_size, call.output, inner)
    wanted = [t for t in (x, *layer.parameters()) if t.requires_grad]

    def step() -> None:
        y = layer(x)
        if wanted:
            torch.autograd.grad(y, wanted, g)

    return step


def _ramp(like: Tensor, batch_size: int, size: tuple[int, ...], batch_inner: bool) -> Tensor:
    # Not random: measuring must not disturb the user's random numbers.
    x = torch.linspace(-1, 1, batch_size * math.prod(size), device=like.device, dtype=like.dtype)
    return x.reshape(*size, batch_size).movedim(-1, 0) if batch_inner else x.reshape(batch_size, *size)
