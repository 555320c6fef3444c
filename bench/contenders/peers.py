"""What others do: peers return the layout that they were given, as sparseprune does."""

from __future__ import annotations

import copy
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from bench.contenders.base import CONV, LINEAR, Reasons, Runnable, contender, in_float32
from bench.contenders.calls import one_layer, one_network, one_rewiring
from bench.problems import LayerProblem, NetworkProblem, ScoresProblem, batch_inner
from bench.workloads import BATCH_INNER, FORWARD, MOVED, REWIRE_STEP, STEP, Workload


@contender("masked-dense", (STEP, "model-step"), "peer", note="torch.nn.utils.prune")
def masked_dense(problem: LayerProblem | NetworkProblem) -> Runnable:
    """What most pruning libraries do in training: the dense weight times its mask, at every step."""
    if isinstance(problem, LayerProblem):
        layer: nn.Module = torch_prune.custom_from_mask(copy.deepcopy(problem.layer), "weight", problem.mask)
        if problem.workload.layout == BATCH_INNER:
            layer.register_forward_hook(_to_batch_inner)
        return one_layer(problem, layer)
    model = copy.deepcopy(problem.model)
    for name, mask in problem.masks.items():
        torch_prune.custom_from_mask(model.get_submodule(name.removesuffix(".weight")), "weight", mask)
    return one_network(problem, model)


def _to_row_major(_layer: nn.Module, _inputs: Any, y: Tensor) -> Tensor:
    return y.contiguous()


def _to_batch_inner(_layer: nn.Module, _inputs: Any, y: Tensor) -> Tensor:
    return batch_inner(y)


class _TorchCSR(nn.Module):
    """W x with x transposed: the fastest way found to a row-major output is to copy the result."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self.weight = layer.weight.detach().to_sparse_csr()
        self.bias = layer.bias.detach()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, self.weight, x.t()).t()


@contender("torch-csr", [FORWARD], "peer", only=in_float32)
def torch_csr(problem: LayerProblem) -> Runnable:
    assert isinstance(problem.layer, nn.Linear)
    layer = _TorchCSR(problem.layer)
    if problem.workload.layout != BATCH_INNER:
        layer.register_forward_hook(_to_row_major)
    return one_layer(problem, layer)


def _missing(error: ImportError) -> Reasons:
    return [f"not installed ({error}); `make bench-peers` installs it"]


# Samples that SparseProp's convolution computes at once.
VECTOR = 8


class _SparsePropInner(nn.Module):
    """SparseProp's own kernel, which its layer calls between two transpositions: no gradients."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.kernel = importlib.import_module("sparseprop").backend.sparse_linear_vectorized_forward
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(self.layer.N, len(x))
        self.kernel(x.t(), *self.layer.W_idx, self.layer.W_val, y)
        return y.add_(self.layer.bias[:, None]).t()


def _for_sparseprop(workload: Workload) -> bool:
    return in_float32(workload) and (workload.layout != BATCH_INNER or workload.kind != STEP)


def _for_sparseprop_pixels(workload: Workload) -> bool:
    return in_float32(workload) and workload.layout != BATCH_INNER


def _for_sparselab(workload: Workload) -> bool:
    return in_float32(workload) and workload.layout != BATCH_INNER and workload.block == 1


def _sparseprop(over_pixels: bool, problem: LayerProblem) -> Runnable | Reasons:
    try:
        modules = importlib.import_module("sparseprop.modules")
        threadpoolctl = importlib.import_module("threadpoolctl")
    except ImportError as error:
        return _missing(error)
    # It has an OpenMP of its own, which torch.set_num_threads does not reach.
    threads = functools.partial(threadpoolctl.threadpool_limits, torch.get_num_threads(), "openmp")
    if isinstance(problem.layer, nn.Conv2d):
        if problem.workload.batch % VECTOR:
            return [f"its kernels are right for batches that {VECTOR} divides"]
        conv = modules.SparseConv2d.from_dense(copy.deepcopy(problem.layer), over_pixels)
        if problem.workload.layout != BATCH_INNER:
            conv.register_forward_hook(_to_row_major)
        return one_layer(problem, conv, d_weight=lambda: conv.W_val.grad, around=threads)
    layer = modules.SparseLinear.from_dense(copy.deepcopy(problem.layer))
    if problem.workload.layout == BATCH_INNER:
        return one_layer(problem, _SparsePropInner(layer), around=threads)
    # Some shapes come out batch-inner; everybody else here pays for a row-major output.
    layer.register_forward_hook(_to_row_major)
    return one_layer(problem, layer, d_weight=lambda: layer.W_val.grad, around=threads)


contender("sparseprop", (*LINEAR, *CONV), "peer", only=_for_sparseprop, note="convolutions: over samples")(
    functools.partial(_sparseprop, False)
)
contender("sparseprop-pixels", CONV, "peer", only=_for_sparseprop_pixels, note="convolutions: over pixels")(
    functools.partial(_sparseprop, True)
)


@contender(
    "sparselab", (*LINEAR, REWIRE_STEP), "peer", only=_for_sparselab, note="padded CSR; rewire-step: its RigL"
)
def sparselab(problem: LayerProblem) -> Runnable | Reasons:
    assert isinstance(problem.layer, nn.Linear)
    try:
        library = importlib.import_module("sparselab")
        threadpoolctl = importlib.import_module("threadpoolctl")
    except ImportError as error:
        return _missing(error)
    threads = functools.partial(threadpoolctl.threadpool_limits, torch.get_num_threads(), "openmp")
    workload = problem.workload
    # It knows transposed patterns by the address of a layer, which may be that of one that is gone.
    library.ops._clear_transpose_cache()
    inputs, outputs = workload.sizes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        layer: Any = library.SparseLinear(inputs, outputs, sparsity=1 - workload.density)
        # Its constructor draws a mask; this is how it stores one.
        layer._csr = library.PaddedCSR.from_dense(problem.layer.weight.detach())
    layer._values = nn.Parameter(torch.from_numpy(np.asarray(layer._csr.values)))
    layer.bias = nn.Parameter(problem.layer.bias.detach().clone())
    layer.register_forward_hook(_to_row_major)
    if workload.kind == REWIRE_STEP:
        algorithm = library.RigL(1 - workload.density, drop_fraction=MOVED, update_freq=1, seed=0)
        algorithm.attach(layer)
        return one_rewiring(
            problem, layer, lambda optimizer: algorithm.step, lambda: layer.nnz, around=threads
        )

    def d_weight() -> Tensor:
        starts, counts = (np.asarray(of) for of in (layer._csr.row_start, layer._csr.row_nnz))
        rows = zip(starts, counts, strict=False)
        return torch.cat([layer._values.grad[start : start + count] for start, count in rows])

    return one_layer(problem, layer, d_weight=d_weight, around=threads)


class _MKLSparse(nn.Module):
    """W x by MKL's sparse routines: they take both layouts, but copying to the batch-inner one is faster."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        scipy = importlib.import_module("scipy.sparse")
        # Its package puts the library where only this environment looks for it.
        for library in Path(sys.prefix, "lib").glob("libmkl_rt.so.*"):
            os.environ.setdefault("MKL_RT", str(library))
        self.product = importlib.import_module("sparse_dot_mkl").dot_product_mkl
        self.weight = scipy.csr_matrix(layer.weight.detach().numpy())
        self.bias = layer.bias.detach()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        y = torch.from_numpy(self.product(self.weight, x.t().contiguous().numpy()))
        return y.add_(self.bias).t()


@contender("mkl-sparse", [FORWARD], "peer", only=in_float32, note="sparse_dot_mkl, scipy CSR")
def mkl_sparse(problem: LayerProblem) -> Runnable | Reasons:
    assert isinstance(problem.layer, nn.Linear)
    try:
        threadpoolctl = importlib.import_module("threadpoolctl")
        layer = _MKLSparse(problem.layer)
    except ImportError as error:
        return _missing(error)
    if problem.workload.layout != BATCH_INNER:
        layer.register_forward_hook(_to_row_major)
    threads = functools.partial(threadpoolctl.threadpool_limits, torch.get_num_threads())
    return one_layer(problem, layer, around=threads)


# ---- topk --------------------------------------------------------------------------------------------------


def _threshold(problem: ScoresProblem, find: Callable[[], Tensor]) -> Runnable:
    return Runnable(find, lambda threshold: {"threshold": threshold})


@contender("numpy-partition", ["topk"], "peer", note="threshold alone, scores already joined")
def numpy_partition(problem: ScoresProblem) -> Runnable:
    joined = problem.joined.numpy()
    place = len(joined) - problem.k
    return _threshold(problem, lambda: torch.tensor(np.partition(joined, place)[place]))


@contender("torch-kthvalue", ["topk"], "peer", note="threshold alone, scores already joined")
def torch_kthvalue(problem: ScoresProblem) -> Runnable:
    return _threshold(problem, lambda: problem.joined.kthvalue(len(problem.joined) - problem.k + 1).values)


@contender("torch-topk", ["topk"], "peer", note="indices, not masks, scores already joined")
def torch_topk(problem: ScoresProblem) -> Runnable:
    return _threshold(problem, lambda: problem.joined.topk(problem.k, sorted=False).values.min())
