"""The problem that each workload poses: its tensors and the known answers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseprune as sp
from bench.workloads import BATCH_INNER, STEP, Workload
from sparseprune import models

SEED = 0
CLASSES = 10  # of the network that gives a layer its SNIP mask
INDEX_BYTES = 4  # of a block, in the least that a kernel has to read


@dataclass
class Problem:
    """A workload's tensors and answers.

    Attributes:
        workload: what this is.
        expected: ``{name: answer}``, computed in float64, or exactly.
        kept_flops: operations of the matrix products of a call with the kept weights alone; 0: not counted.
        dense_flops: the same with all weights.
        kept_bytes: of values, indices and activations (gradients of them, where computed), each once; 0: not
            counted.
    """

    workload: Workload
    expected: dict[str, Tensor]
    kept_flops: int
    dense_flops: int
    kept_bytes: int


@dataclass
class LinearProblem(Problem):
    """A linear layer whose pruned weights are zero.

    Attributes:
        layer: (inputs, outputs), with bias, in the workload's dtype.
        mask: bool (outputs, inputs).
        x: input (batch, inputs), in the workload's dtype and layout.
        g: gradient that comes back, (batch, outputs), likewise.
    """

    layer: nn.Linear
    mask: Tensor
    x: Tensor
    g: Tensor


@dataclass
class NetworkProblem(Problem):
    """A perceptron and a batch of noise.

    Attributes:
        model: float32; pruned weights are zero where ``masks`` are given.
        masks: ``{parameter name: bool mask}``; empty where pruning is what is measured.
        x: input (batch, inputs).
        y: labels, int64 (batch,).
        scores: SNIP scores in float64, ``{parameter name: (outputs, inputs)}``, where pruning is measured.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    x: Tensor
    y: Tensor
    scores: dict[str, Tensor]


@dataclass
class ScoresProblem(Problem):
    """Scores of which k are to be kept.

    Attributes:
        scores: float32, one tensor for each layer.
        joined: the same in one tensor, for contenders that take no list: joining is not part of their time.
        k: number to keep.
    """

    scores: list[Tensor]
    joined: Tensor
    k: int


def random_mask(workload: Workload, random: torch.Generator) -> Tensor:
    """Exactly the density's number of V x 1 blocks, anywhere: bool (outputs, inputs)."""
    inputs, outputs = workload.sizes
    assert outputs % workload.block == 0, workload
    scores = torch.rand(outputs // workload.block, inputs, generator=random)
    (blocks,) = sp.topk_masks([scores], round(workload.density * scores.numel()))
    return blocks.repeat_interleave(workload.block, dim=0)


def snip_mask(workload: Workload, random: torch.Generator) -> Tensor:
    """SNIP's choice for the first layer of a small network, bool (outputs, inputs).

    The features of its input differ in scale, as those of real data do, so that rows and columns of the mask
    have unequal numbers of weights.
    """
    assert workload.block == 1, workload
    inputs, outputs = workload.sizes
    with models.seeded(SEED):
        model = models.mlp((inputs, outputs, CLASSES))
    x = torch.randn(256, inputs, generator=random) * torch.randn(inputs, generator=random).exp()
    y = torch.randint(0, CLASSES, (256,), generator=random)
    masks = sp.prune(model, [(x, y)], method="snip", sparsity=1 - workload.density, scope="layer")
    return next(iter(masks.values()))


MASKS = {"random": random_mask, "snip": snip_mask}


def build_linear(workload: Workload) -> LinearProblem:
    """A layer with a mask, and its output (and gradients, at the kept weights) in float64."""
    inputs, outputs = workload.sizes
    random = _generator()
    dtype = getattr(torch, workload.dtype)
    mask = MASKS[workload.mask](workload, random)
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=random) / inputs**0.5 * mask)
        layer.bias.copy_(torch.randn(outputs, generator=random))
    layer.to(dtype)
    x = _in_layout(torch.randn(workload.batch, inputs, generator=random).to(dtype), workload)
    g = _in_layout(torch.randn(workload.batch, outputs, generator=random).to(dtype), workload)
    x64, weight64, bias64 = x.double(), layer.weight.detach().double(), layer.bias.detach().double()
    expected = {"y": x64 @ weight64.t() + bias64}
    if workload.kind == STEP:
        g64 = g.double()
        expected |= {"d_x": g64 @ weight64, "d_weight": (g64.t() @ x64)[mask], "d_bias": g64.sum(0)}
    kept = int(mask.sum())
    step = workload.kind == STEP
    per_weight = 2 * (3 if step else 1) * workload.batch
    numbers = (2 if step else 1) * (kept + x.numel() + g.numel())
    return LinearProblem(
        workload,
        expected,
        kept_flops=per_weight * kept,
        dense_flops=per_weight * mask.numel(),
        kept_bytes=numbers * dtype.itemsize + kept // workload.block * INDEX_BYTES,
        layer=layer,
        mask=mask,
        x=x,
        g=g,
    )


def batch_inner(x: Tensor) -> Tensor:
    """The same (batch, features) with the strides (1, batch)."""
    return x.t().contiguous().t()


def _in_layout(x: Tensor, workload: Workload) -> Tensor:
    return batch_inner(x) if workload.layout == BATCH_INNER else x


def build_model_step(workload: Workload) -> NetworkProblem:
    """A pruned network at its initialisation, and the loss and gradients of its first step in float64."""
    model, x, y = _network(workload)
    masks = sp.prune(
        model,
        [(x, y)],
        method=workload.mask.removesuffix("-layer"),
        sparsity=1 - workload.density,
        scope="layer" if workload.mask.endswith("-layer") else "global",
        seed=SEED,
    )
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    reference = copy.deepcopy(model).double()
    loss = F.cross_entropy(reference(x.double()), y)
    loss.backward()
    gradients = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    expected = {
        "loss": loss.detach(),
        "d_weights": torch.cat([gradients[name][mask] for name, mask in masks.items()]),
        "d_biases": torch.cat([g for name, g in gradients.items() if name not in masks]),
    }
    # The first layer needs no gradient of its input: two products there, three in all others.
    per_weight = [2 * workload.batch * (2 if i == 0 else 3) for i in range(len(masks))]
    kept = sum(n * int(mask.sum()) for n, mask in zip(per_weight, masks.values(), strict=True))
    dense = sum(n * mask.numel() for n, mask in zip(per_weight, masks.values(), strict=True))
    return NetworkProblem(workload, expected, kept, dense, 0, model=model, masks=masks, x=x, y=y, scores={})


def build_prune(workload: Workload) -> NetworkProblem:
    """A network to prune with SNIP: scores in float64, how many to keep, and the most these can sum to."""
    model, x, y = _network(workload)
    reference = copy.deepcopy(model).double()
    loss = F.cross_entropy(reference(x.double()), y)
    names = [name for name, p in reference.named_parameters() if p.dim() == 2]
    weights = [reference.get_parameter(name) for name in names]
    gradients = torch.autograd.grad(loss, weights)
    scores = {name: (g * w.detach()).abs_() for name, g, w in zip(names, gradients, weights, strict=True)}
    joined = torch.cat([score.reshape(-1) for score in scores.values()])
    k = round(len(joined) * workload.density)
    best = joined.kthvalue(len(joined) - k + 1).values
    expected = {
        "loss": loss.detach(),
        "kept": torch.tensor(float(k)),
        "kept_score": joined[joined >= best].sum(),
    }
    return NetworkProblem(workload, expected, 0, 0, 0, model=model, masks={}, x=x, y=y, scores=scores)


def _network(workload: Workload) -> tuple[nn.Module, Tensor, Tensor]:
    random = _generator()
    x = torch.randn(workload.batch, workload.sizes[0], generator=random)
    y = torch.randint(0, workload.sizes[-1], (workload.batch,), generator=random)
    with models.seeded(SEED):
        return models.mlp(workload.sizes), x, y


def build_topk(workload: Workload) -> ScoresProblem:
    """Scores of a network's shapes, the threshold, and the exact masks, ties to the earlier position."""
    shapes = [(rows, cols) for cols, rows in itertools.pairwise(workload.sizes)]
    joined = torch.randn(sum(rows * cols for rows, cols in shapes), generator=_generator()).abs_()
    k = round(len(joined) * workload.density)
    parts = joined.split([rows * cols for rows, cols in shapes])
    scores = [part.clone().reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    threshold = joined.kthvalue(len(joined) - k + 1).values
    mask = joined > threshold
    ties = (joined == threshold).nonzero()[:, 0]
    mask[ties[: k - int(mask.sum())]] = True
    expected = {"threshold": threshold, "mask": mask}
    return ScoresProblem(workload, expected, 0, 0, 0, scores=scores, joined=joined, k=k)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


BUILD: dict[str, Callable[[Workload], Problem]] = {
    "linear-step": build_linear,
    "linear-forward": build_linear,
    "model-step": build_model_step,
    "prune": build_prune,
    "topk": build_topk,
}


def build(workload: Workload) -> Problem:
    """The tensors of a workload, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        return BUILD[workload.kind](workload)
