"""Who takes part: one small function for each contender, registered by name.

A contender takes a problem and returns a `Runnable`, or the reasons why it cannot run here.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import sparseprune as sp
from bench.workloads import LinearProblem, NetworkProblem, Problem, ScoresProblem
from sparseprune.training import state_bytes

LINEAR = ("linear-step", "linear-forward")
ISAS = ("avx512", "avx2", "scalar")  # best first
SCALAR_FLOPS = 5e8  # of a call: the scalar kernels are there for comparison, in small layers
DENSE_STEPS = 3  # pruning may cost as much as so many training steps of the dense network

Answer = dict[str, Tensor]
Reasons = list[str]


@dataclass
class Runnable:
    """A contender that is ready.

    Attributes:
        call: one step; what is timed.
        answer: ``{name: tensor}`` from the result of the latest call: some of the expected answers.
        facts: JSON-able facts to report, asked for after the last call.
        around: makes the context that a block of calls runs in.
    """

    call: Callable[[], Any]
    answer: Callable[[Any], Answer]
    facts: Callable[[], dict[str, Any]] = dict
    around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext


@dataclass(frozen=True)
class Contender:
    """A way to compute workloads of some kinds.

    Attributes:
        name: unique.
        kinds: of the workloads that it applies to.
        make: problem to Runnable, or reasons why not.
        family: "dense" contenders multiply with all weights, the pruned ones included, and are what
            speed-ups are over; "peer" is other software; "own" is sparseprune.
        dtype: precision, which sets the accepted error.
        note: for the reader of the results.
    """

    name: str
    kinds: tuple[str, ...]
    make: Callable[[Any], Runnable | Reasons]
    family: str
    dtype: str = "float32"
    note: str = ""


CONTENDERS: dict[str, Contender] = {}

Make = Callable[[Any], Runnable | Reasons]


def contender(name: str, kinds: Iterable[str], family: str, **more: str) -> Callable[[Make], Make]:
    """Register the function below under a name, for workloads of these kinds."""

    def register(make: Make) -> Make:
        assert name not in CONTENDERS, f"contender {name} is registered twice"
        CONTENDERS[name] = Contender(name, tuple(kinds), make, family, **more)
        return make

    return register


# ---- what a call is, by kind of workload -------------------------------------------------------------------


def kept_gradient(layer: nn.Module, mask: Tensor) -> Tensor:
    """Gradient of the kept weights, row by row, (nnz,)."""
    if isinstance(layer, sp.SparseLinear):
        return gradient(layer.values).reshape(-1)
    return gradient(layer.get_parameter("weight_orig" if hasattr(layer, "weight_orig") else "weight"))[mask]


def gradient(parameter: Tensor) -> Tensor:
    """The gradient that a backward pass has left."""
    assert parameter.grad is not None
    return parameter.grad


def linear(
    problem: LinearProblem,
    layer: nn.Module,
    dtype: torch.dtype = torch.float32,
    d_weight: Callable[[], Tensor] | None = None,
    around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> Runnable:
    """One step or forward pass of a layer, as the workload is; ``d_weight`` replaces `kept_gradient`."""
    x = problem.x.to(dtype, copy=True)
    if problem.workload.kind == "linear-forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return layer(x)

        return Runnable(forward, lambda y: {"y": y}, around=around)
    g = problem.g.to(dtype, copy=True)
    leaves = [x.requires_grad_(), *layer.parameters()]

    def step() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        y = layer(x)
        y.backward(g)
        return y

    def answer(y: Tensor) -> Answer:
        weight_gradient = d_weight() if d_weight else kept_gradient(layer, problem.mask)
        return {
            "y": y.detach(),
            "d_x": gradient(x),
            "d_weight": weight_gradient,
            "d_bias": gradient(layer.get_parameter("bias")),
        }

    return Runnable(step, answer, around=around)


def training_step(
    problem: NetworkProblem,
    model: nn.Module,
    dtype: torch.dtype = torch.float32,
    around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> Runnable:
    """One training step of a network: gradients cleared, loss, backward, Adam."""
    x, y = problem.x.to(dtype), problem.y
    # So small a learning rate that the network stays where it is verified: a batch learned by heart has
    # gradients near zero, and arithmetic on denormal numbers is slow.
    optimizer = torch.optim.Adam(
        model.parameters(), lr=1e-6, fused=problem.workload.optimizer == "adam-fused"
    )

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    def answer(loss: Tensor) -> Answer:
        layers = {name: model.get_submodule(name.removesuffix(".weight")) for name in problem.masks}
        return {
            "loss": loss.detach(),
            "d_weights": torch.cat(
                [kept_gradient(layers[name], mask) for name, mask in problem.masks.items()]
            ),
            "d_biases": torch.cat([gradient(layer.get_parameter("bias")) for layer in layers.values()]),
        }

    return Runnable(step, answer, lambda: {"bytes": state_bytes(model, optimizer)}, around)


# ---- dense -------------------------------------------------------------------------------------------------


@contender(
    "dense-float32",
    (*LINEAR, "model-step", "prune"),
    "dense",
    note=f"nn.Linear; prune: {DENSE_STEPS} training steps, nothing is pruned",
)
def dense_float32(problem: LinearProblem | NetworkProblem) -> Runnable:
    if isinstance(problem, LinearProblem):
        return linear(problem, copy.deepcopy(problem.layer))
    one = training_step(problem, copy.deepcopy(problem.model))
    if problem.workload.kind == "model-step":
        return one

    def steps() -> Tensor:
        first, *_ = [one.call() for _ in range(DENSE_STEPS)]
        return first

    return Runnable(steps, lambda loss: {"loss": loss.detach()})


@contender("dense-bfloat16", (*LINEAR, "model-step"), "dense", dtype="bfloat16", note="all of it in bfloat16")
def dense_bfloat16(problem: LinearProblem | NetworkProblem) -> Runnable:
    if isinstance(problem, LinearProblem):
        return linear(problem, copy.deepcopy(problem.layer).bfloat16(), torch.bfloat16)
    return training_step(problem, copy.deepcopy(problem.model).bfloat16(), torch.bfloat16)


class _OneDNNProducts(torch.autograd.Function):
    """The three products of a linear layer by oneDNN, which is faster than MKL on some processors."""

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


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@contender(
    "dense-float32-onednn",
    (*LINEAR, "model-step"),
    "dense",
    note="forward: weight packed beforehand; steps: all three products by oneDNN, nothing packed beforehand",
)
def dense_float32_onednn(problem: LinearProblem | NetworkProblem) -> Runnable | Reasons:
    if not torch.backends.mkldnn.is_available():
        return ["this torch is built without oneDNN"]
    if problem.workload.kind == "linear-forward":
        assert isinstance(problem, LinearProblem)
        return linear(problem, _OneDNNPacked(problem.layer, problem.workload.batch))
    if isinstance(problem, LinearProblem):
        layer = copy.deepcopy(problem.layer)
        layer.__class__ = _OneDNNLinear
        return linear(problem, layer)
    model = copy.deepcopy(problem.model)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _OneDNNLinear
    return training_step(problem, model)


# ---- peers -------------------------------------------------------------------------------------------------


@contender("masked-dense", ("linear-step", "model-step"), "peer", note="torch.nn.utils.prune")
def masked_dense(problem: LinearProblem | NetworkProblem) -> Runnable:
    """What most pruning libraries do in training: the dense weight times its mask, at every step."""
    if isinstance(problem, LinearProblem):
        layer = copy.deepcopy(problem.layer)
        return linear(problem, torch_prune.custom_from_mask(layer, "weight", problem.mask))
    model = copy.deepcopy(problem.model)
    for name, mask in problem.masks.items():
        torch_prune.custom_from_mask(model.get_submodule(name.removesuffix(".weight")), "weight", mask)
    return training_step(problem, model)


class _TorchCSR(nn.Module):
    """The fastest way found to a row-major output: x transposed into W x, and the result copied."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self.weight = layer.weight.detach().to_sparse_csr()
        self.bias = layer.bias.detach()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, self.weight, x.t()).t().contiguous()


@contender("torch-csr", ("linear-forward",), "peer")
def torch_csr(problem: LinearProblem) -> Runnable:
    return linear(problem, _TorchCSR(problem.layer))


@contender("sparseprop", LINEAR, "peer")
def sparseprop(problem: LinearProblem) -> Runnable | Reasons:
    try:
        modules = importlib.import_module("sparseprop.modules")
        threadpoolctl = importlib.import_module("threadpoolctl")
    except ImportError as error:
        return [f"not installed ({error}); bench/README.md says how"]
    layer = modules.SparseLinear.from_dense(copy.deepcopy(problem.layer))
    # Some shapes come out batch-inner; everybody else here pays for a row-major output.
    layer.register_forward_hook(lambda _layer, _inputs, y: y.contiguous())
    # It has an OpenMP of its own, which torch.set_num_threads does not reach.
    threads = functools.partial(threadpoolctl.threadpool_limits, torch.get_num_threads(), "openmp")
    return linear(problem, layer, d_weight=lambda: layer.W_val.grad, around=threads)


def _threshold(problem: ScoresProblem, find: Callable[[], Tensor]) -> Runnable:
    return Runnable(find, lambda threshold: {"threshold": threshold})


@contender("numpy-partition", ("topk",), "peer", note="threshold alone, scores already joined")
def numpy_partition(problem: ScoresProblem) -> Runnable:
    joined = problem.joined.numpy()
    place = len(joined) - problem.k
    return _threshold(problem, lambda: torch.tensor(np.partition(joined, place)[place]))


@contender("torch-kthvalue", ("topk",), "peer", note="threshold alone, scores already joined")
def torch_kthvalue(problem: ScoresProblem) -> Runnable:
    return _threshold(problem, lambda: problem.joined.kthvalue(len(problem.joined) - problem.k + 1).values)


@contender("torch-topk", ("topk",), "peer", note="indices, not masks, scores already joined")
def torch_topk(problem: ScoresProblem) -> Runnable:
    return _threshold(problem, lambda: problem.joined.topk(problem.k, sorted=False).values.min())


# ---- sparseprune -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def using_isa(name: str) -> Iterator[None]:
    """Have the kernels use this instruction set."""
    extension = sp.ops.extension
    before = extension.isa()
    extension.set_isa(name)
    try:
        yield
    finally:
        extension.set_isa(before)


def sparseprune_with(isa: str, problem: Problem) -> Runnable | Reasons:
    """SparseLinear, or what `sparsify` makes of a network, with the kernels for one instruction set."""
    if sp.ops.extension is None:
        return ["the C++ extension is not built"]
    if isa not in sp.ops.extension.available_isas():
        return [f"this processor has no {isa}"]
    if isa == "scalar" and problem.kept_flops > SCALAR_FLOPS:
        return ["too slow for so large a layer"]
    around = functools.partial(using_isa, isa)
    with around():
        if isinstance(problem, LinearProblem):
            layer = sp.SparseLinear.from_dense(problem.layer, problem.mask)
            return linear(problem, layer, around=around)
        if isinstance(problem, NetworkProblem):
            if problem.workload.kind == "prune":
                return _pruning(problem, around)
            # As users get it: a layer that is measured to be slower sparse than dense stays dense.
            model = sp.sparsify(problem.model, problem.masks, batch_size=problem.workload.batch)
            runnable = training_step(problem, model, around=around)
            layers = [row.computes for row in sp.summary(model).rows]
            return Runnable(
                runnable.call, runnable.answer, lambda: {**runnable.facts(), "layers": layers}, around
            )
        assert isinstance(problem, ScoresProblem)
        return _topk(problem, around)


def _pruning(problem: NetworkProblem, around: Callable[[], AbstractContextManager[None]]) -> Runnable:
    workload = problem.workload

    def prune() -> dict[str, Tensor]:
        masks = sp.prune(
            problem.model, [(problem.x, problem.y)], method=workload.mask, sparsity=1 - workload.density
        )
        sp.sparsify(problem.model, masks, batch_size=workload.batch)
        return masks

    def answer(masks: dict[str, Tensor]) -> Answer:
        # Scores that differ by a rounding error may swap places: their sum tells, not the masks themselves.
        kept_scores = [problem.scores[name][mask] for name, mask in masks.items()]
        return {
            "kept": torch.tensor(float(sum(len(kept) for kept in kept_scores))),
            "kept_score": torch.cat(kept_scores).sum(),
        }

    return Runnable(prune, answer, around=around)


def _topk(problem: ScoresProblem, around: Callable[[], AbstractContextManager[None]]) -> Runnable:
    def answer(masks: list[Tensor]) -> Answer:
        mask = torch.cat([part.reshape(-1) for part in masks])
        return {"threshold": problem.joined[mask].min(), "mask": mask}

    return Runnable(lambda: sp.topk_masks(problem.scores, problem.k), answer, around=around)


# The large workloads, which take long, see the instruction set in use alone.
_in_use = sp.ops.info()["isa"] or ISAS[0]
for _isa in ISAS:
    _kinds = (*LINEAR, "model-step", "prune", "topk") if _isa == _in_use else LINEAR
    contender(f"sparseprune-{_isa}", _kinds, "own")(functools.partial(sparseprune_with, _isa))
