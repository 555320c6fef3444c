"""Who takes part on a GPU: dense layers in each precision, cuSPARSE, 2:4 kernels, and sparseprune.

Everyone gets x and g in the precision and layout that suit it, prepared outside the timing.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import sparseprune as sp
from bench.contenders.base import Answer, Contender, Reasons, Runnable
from bench.contenders.calls import gradient, one_layer
from bench.problems import LayerProblem, ScoresProblem, batch_inner
from bench.problems.layers import INDEX_BYTES
from bench.workloads import BATCH_INNER, CONV_STEP, FORWARD, HALF, STEP, TWO_OF_FOUR, Workload
from sparseprune.format.bsr import dense_weight

LINEAR = (FORWARD, STEP)
LAYERS = (*LINEAR, CONV_STEP)
# Float32 in memory; the tensor cores round operands to 11 significant bits.
TF32 = "tf32"
HALVES = ("float16", "bfloat16")
# They say which of the four each kept weight of 2:4 is.
META_BITS = 2


def torch_dtype(precision: str) -> torch.dtype:
    """What a precision is in memory."""
    dtype: torch.dtype = getattr(torch, precision.replace(TF32, "float32"))
    return dtype


@contextlib.contextmanager
def _float32_by(tf32: bool) -> Iterator[None]:
    """Float32 products as they are, or in TF32; cuDNN tries its algorithms and keeps the fastest."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = tf32, tf32, True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def _layer(problem: LayerProblem, precision: str) -> Any:
    return copy.deepcopy(problem.layer).to(torch_dtype(precision))


def _facts(weights: int, index_bytes: int = 0, **more: Any) -> dict[str, Any]:
    """Weights that are read, and the bytes that say where they are."""
    return {"weights": weights, "index_bytes": index_bytes, **more}


# ---- dense -------------------------------------------------------------------------------------------------


def _dense(precision: str, nhwc: bool, problem: LayerProblem) -> Runnable:
    memory_format = torch.channels_last if nhwc else torch.contiguous_format
    layer = _layer(problem, precision)
    if nhwc:
        layer = layer.to(memory_format=memory_format)
    around = functools.partial(_float32_by, precision == TF32)
    runnable = one_layer(problem, layer, torch_dtype(precision), memory_format=memory_format, around=around)
    return dataclasses.replace(runnable, facts=lambda: _facts(problem.mask.numel()))


# ---- others' sparse kernels --------------------------------------------------------------------------------


class _CSR(nn.Module):
    """W x + b by cuSPARSE on a GPU, with the 4-byte indices that it is faster with."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        with warnings.catch_warnings(), torch.sparse.check_sparse_tensor_invariants():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            csr = layer.weight.detach().to_sparse_csr()
            crow, col = csr.crow_indices().int(), csr.col_indices().int()
            self.weight = torch.sparse_csr_tensor(crow, col, csr.values(), csr.shape)
        self.bias = layer.bias.detach()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x.t()).add_(self.bias).t()


def _cusparse(problem: LayerProblem) -> Runnable:
    csr = _CSR(_layer(problem, "float32"))
    inner = dataclasses.replace(problem, x=batch_inner(problem.x))
    runnable = one_layer(inner, csr, around=functools.partial(_float32_by, False))
    kept = int(problem.mask.sum())
    return dataclasses.replace(runnable, facts=lambda: _facts(kept, kept * INDEX_BYTES))


def _is_two_of_four(workload: Workload) -> bool:
    return workload.density == HALF and workload.mask == TWO_OF_FOUR


def _semi_structured(precision: str, problem: LayerProblem) -> Runnable | Reasons:
    device = problem.x.device
    if device.type != "cuda":
        return [f"2:4 kernels are for CUDA devices, and this is {device.type}"]
    if (found := torch.cuda.get_device_capability(device)) < (8, 0):
        return [f"2:4 kernels need compute capability 8.0, and this device has {found[0]}.{found[1]}"]
    layer = _layer(problem, precision)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor")
        packed = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
    layer.weight = nn.Parameter(packed, requires_grad=False)
    runnable = one_layer(problem, layer, torch_dtype(precision), memory_format=torch.contiguous_format)
    kept = int(problem.mask.sum())
    return dataclasses.replace(runnable, facts=lambda: _facts(kept, kept * META_BITS // 8))


# ---- sparseprune -------------------------------------------------------------------------------------------


def _ours(precision: str, layout: str, problem: LayerProblem) -> Runnable | Reasons:
    if precision == "float16" and problem.x.device.type == "cpu":
        return ["sparse layers in float16 are for GPUs; on the CPU it is bfloat16"]
    block = problem.workload.block
    sparse = sp.SparseLinear if isinstance(problem.layer, nn.Linear) else sp.SparseConv2d
    layer = sparse.from_dense(_layer(problem, precision), problem.mask, block=(block, 1))
    if layout == BATCH_INNER:
        problem = dataclasses.replace(problem, x=batch_inner(problem.x), g=batch_inner(problem.g))
    mask = problem.mask

    def d_weight() -> Tensor:
        cols = mask[0].numel()
        return dense_weight(gradient(layer.values), layer.crow, layer.col, cols).reshape(mask.shape)[mask]

    around = functools.partial(_float32_by, False)
    runnable = one_layer(problem, layer, torch_dtype(precision), d_weight=d_weight, around=around)
    kept = int(mask.sum())
    facts = _facts(kept, kept // block * INDEX_BYTES, block=block, layout=layout)
    return dataclasses.replace(runnable, facts=lambda: facts)


def _has_layouts(workload: Workload) -> bool:
    # Of one sample both layouts are the same memory.
    return workload.batch > 1


# ---- topk --------------------------------------------------------------------------------------------------


def _our_topk(problem: ScoresProblem) -> Runnable:
    def answer(masks: list[Tensor]) -> Answer:
        mask = torch.cat([part.flatten() for part in masks])
        return {"count": mask.sum(), "threshold": problem.joined[mask].min(), "mask": mask}

    return Runnable(lambda: sp.topk_masks(problem.scores, problem.k), answer)


def _torch_topk(problem: ScoresProblem) -> Runnable:
    def answer(found: Any) -> Answer:
        return {"count": torch.tensor(len(found.indices.unique())), "threshold": found.values.min()}

    return Runnable(lambda: problem.joined.topk(problem.k, sorted=False), answer)


def _torch_kthvalue(problem: ScoresProblem) -> Runnable:
    place = len(problem.joined) - problem.k + 1
    return Runnable(lambda: problem.joined.kthvalue(place).values, lambda found: {"threshold": found})


# ---- all of them -------------------------------------------------------------------------------------------


def _contenders() -> Iterator[Contender]:
    partial = functools.partial
    notes = {"float32": "products in true float32, not TF32", TF32: "float32 in memory, products in TF32"}
    for name in ("float32", TF32, *HALVES):
        note = notes.get(name, "")
        kinds = LINEAR if name in HALVES else LAYERS
        yield Contender(f"dense-{name}", kinds, partial(_dense, name, False), "dense", name, note=note)
        note = f"channels_last; {note}".removesuffix("; ")
        nhwc = partial(_dense, name, True)
        yield Contender(f"dense-{name}-nhwc", (CONV_STEP,), nhwc, "dense", name, note=note)
    note = "torch's CSR with 4-byte indices, W x on (features, batch)"
    yield Contender("cusparse-float32", (FORWARD,), _cusparse, "peer", "float32", note=note)
    for name in HALVES:
        packed = partial(_semi_structured, name)
        note = "torch.sparse.to_sparse_semi_structured"
        yield Contender(f"2:4-{name}", (FORWARD,), packed, "peer", name, only=_is_two_of_four, note=note)
    for name in ("float32", *HALVES):
        yield Contender(f"ours-{name}", LAYERS, partial(_ours, name, "row-major"), "own", name)
        inner = partial(_ours, name, BATCH_INNER)
        note = "input and output with the batch innermost in memory"
        yield Contender(f"ours-{name}-inner", LAYERS, inner, "own", name, only=_has_layouts, note=note)
    note = "indices, not masks; scores already joined; ties may differ"
    yield Contender("torch-topk", ("topk",), _torch_topk, "peer", "float32", note=note)
    note = "threshold alone; scores already joined"
    yield Contender("torch-kthvalue", ("topk",), _torch_kthvalue, "peer", "float32", note=note)
    yield Contender("ours-topk", ("topk",), _our_topk, "own", "float32", note="masks, layer by layer")


CONTENDERS = {contender.name: contender for contender in _contenders()}
