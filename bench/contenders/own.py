"""sparseprune itself, with each instruction set."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import sparseprune as sp
from bench.contenders.base import (
    ALL_BFLOAT16,
    COMPILED,
    CONV,
    LINEAR,
    NETWORKS,
    Answer,
    Around,
    Reasons,
    Runnable,
    contender,
    no_bfloat16,
    worth_compiling,
)
from bench.contenders.calls import compiled, one_layer, one_network, one_rewiring
from bench.problems import LayerProblem, NetworkProblem, Problem, ScoresProblem
from bench.workloads import CONV_FORWARD, MOVED, NETWORK_FORWARD, REWIRE_STEP, TRANSFORMERS

# The best comes first.
ISAS = ("avx512", "avx2", "scalar")
# Operations of a call that scalar kernels are measured with at most: they are there for comparison alone.
SCALAR_FLOPS = 5e8


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
    """A sparse layer, or what `sparsify` makes of a network, with the kernels for one instruction set."""
    if sp.ops.extension is None:
        return ["the C++ extension is not built"]
    if isa not in sp.ops.extension.available_isas():
        return [f"this processor has no {isa}"]
    if isa == "scalar" and problem.kept_flops > SCALAR_FLOPS:
        return ["too slow for so large a layer"]
    around = functools.partial(using_isa, isa)
    with around():
        if isinstance(problem, LayerProblem):
            sparse = getattr(sp, f"Sparse{type(problem.layer).__name__}", None)
            if sparse is None:
                return [f"there is no sparse {type(problem.layer).__name__} yet"]
            layer = sparse.from_dense(problem.layer, problem.mask)
            if problem.workload.kind == REWIRE_STEP:
                return _rewiring(problem, layer, around)
            runnable = one_layer(problem, layer, around=around)
            # V, as the layer found it in the mask
            return Runnable(runnable.call, runnable.answer, lambda: {"block": layer.values.shape[1]}, around)
        if isinstance(problem, NetworkProblem):
            if problem.workload.kind == "prune":
                return _pruning(problem, around)
            return _network(problem, around)
        assert isinstance(problem, ScoresProblem)
        return _topk(problem, around)


def _network(problem: NetworkProblem, around: Around) -> Runnable:
    model = _sparse(problem, problem.model)
    runnable = one_network(problem, model, around=around)
    layers = [row.computes for row in sp.summary(model).rows]
    return Runnable(runnable.call, runnable.answer, lambda: {**runnable.facts(), "layers": layers}, around)


def _rewiring(problem: LayerProblem, layer: sp.SparseLinear, around: Around) -> Runnable:
    return one_rewiring(
        problem,
        layer,
        lambda optimizer: sp.Rewire(layer, optimizer, fraction=MOVED, every=1).step,
        lambda: layer.values.numel(),
        around=around,
    )


def _sparse(problem: NetworkProblem, dense: nn.Module) -> nn.Module:
    """As users get it: a layer that is measured to be slower sparse than dense stays dense."""
    return sp.sparsify(
        dense, problem.masks, batch_size=problem.workload.batch, input_size=problem.x.shape[1:]
    )


def in_bfloat16(isa: str, problem: NetworkProblem) -> Runnable | Reasons:
    """A sparse transformer all of whose numbers are bfloat16."""
    # Not for the sparse layers, but for attention.
    if reasons := no_bfloat16():
        return reasons
    around = functools.partial(using_isa, isa)
    with around():
        model = _sparse(problem, copy.deepcopy(problem.model).bfloat16())
        return one_network(problem, model, torch.bfloat16, around=around)


def sparse_compiled(isa: str, problem: NetworkProblem) -> Runnable | Reasons:
    """A sparse transformer and torch.compile, which fuses what lies between the layers."""
    around = functools.partial(using_isa, isa)
    with around():
        return compiled(problem, _sparse(problem, problem.model), around=around)


def frozen(isa: str, problem: NetworkProblem) -> Runnable | Reasons:
    """What `freeze` makes of it."""
    around = functools.partial(using_isa, isa)
    with around():
        return one_network(problem, sp.freeze(_sparse(problem, problem.model)), around=around)


def _pruning(problem: NetworkProblem, around: Around) -> Runnable:
    workload = problem.workload

    def prune() -> dict[str, Tensor]:
        masks = sp.prune(
            problem.model, [(problem.x, problem.y)], method=workload.mask, sparsity=1 - workload.density
        )
        sp.sparsify(problem.model, masks, batch_size=workload.batch, input_size=problem.x.shape[1:])
        return masks

    def answer(masks: dict[str, Tensor]) -> Answer:
        # Scores that differ by a rounding error may swap places: their sum tells, not the masks themselves.
        kept_scores = [problem.scores[name][mask] for name, mask in masks.items()]
        return {
            "kept": torch.tensor(float(sum(len(kept) for kept in kept_scores))),
            "kept_score": torch.cat(kept_scores).sum(),
        }

    return Runnable(prune, answer, around=around)


def _topk(problem: ScoresProblem, around: Around) -> Runnable:
    def answer(masks: list[Tensor]) -> Answer:
        mask = torch.cat([part.reshape(-1) for part in masks])
        return {"threshold": problem.joined[mask].min(), "mask": mask}

    return Runnable(lambda: sp.topk_masks(problem.scores, problem.k), answer, around=around)


# The large workloads, which take long, see the instruction set in use alone.
_in_use = sp.ops.info()["isa"] or ISAS[0]
for _isa in ISAS:
    _kinds = (
        (*LINEAR, *CONV, *NETWORKS, "prune", "topk", REWIRE_STEP)
        if _isa == _in_use
        else (*LINEAR, CONV_FORWARD)
    )
    contender(f"sparseprune-{_isa}", _kinds, "own")(functools.partial(sparseprune_with, _isa))
if sp.ops.extension is not None:
    contender(f"sparseprune-{_in_use}-bfloat16", TRANSFORMERS, "own", dtype="bfloat16", note=ALL_BFLOAT16)(
        functools.partial(in_bfloat16, _in_use)
    )
    contender(f"sparseprune-{_in_use}-frozen", [NETWORK_FORWARD], "own", note="sp.freeze")(
        functools.partial(frozen, _in_use)
    )
    contender(f"sparseprune-{_in_use}-compiled", TRANSFORMERS, "own", only=worth_compiling, note=COMPILED)(
        functools.partial(sparse_compiled, _in_use)
    )
