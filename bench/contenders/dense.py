"""Dense contenders: all weights are multiplied, the pruned ones too. Speed-ups are over these.

They take x in the layout that suits them, prepared outside the timing, and return whichever they please.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.contenders.base import (
    ALL_BFLOAT16,
    COMPILED,
    CONV,
    LINEAR,
    NETWORKS,
    Reasons,
    Runnable,
    contender,
    in_batch_inner,
    no_bfloat16,
    worth_compiling,
)
from bench.contenders.calls import compiled, one_layer, one_network
from bench.problems import LayerProblem, NetworkProblem
from bench.workloads import (
    CONV_FORWARD,
    FORWARD,
    NETWORK_FORWARD,
    NETWORK_STEP,
    REWIRE_STEP,
    TRANSFORMER_FORWARD,
    TRANSFORMERS,
)

CONV_NETWORKS = (NETWORK_STEP, NETWORK_FORWARD)
# Pruning may cost as much as so many training steps of the dense network.
DENSE_STEPS = 3


def _copy(problem: LayerProblem | NetworkProblem, dtype: str) -> Any:
    module = problem.layer if isinstance(problem, LayerProblem) else problem.model
    return copy.deepcopy(module).to(getattr(torch, dtype))


def _dense(
    dtype: str, memory_format: torch.memory_format, problem: LayerProblem | NetworkProblem
) -> Runnable | Reasons:
    whole = (*TRANSFORMERS, NETWORK_FORWARD)
    if dtype == "bfloat16" and problem.workload.kind in whole and (reasons := no_bfloat16()):
        return reasons
    model = _copy(problem, dtype)
    if memory_format is torch.channels_last:
        model = model.to(memory_format=memory_format)
    precision = getattr(torch, dtype)
    if isinstance(problem, LayerProblem):
        return one_layer(problem, model, precision, memory_format=memory_format)
    one = one_network(problem, model, precision, memory_format=memory_format)
    if problem.workload.kind != "prune":
        return one

    def steps() -> Tensor:
        first, *_ = [one.call() for _ in range(DENSE_STEPS)]
        return first

    return Runnable(steps, lambda loss: {"loss": loss.detach()})


contender(
    "dense-float32",
    (*LINEAR, *CONV, *NETWORKS, "prune", REWIRE_STEP),
    "dense",
    dtype="float32",
    note=f"nn.Linear, nn.Conv2d (NCHW); prune: {DENSE_STEPS} training steps, nothing is pruned; "
    "rewire-step: nothing moves",
)(functools.partial(_dense, "float32", torch.contiguous_format))
contender("dense-float32-nhwc", (*CONV, *CONV_NETWORKS), "dense", dtype="float32", note="nn.Conv2d (NHWC)")(
    functools.partial(_dense, "float32", torch.channels_last)
)
# Networks take long; in bfloat16 they are measured in the faster layout alone.
contender(
    "dense-bfloat16",
    (*LINEAR, *CONV, "model-step", *TRANSFORMERS),
    "dense",
    dtype="bfloat16",
    note=ALL_BFLOAT16,
)(functools.partial(_dense, "bfloat16", torch.contiguous_format))
contender(
    "dense-bfloat16-nhwc",
    (*CONV, *CONV_NETWORKS),
    "dense",
    dtype="bfloat16",
    note="all of it in bfloat16, NHWC",
)(functools.partial(_dense, "bfloat16", torch.channels_last))


@contender(
    "dense-bfloat16-autocast", TRANSFORMERS, "dense", dtype="bfloat16", note="torch.autocast at every call"
)
def dense_bfloat16_autocast(problem: NetworkProblem) -> Runnable | Reasons:
    model = _copy(problem, "float32")
    return no_bfloat16() or one_network(problem, model, autocast=torch.bfloat16)


@contender(
    "dense-float32-compiled", TRANSFORMERS, "dense", dtype="float32", only=worth_compiling, note=COMPILED
)
def dense_float32_compiled(problem: NetworkProblem) -> Runnable | Reasons:
    return compiled(problem, _copy(problem, "float32"))


# ---- batch-inner: weight @ x on (features, batch) ----------------------------------------------------------


class _BatchInner(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return torch.addmm(self.bias[:, None], self.weight, input.t()).t()


def _batch_inner(dtype: str, problem: LayerProblem) -> Runnable:
    layer = _copy(problem, dtype)
    layer.__class__ = _BatchInner
    return one_layer(problem, layer, getattr(torch, dtype))


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
        y = _OneDNNProducts.apply(input.flatten(0, -2), self.weight, self.bias)
        return y.unflatten(0, input.shape[:-1])


class _OneDNNPacked(nn.Module):
    """A linear layer for inference whose weight oneDNN has reordered for one batch size."""

    def __init__(self, layer: nn.Linear, batch: int) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), batch)
        self.bias = layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return _onednn_linear(x, self.packed, self.bias)


class _OneDNNPackedConv(nn.Module):
    """A convolution for inference whose weight oneDNN has reordered for one shape of input."""

    def __init__(self, layer: nn.Conv2d, shape: torch.Size) -> None:
        super().__init__()
        self.arguments = (layer.padding, layer.stride, layer.dilation, layer.groups)
        weight = layer.weight.detach().contiguous(memory_format=torch.channels_last)
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.arguments, list(shape))
        self.bias = layer.bias.detach() if layer.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.packed, self.bias, *self.arguments, "none", [], ""
        )


def _onednn(dtype: str, problem: LayerProblem | NetworkProblem) -> Runnable | Reasons:
    if not torch.backends.mkldnn.is_available():
        return ["this torch is built without oneDNN"]
    if dtype == "bfloat16" and (reasons := no_bfloat16()):
        return reasons
    model, precision = _copy(problem, dtype), getattr(torch, dtype)
    if problem.workload.kind == CONV_FORWARD:
        assert isinstance(problem, LayerProblem)
        conv = _OneDNNPackedConv(model, problem.x.shape)
        return one_layer(problem, conv, precision, memory_format=torch.channels_last)
    if problem.workload.kind in (FORWARD, TRANSFORMER_FORWARD):
        return _packed(_OneDNNPacked, problem, model, precision)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _OneDNNLinear
    if isinstance(problem, LayerProblem):
        return one_layer(problem, model, precision, memory_format=torch.contiguous_format)
    return one_network(problem, model, precision)


def _packed(
    pack: Callable[[nn.Linear, int], nn.Module],
    problem: LayerProblem | NetworkProblem,
    model: nn.Module,
    precision: torch.dtype,
) -> Runnable:
    """The forward pass of a linear layer or a transformer, its weights packed for their number of rows."""
    if isinstance(problem, LayerProblem):
        assert isinstance(model, nn.Linear)
        packed = pack(model, problem.workload.batch)
        return one_layer(problem, packed, precision, memory_format=torch.contiguous_format)
    rows = problem.x[..., 0].numel()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, pack(child, rows))
    return one_network(problem, model, precision)


for _dtype in ("float32", "bfloat16"):
    contender(
        f"dense-{_dtype}-onednn",
        (*LINEAR, CONV_FORWARD, "model-step", *TRANSFORMERS) if _dtype == "float32" else LINEAR,
        "dense",
        dtype=_dtype,
        note="forward: weight packed beforehand (convolutions: NHWC); steps: three products, nothing packed",
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


@contender(
    "dense-float32-mkl",
    (FORWARD, TRANSFORMER_FORWARD),
    "dense",
    dtype="float32",
    note="weight packed beforehand",
)
def dense_float32_mkl(problem: LayerProblem | NetworkProblem) -> Runnable | Reasons:
    if not torch.backends.mkl.is_available():
        return ["this torch is built without MKL"]
    return _packed(_MKLPacked, problem, _copy(problem, "float32"), torch.float32)
