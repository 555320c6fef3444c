"""A whole network and a batch of noise."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseprune as sp
from bench.problems.base import SEED, Problem, generator
from bench.problems.transformers import Transformer
from bench.workloads import FORWARDS, NETWORK_FORWARD, TRANSFORMERS, Workload
from sparseprune.experiments import models

# Classes of a convolutional network and of a transformer.
CLASSES = 10


@dataclass
class NetworkProblem(Problem):
    """A network and a batch of noise.

    Attributes:
        model: float32; pruned weights are zero where ``masks`` are given.
        masks: ``{parameter name: bool mask}``; empty where pruning is what is measured.
        x: input (batch, inputs), (batch, channels, height, width) in row-major layout, or (batch, tokens,
            width).
        y: labels, int64 (batch,).
        scores: SNIP scores in float64, ``{parameter name: (outputs, inputs)}``, where pruning is measured.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    x: Tensor
    y: Tensor
    scores: dict[str, Tensor]


def build_network(workload: Workload, _device: torch.device) -> NetworkProblem:
    """A pruned network at its initialisation, and in float64 its output, or loss and gradients of a step."""
    model, x, y = _network(workload)
    masks = _masks(workload, model, x, y)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    if workload.kind == NETWORK_FORWARD:
        _settle(model, x)
    reference = copy.deepcopy(model).double()
    per_weight = _operations(reference)
    if workload.kind in FORWARDS:
        with torch.no_grad():
            expected = {"y": reference(x.double())}
    else:
        expected = _first_step(reference, masks, x.double(), y)
    weights = {name: reference.get_parameter(name).numel() for name in per_weight}
    kept = {name: int(masks[name].sum()) if name in masks else n for name, n in weights.items()}
    return NetworkProblem(
        workload,
        expected,
        kept_flops=sum(n * kept[name] for name, n in per_weight.items()),
        dense_flops=sum(n * weights[name] for name, n in per_weight.items()),
        kept_bytes=0,
        model=model,
        masks=masks,
        x=x,
        y=y,
        scores={},
    )


def _settle(model: nn.Module, x: Tensor) -> None:
    """Give batch-norms the statistics of a batch, as training does, and bring the model into evaluation."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    # One sample has no statistics where a channel is a single number.
    batch = x if len(x) > 1 else torch.cat([x, x.flip(3)])
    with torch.no_grad():
        model(batch[:4])
    model.eval()


def _first_step(model: nn.Module, masks: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The loss, the gradients of the kept weights, and those of all other parameters."""
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {
        "loss": loss.detach(),
        "d_weights": torch.cat([gradients[name][mask] for name, mask in masks.items()]),
        "d_others": torch.cat([g.flatten() for name, g in gradients.items() if name not in masks]),
    }


def _masks(workload: Workload, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The workload's masks: ``{parameter name: bool mask}``."""
    uniform = workload.mask == "uniform"
    layers = _layers(model)
    excluded = layers[:1] if uniform else layers[-1:] if workload.kind in TRANSFORMERS else []
    return sp.prune(
        model,
        [(x, y)],
        method="random" if uniform else workload.mask.removesuffix("-layer"),
        sparsity=1 - workload.density,
        scope="layer" if uniform or workload.mask.endswith("-layer") else "global",
        block=(workload.block, 1),
        exclude=excluded,
        seed=SEED,
    )


def _layers(model: nn.Module) -> Sequence[str]:
    """Names of the linear and convolutional layers, in the order of the modules."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def _operations(model: nn.Module) -> dict[str, int]:
    """Filled by the next call: ``{weight name: operations of its matrix products, for each of its numbers}``.

    With gradients there are three products, or two where none of the input is computed.
    """
    operations: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            products = 2 + inputs[0].requires_grad if output.requires_grad else 1
            uses = output.numel() // len(layer.get_parameter("weight"))
            operations[f"{name}.weight"] = 2 * products * uses

        return hook

    for name in _layers(model):
        model.get_submodule(name).register_forward_hook(count(name))
    return operations


def build_prune(workload: Workload, _device: torch.device) -> NetworkProblem:
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
    """The model, float32, and a batch of noise with labels."""
    random = generator()
    sample, classes = workload.sizes, CLASSES
    if workload.kind in TRANSFORMERS:
        blocks, tokens, width = workload.sizes
        sample = (tokens, width)
        with models.seeded(SEED):
            model: nn.Module = Transformer(workload.model, blocks, tokens, width, classes)
    elif workload.model:
        model = models.build(models.Network(workload.model, workload.sizes, CLASSES), SEED)
    else:
        with models.seeded(SEED):
            model = models.mlp(workload.sizes)
        sample, classes = workload.sizes[:1], workload.sizes[-1]
    x = torch.randn(workload.batch, *sample, generator=random)
    y = torch.randint(0, classes, (workload.batch,), generator=random)
    return model, x, y
