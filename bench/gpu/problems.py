"""Workloads on a GPU, and their tensors and answers, made on the device that measures."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor, nn

from bench.problems import LayerProblem, ScoresProblem
from bench.problems.base import SEED
from bench.problems.layers import weight_shape
from bench.workloads import (
    ARTICLE_SCORES,
    CONV_STEP,
    CONVOLUTIONS,
    FORWARD,
    STEP,
    STEPS,
    Workload,
    convolutions,
    layers,
)

TWO_OF_FOUR = "2:4"  # a mask that keeps two of each four neighbouring inputs
HALF = 0.50  # the density at which masks are 2:4, so that 2:4 kernels compute what everybody else does

SQUARES = ((1024, 1024), (4096, 4096), (8192, 8192))
LARGE = (4096, 4096)
DENSITIES = (HALF, 0.20, 0.10, 0.05, 0.02)
BLOCKS = (1, 4, 8, 16)
CONV_SHAPES = ((64, 64, 32), (64, 64, 8), (256, 256, 32), (256, 256, 8))


def _workloads() -> tuple[Workload, ...]:
    linear = (
        *layers((FORWARD, STEP), SQUARES, DENSITIES, batches=(8, 256), blocks=BLOCKS),
        *layers((FORWARD,), (LARGE,), DENSITIES, batches=(1, 4096), blocks=BLOCKS),
    )
    return (
        *(dataclasses.replace(w, mask=TWO_OF_FOUR) if w.density == HALF else w for w in linear),
        *convolutions((CONV_STEP,), (0.10, 0.05), CONV_SHAPES, batches=(64,), blocks=(1, 4)),
        Workload("topk", ARTICLE_SCORES, 0.02),
    )


QUICK = {
    "linear-forward/4096x4096/density=0.50/n=256/2:4",
    "linear-forward/4096x4096/density=0.10/n=1",
    "linear-forward/4096x4096/density=0.10/n=256",
    "linear-forward/4096x4096/density=0.10/n=256/block=8",
    "linear-step/1024x1024/density=0.10/n=256",
    "linear-step/4096x4096/density=0.05/n=256",
    "linear-step/4096x4096/density=0.05/n=256/block=8",
    "conv-step/256x256@8x8-3x3/density=0.10/n=64",
    "topk/42.1M/density=0.02",
}


def case_id(workload: Workload) -> str:
    """The workload's id without a dtype: contenders of all precisions compute it."""
    return workload.id.replace(f"/{workload.dtype}", "")


WORKLOADS = tuple(dataclasses.replace(w, quick=case_id(w) in QUICK) for w in _workloads())


def build(workload: Workload, device: torch.device) -> LayerProblem | ScoresProblem:
    """A workload's tensors, in float32, and its answers in float64, or exact.

    Answers are those of the float32 numbers: what a contender of lower precision loses by rounding its
    operands counts as its error.
    """
    random = torch.Generator(device).manual_seed(SEED)
    return _scores(workload, random) if workload.kind == "topk" else _layer(workload, random)


def make_mask(workload: Workload, random: torch.Generator) -> Tensor:
    """Bool, of the weight's shape: whole V x 1 blocks, random ones, exactly the density's number of them."""
    rows, *others = weight_shape(workload)
    shape = (rows // workload.block, *others)
    scores = torch.rand(shape, generator=random, device=random.device)
    if workload.mask == TWO_OF_FOUR:
        blocks = scores.unflatten(-1, (-1, 4)).argsort(-1).flatten(-2) < 2
    else:
        blocks = torch.zeros_like(scores, dtype=torch.bool)
        kept = scores.flatten().argsort()[: round(workload.density * scores.numel())]
        blocks.view(-1)[kept] = True
    return blocks.repeat_interleave(workload.block, dim=0)


def _empty_layer(workload: Workload, device: torch.device) -> nn.Linear | nn.Conv2d:
    inputs, outputs, *_ = workload.sizes
    if workload.kind not in CONVOLUTIONS:
        linear: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, device=device)
        return linear
    half = workload.kernel // 2
    conv: nn.Conv2d = nn.utils.skip_init(
        nn.Conv2d, inputs, outputs, workload.kernel, padding=half, device=device
    )
    return conv


def _layer(workload: Workload, random: torch.Generator) -> LayerProblem:
    device = random.device

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device)

    mask = make_mask(workload, random)
    layer = _empty_layer(workload, device)
    with torch.no_grad():
        assert layer.bias is not None
        layer.weight.copy_(noise(*mask.shape) * mask / (workload.density * mask[0].numel()) ** 0.5)
        layer.bias.copy_(noise(len(mask)))
    inputs, _, *image = workload.sizes
    x = noise(workload.batch, inputs, *image * 2)
    reference = _empty_layer(workload, device).double()
    reference.load_state_dict(layer.state_dict())
    x64 = x.double().requires_grad_()
    y64 = reference(x64)
    g = noise(*y64.shape)
    expected = {"y": y64.detach()}
    step = workload.kind in STEPS
    if step:
        leaves = [x64, *reference.parameters()]
        d_x, d_weight, d_bias = torch.autograd.grad(y64, leaves, g.double())
        expected |= {"d_x": d_x, "d_weight": d_weight[mask], "d_bias": d_bias}
    kept = int(mask.sum())
    per_weight = 2 * (3 if step else 1) * (y64.numel() // len(mask))
    return LayerProblem(
        workload,
        expected,
        kept_flops=per_weight * kept,
        dense_flops=per_weight * mask.numel(),
        kept_bytes=0,  # depends on the contender's precision
        layer=layer,
        mask=mask,
        x=x,
        g=g,
    )


def _scores(workload: Workload, random: torch.Generator) -> ScoresProblem:
    shapes = [(rows, cols) for cols, rows in itertools.pairwise(workload.sizes)]
    sizes = [rows * cols for rows, cols in shapes]
    joined = torch.randn(sum(sizes), generator=random, device=random.device).abs_()
    k = round(len(joined) * workload.density)
    ranked, order = joined.sort(descending=True, stable=True)  # ties to the earlier position
    mask = torch.zeros_like(joined, dtype=torch.bool)
    mask[order[:k]] = True
    scores = [part.clone().reshape(shape) for part, shape in zip(joined.split(sizes), shapes, strict=True)]
    expected = {"count": torch.tensor(float(k)), "threshold": ranked[k - 1].clone(), "mask": mask}
    # every score is read once, every byte of the masks written once
    moved = joined.nbytes + mask.nbytes
    return ScoresProblem(workload, expected, 0, 0, moved, scores=scores, joined=joined, k=k)
