"""Dense contenders: all weights are multiplied, the pruned ones too. Speed-ups are over these.

They take x in the layout that suits them, prepared outside the timing, and return whichever they please.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from bench.contenders.base import LINEAR, Reasons, Runnable, contender, in_batch_inner
from bench.contenders.calls import linear, training_step
from bench.problems import LinearProblem, NetworkProblem
from bench.workloads import FORWARD

DENSE_STEPS = 3  # pruning may cost as much as so many training steps of the dense network


def _copy(problem: LinearProblem | NetworkProblem, dtype: str) -> Any:
    module = problem.layer if isinstance(problem, LinearProblem) else problem.model
    return copy.deepcopy(module).to(getattr(torch, dtype))


@contender(
    "dense-float32",
    (*LINEAR, "model-step", "prune"),
    "dense",
    dtype="float32",
    note=f"nn.Linear; prune: {DENSE_STEPS} training steps, nothing is pruned",
)
def dense_float32(problem: LinearProblem | NetworkProblem) -> Runnable:
    model = _copy(problem, "float32")
    if isinstance(problem, LinearProblem):
        return linear(problem, model, torch.float32, row_major=True)
    one = training_step(problem, model)
    if problem.workload.kind == "model-step":
        return one

    def steps() -> Tensor:
        first, *_ = [one.call() for _ in range(DENSE_STEPS)]
        return first

    return Runnable(steps, lambda loss: {"loss": loss.detach()})


@contender("dense-bfloat16", (*LINEAR, "model-step"), "dense", dtype="bfloat16", note="all of it in bfloat16")
def dense_bfloat16(problem: LinearProblem | NetworkProblem) -> Runnable:
    model = _copy(problem, "bfloat16")
    if isinstance(problem, LinearProblem):
        return linear(problem, model, torch.bfloat16, row_major=True)
    return training_step(problem, model, torch.bfloat16)


# ---- batch-inner: weight @ x on (features, batch) ----------------------------------------------------------


class _BatchInner(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return torch.addmm(self.bias[:, None], self.weight, input.t()).t()


def _batch_inner(dtype: str, problem: LinearProblem) -> Runnable:
    layer = _copy(problem, dtype)
    layer.__class__ = _BatchInner
    return linear(problem, layer, getattr(torch, dtype))


for _dtype in ("float32", "bfloat16"):
    contender(
        f"dense-{_dtype}-batch-inner",
        LINEAR,
        "dense",
        dtype=_dtype,
        only=in_batch_inner,
        note="weight @ x on (features, batch)",
    )(functools.partial(_batch_inner, _dtype))


# ---- oneDNN, which is faster than MKL on some processors ---------------------------------------------------


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDNNProducts(torch.autograd.Function):
    """The three products of a linear layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        (g,) = gradients
        d_x = _onednn_linear(g, weight.t(), None) if ctx.needs_input_grad[0] else None
        return d_x, _onednn_linear(g.t(), x.t(), None), g.sum(0)


class _OneDNNLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return _OneDNNProducts.apply(input, self.weight, self.bias)


class _OneDNNPacked(nn.Module):
    """A linear layer for inference whose weight oneDNN has reordered for one batch size."""

    def __init__(self, layer: nn.Linear, batch: int) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), batch)
        self.bias = layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return _onednn_linear(x, self.packed, self.bias)


def _onednn(dtype: str, problem: LinearProblem | NetworkProblem) -> Runnable | Reasons:
    if not torch.backends.mkldnn.is_available():
        return ["this torch is built without oneDNN"]
    model, precision = _copy(problem, dtype), getattr(torch, dtype)
    if problem.workload.kind == FORWARD:
        assert isinstance(problem, LinearProblem)
        packed = _OneDNNPacked(model, problem.workload.batch)
        return linear(problem, packed, precision, row_major=True)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _OneDNNLinear
    if isinstance(problem, LinearProblem):
        return linear(problem, model, precision, row_major=True)
    return training_step(problem, model, precision)


for _dtype in ("float32", "bfloat16"):
    contender(
        f"dense-{_dtype}-onednn",
        (*LINEAR, "model-step") if _dtype == "float32" else LINEAR,
        "dense",
        dtype=_dtype,
        note="forward: weight packed beforehand; steps: all three products, nothing packed beforehand",
    )(functools.partial(_onednn, _dtype))


# ---- MKL with a packed weight ------------------------------------------------------------------------------


class _MKLPacked(nn.Module):
    """A linear layer for inference whose weight MKL has packed for one batch size."""

    def __init__(self, layer: nn.Linear, batch: int) -> None:
        super().__init__()
        self.weight, self.bias, self.batch = layer.weight.detach(), layer.bias.detach(), batch
        self.packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, batch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, self.batch)


@contender("dense-float32-mkl", [FORWARD], "dense", dtype="float32", note="weight packed beforehand")
def dense_float32_mkl(problem: LinearProblem) -> Runnable | Reasons:
    if not torch.backends.mkl.is_available():
        return ["this torch is built without MKL"]
    packed = _MKLPacked(_copy(problem, "float32"), problem.workload.batch)
    return linear(problem, packed, torch.float32, row_major=True)
