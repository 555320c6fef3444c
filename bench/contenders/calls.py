"""What a call is, by kind of workload: a layer's step or forward pass, and a network's training step."""

from __future__ import annotations

import contextlib
import functools
import shlex
import shutil
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.cpp_extension import get_cxx_compiler

from bench.contenders.base import Answer, Around, Reasons, Runnable
from bench.problems import LayerProblem, NetworkProblem
from bench.workloads import FORWARDS, STEPS
from sparseprune.experiments.train import state_bytes

# So small that the network stays where it is verified: a batch learned by heart has gradients near zero, and
# arithmetic on denormal numbers is slow.
LEARNING_RATE = 1e-6
# Models of one class that a run may compile; torch's own limit is 8.
MOST_COMPILED = 1000

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam-fused": functools.partial(torch.optim.Adam, fused=True),
    "adam": torch.optim.Adam,
    "adamw-fused": functools.partial(torch.optim.AdamW, fused=True),
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9, fused=True),
}


def gradient(parameter: Tensor) -> Tensor:
    """The gradient that a backward pass has left."""
    assert parameter.grad is not None
    return parameter.grad


def kept_gradient(layer: nn.Module, mask: Tensor) -> Tensor:
    """Gradient of the kept weights, row by row, (nnz,)."""
    # Sparse layers have values.
    if "values" in layer._parameters:
        values = gradient(layer.get_parameter("values"))
        scattered = _scattered(values, layer.get_buffer("crow"), layer.get_buffer("col"), mask[0].numel())
        return scattered.reshape(mask.shape)[mask]
    return gradient(layer.get_parameter("weight_orig" if hasattr(layer, "weight_orig") else "weight"))[mask]


def _scattered(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """Values (nnzb, V) of V x 1 blocks as a dense matrix: crow counts block rows."""
    block_rows, block = len(crow) - 1, values.shape[1]
    rows = torch.arange(block_rows).repeat_interleave(crow.diff())
    dense = values.new_zeros(block_rows, cols, block)
    dense[rows, col.long()] = values
    return dense.transpose(1, 2).reshape(block_rows * block, cols)


def one_layer(
    problem: LayerProblem,
    layer: nn.Module,
    dtype: torch.dtype | None = None,
    *,
    memory_format: torch.memory_format = torch.preserve_format,
    d_weight: Callable[[], Tensor] | None = None,
    around: Around = contextlib.nullcontext,
) -> Runnable:
    """One step or forward pass of a layer, as the workload is.

    Args:
        problem: gives x and g.
        layer: what is called, in the dtype that follows.
        dtype: precision of x and g; that of the workload by default.
        memory_format: layout of x and g; the workload's by default.
        d_weight: replaces `kept_gradient`.
        around: makes the context of a block of calls.
    """
    x, g = (
        tensor.to(dtype or tensor.dtype, memory_format=memory_format, copy=True)
        for tensor in (problem.x, problem.g)
    )
    if problem.workload.kind not in STEPS:

        def forward() -> Tensor:
            with torch.no_grad():
                return layer(x)

        return Runnable(forward, lambda y: {"y": y}, around=around)
    leaves = [x.requires_grad_(), *layer.parameters()]

    def step() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        y = layer(x)
        y.backward(g)
        return y

    def answer(y: Tensor) -> Answer:
        return {
            "y": y.detach(),
            "d_x": gradient(x),
            "d_weight": d_weight() if d_weight else kept_gradient(layer, problem.mask),
            "d_bias": gradient(layer.get_parameter("bias")),
        }

    return Runnable(step, answer, around=around)


def one_rewiring(
    problem: LayerProblem,
    layer: nn.Module,
    rewire: Callable[[torch.optim.Optimizer], Callable[[], object]],
    kept: Callable[[], int],
    *,
    around: Around = contextlib.nullcontext,
) -> Runnable:
    """A layer's step with an optimizer (SGD with momentum), after which its pattern moves.

    Args:
        problem: gives x and g.
        layer: what is called, with the parameters that the optimizer trains.
        rewire: function of the optimizer that returns what moves the pattern.
        kept: number of weights that the layer has.
        around: makes the context of a block of calls.
    """
    step = one_layer(problem, layer, around=around)
    optimizer = OPTIMIZERS["sgd"](layer.parameters(), lr=LEARNING_RATE)
    move = rewire(optimizer)

    def call() -> Tensor:
        y: Tensor = step.call()
        optimizer.step()
        move()
        return y

    return Runnable(call, lambda y: {"y": y.detach(), "kept": torch.tensor(float(kept()))}, around=around)


def step_of(
    forward: Callable[[], Tensor], y: Tensor, optimizer: torch.optim.Optimizer
) -> Callable[[], Tensor]:
    """What one training step of a classifier does: gradients cleared, loss, backward, optimizer."""

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def one_network(
    problem: NetworkProblem,
    model: nn.Module,
    dtype: torch.dtype = torch.float32,
    *,
    memory_format: torch.memory_format = torch.preserve_format,
    autocast: torch.dtype | None = None,
    around: Around = contextlib.nullcontext,
) -> Runnable:
    """One training step (gradients cleared, loss, backward, optimizer) or forward pass, as the workload is.

    Args:
        problem: gives x and y.
        model: what is called, in the dtype that follows.
        dtype: precision of x.
        memory_format: layout of x.
        autocast: precision in which products are made all the same.
        around: makes the context of a block of calls.
    """
    x, y = problem.x.to(dtype, memory_format=memory_format), problem.y

    def forward() -> Tensor:
        # At every call, as users do: weights are cast once in it.
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            return model(x)

    if problem.workload.kind in FORWARDS:
        model.eval()

        def evaluate() -> Tensor:
            with torch.no_grad():
                return forward()

        return Runnable(evaluate, lambda logits: {"y": logits}, around=around)
    make_optimizer = OPTIMIZERS[problem.workload.optimizer]
    optimizer = make_optimizer(model.parameters(), lr=LEARNING_RATE)

    others = [name for name, _ in problem.model.named_parameters() if name not in problem.masks]

    def answer(loss: Tensor) -> Answer:
        layers = {name: model.get_submodule(name.removesuffix(".weight")) for name in problem.masks}
        return {
            "loss": loss.detach(),
            "d_weights": torch.cat(
                [kept_gradient(layers[name], mask) for name, mask in problem.masks.items()]
            ),
            "d_others": torch.cat([gradient(model.get_parameter(name)).flatten() for name in others]),
        }

    call = step_of(forward, y, optimizer)
    return Runnable(call, answer, lambda: {"bytes": state_bytes(model, optimizer)}, around)


def compiled(
    problem: NetworkProblem, model: nn.Module, *, around: Around = contextlib.nullcontext
) -> Runnable | Reasons:
    """The same of a model that torch.compile compiles, in place and as a whole, when it is first called."""
    compiler, *_ = shlex.split(get_cxx_compiler())
    if shutil.which(compiler) is None:
        return [f"torch.compile needs a C++ compiler; there is no {compiler}"]
    # Every case brings models of its own.
    torch._dynamo.config.recompile_limit = MOST_COMPILED
    model.compile(fullgraph=True, dynamic=False)
    return one_network(problem, model, around=around)
