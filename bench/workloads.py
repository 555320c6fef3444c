"""What is measured: workloads as data, and the problem with its known answer that each of them poses."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseprune as sp
from sparseprune import models

SEED = 0
ARTICLE = (40_000, *models.MODELS["article_mlp"], 10)
# The source article counts 42.1 million weights: so many scores, in the shapes of its network.
ARTICLE_SCORES = (40_090, *ARTICLE[1:])


@dataclass(frozen=True)
class Workload:
    """One thing to compute; the thread count comes with the run.

    Attributes:
        kind: a key of `BUILD`.
        sizes: features from the input to the output of a layer or network.
        density: fraction of the weights (or scores) that is kept.
        batch: samples; 0 where there are none.
        mask: "random", "snip" (over the whole network) or "snip-layer" (layer by layer).
        optimizer: of a training step: "adam-fused" or "adam" (torch's default implementation).
        quick: also in the quick suite.
    """

    kind: str
    sizes: tuple[int, ...]
    density: float
    batch: int = 0
    mask: str = "random"
    optimizer: str = ""
    quick: bool = False

    @property
    def id(self) -> str:
        """Like ``linear-step/1024x1024/density=0.10/n=256/float32``; a layer's shape is inputs x outputs."""
        if self.kind == "topk":
            shape = f"{models.weight_count(self.sizes) / 1e6:.4g}M"
        else:
            shape = ("x" if len(self.sizes) == 2 else "-").join(map(str, self.sizes))
        parts = [self.kind, shape, f"density={self.density:.2f}"]
        parts += [f"n={self.batch}"] if self.batch else []
        parts += ["float32"]
        parts += [self.mask] if len(self.sizes) > 2 and self.kind != "topk" else []
        parts += [self.optimizer] if self.optimizer else []
        return "/".join(parts)


# inputs, outputs, batch, density, whether in the quick suite
LAYERS = (
    (1024, 1024, 256, 0.20, False),
    (1024, 1024, 256, 0.10, True),
    (1024, 1024, 256, 0.05, True),
    (1024, 1024, 256, 0.02, False),
    (4096, 4096, 256, 0.10, False),
    (4096, 4096, 256, 0.05, False),
    (784, 1024, 256, 0.10, False),
    (1024, 10, 256, 0.10, False),
    (1024, 1024, 64, 0.10, False),
    (1024, 1024, 16, 0.10, False),
)

WORKLOADS: tuple[Workload, ...] = (
    *(
        Workload(kind, (inputs, outputs), density, batch, quick=quick)
        for kind in ("linear-step", "linear-forward")
        for inputs, outputs, batch, density, quick in LAYERS
    ),
    Workload("model-step", ARTICLE, 0.02, 256, "random", "adam-fused", quick=True),
    Workload("model-step", ARTICLE, 0.02, 256, "snip", "adam-fused"),
    Workload("model-step", ARTICLE, 0.02, 256, "snip-layer", "adam-fused"),
    Workload("model-step", ARTICLE, 0.02, 256, "random", "adam"),
    Workload("prune", ARTICLE, 0.02, 256, "snip", "adam-fused", quick=True),
    Workload("topk", ARTICLE_SCORES, 0.02, quick=True),
)

# Largest accepted relative error (Frobenius norm) by kind and by the precision of the contender. In a network
# an activation next to zero may fall on the other side of ReLU than in float64, and takes a gradient with it.
TOLERANCES = {
    "linear-step": {"float32": 1e-5, "bfloat16": 2e-2},
    "linear-forward": {"float32": 1e-5, "bfloat16": 2e-2},
    "model-step": {"float32": 2e-3, "bfloat16": 1e-1},
    "prune": {"float32": 1e-4},
    "topk": {"float32": 0.0},
}

# The contender that speed-ups are first of all over, where there is no other.
BASELINES = {"topk": "numpy-partition"}
DEFAULT_BASELINE = "dense-float32"


@dataclass
class Problem:
    """A workload's tensors and answers.

    Attributes:
        workload: what this is.
        expected: ``{name: answer}``, computed in float64, or exactly.
        kept_flops: operations of the matrix products of a call with the kept weights alone; 0: not counted.
        dense_flops: the same with all weights.
    """

    workload: Workload
    expected: dict[str, Tensor]
    kept_flops: int
    dense_flops: int


@dataclass
class LinearProblem(Problem):
    """A linear layer whose pruned weights are zero.

    Attributes:
        layer: float32, (inputs, outputs), with bias.
        mask: bool (outputs, inputs).
        x: input (batch, inputs), row-major.
        g: gradient that comes back, (batch, outputs), row-major.
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


def build_linear(workload: Workload) -> LinearProblem:
    """A layer with a random mask, and its output (and gradients, at the kept weights) in float64."""
    inputs, outputs = workload.sizes
    random = torch.Generator().manual_seed(SEED)
    kept = round(workload.density * inputs * outputs)
    mask = torch.zeros(inputs * outputs, dtype=torch.bool)
    mask[torch.randperm(inputs * outputs, generator=random)[:kept]] = True
    mask = mask.reshape(outputs, inputs)
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=random) / inputs**0.5 * mask)
        layer.bias.copy_(torch.randn(outputs, generator=random))
    x = torch.randn(workload.batch, inputs, generator=random)
    g = torch.randn(workload.batch, outputs, generator=random)
    x64, g64 = x.double(), g.double()
    weight64, bias64 = layer.weight.detach().double(), layer.bias.detach().double()
    expected = {"y": x64 @ weight64.t() + bias64}
    products = 1
    if workload.kind == "linear-step":
        products = 3
        expected |= {"d_x": g64 @ weight64, "d_weight": (g64.t() @ x64)[mask], "d_bias": g64.sum(0)}
    per_weight = 2 * products * workload.batch
    return LinearProblem(
        workload, expected, per_weight * kept, per_weight * mask.numel(), layer=layer, mask=mask, x=x, g=g
    )


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
    return NetworkProblem(workload, expected, kept, dense, model=model, masks=masks, x=x, y=y, scores={})


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
    return NetworkProblem(workload, expected, 0, 0, model=model, masks={}, x=x, y=y, scores=scores)


def _network(workload: Workload) -> tuple[nn.Module, Tensor, Tensor]:
    random = torch.Generator().manual_seed(SEED)
    x = torch.randn(workload.batch, workload.sizes[0], generator=random)
    y = torch.randint(0, workload.sizes[-1], (workload.batch,), generator=random)
    return models.build(workload.sizes, SEED), x, y


def build_topk(workload: Workload) -> ScoresProblem:
    """Scores of a network's shapes, the threshold, and the exact masks, ties to the earlier position."""
    random = torch.Generator().manual_seed(SEED)
    shapes = [(rows, cols) for cols, rows in itertools.pairwise(workload.sizes)]
    joined = torch.randn(sum(rows * cols for rows, cols in shapes), generator=random).abs_()
    k = round(len(joined) * workload.density)
    parts = joined.split([rows * cols for rows, cols in shapes])
    scores = [part.clone().reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    threshold = joined.kthvalue(len(joined) - k + 1).values
    mask = joined > threshold
    ties = (joined == threshold).nonzero()[:, 0]
    mask[ties[: k - int(mask.sum())]] = True
    expected = {"threshold": threshold, "mask": mask}
    return ScoresProblem(workload, expected, 0, 0, scores=scores, joined=joined, k=k)


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
