"""A single layer, linear or convolutional, whose pruned weights are zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sparseprune as sp
from bench.problems.base import SEED, Problem, best, generator
from bench.workloads import BATCH_INNER, CONVOLUTIONS, HALF, REWIRE_STEP, STEPS, TWO_OF_FOUR, Workload
from sparseprune.experiments import models

# Classes of the network that gives a layer its SNIP mask.
CLASSES = 10
# Bytes of the index of a block, in the least that a kernel has to read.
INDEX_BYTES = 4


@dataclass
class LayerProblem(Problem):
    """A layer whose pruned weights are zero.

    Attributes:
        layer: the layer, with bias, in the workload's dtype.
        mask: bool, of the weight's shape.
        x: input (batch, inputs) or (batch, channels, height, width), in the workload's dtype and layout.
        g: gradient that comes back, of the output's shape, likewise.
    """

    layer: nn.Linear | nn.Conv2d
    mask: Tensor
    x: Tensor
    g: Tensor


def random_mask(workload: Workload, random: torch.Generator) -> Tensor:
    """Exactly the density's number of V x 1 blocks, anywhere: bool, of the weight's shape."""
    scores = _block_scores(workload, random)
    _, blocks = best(scores, round(workload.density * scores.numel()))
    return blocks.repeat_interleave(workload.block, dim=0)


def two_of_four_mask(workload: Workload, random: torch.Generator) -> Tensor:
    """Two of each four neighbouring inputs, in V x 1 blocks: bool, of the weight's shape."""
    assert workload.density == HALF, workload
    blocks = _block_scores(workload, random).unflatten(-1, (-1, 4)).argsort(-1).flatten(-2) < 2
    return blocks.repeat_interleave(workload.block, dim=0)


def _block_scores(workload: Workload, random: torch.Generator) -> Tensor:
    rows, *others = weight_shape(workload)
    assert rows % workload.block == 0, workload
    return torch.rand(rows // workload.block, *others, generator=random, device=random.device)


def snip_mask(workload: Workload, random: torch.Generator) -> Tensor:
    """SNIP's choice for the first layer of a small perceptron, bool (outputs, inputs).

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


MASKS = {"random": random_mask, "snip": snip_mask, TWO_OF_FOUR: two_of_four_mask}


def weight_shape(workload: Workload) -> tuple[int, ...]:
    """(outputs, inputs), and (height, width) of the kernel of a convolution."""
    inputs, outputs, *_ = workload.sizes
    kernel = (workload.kernel,) * 2 if workload.kind in CONVOLUTIONS else ()
    return (outputs, inputs, *kernel)


def build_layer(workload: Workload, device: torch.device) -> LayerProblem:
    """A layer with a mask, and its output (and gradients, at the kept weights) in float64."""
    random = generator(device)
    dtype = getattr(torch, workload.dtype)

    def noise(shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=random, device=device)

    mask = MASKS[workload.mask](workload, random)
    layer = _layer(workload, device)
    with torch.no_grad():
        # Outputs without bias are as large as the bias, so that an error in them shows.
        layer.weight.copy_(noise(mask.shape) * mask / (workload.density * mask[0].numel()) ** 0.5)
        assert layer.bias is not None
        layer.bias.copy_(noise([len(mask)]))
    layer.to(dtype)
    x = noise(_input_shape(workload)).to(dtype)
    reference = _layer(workload, device).double()
    reference.load_state_dict(layer.state_dict())
    x64 = x.double().requires_grad_()
    y64 = reference(x64)
    g = noise(y64.shape).to(dtype)
    expected = {"y": y64.detach()}
    step = workload.kind in STEPS
    if step:
        leaves = [x64, *reference.parameters()]
        d_x, d_weight, d_bias = torch.autograd.grad(y64, leaves, g.double())
        expected |= {"d_x": d_x, "d_weight": d_weight[mask], "d_bias": d_bias}
    kept = int(mask.sum())
    if workload.kind == REWIRE_STEP:
        # Which ones is the rule's matter; that they are as many is everybody's.
        expected["kept"] = torch.tensor(float(kept))
    products = 3 if step else 1
    # Every weight meets every output of its row.
    per_weight = 2 * products * (y64.numel() // len(mask))
    numbers = (2 if step else 1) * (kept + x.numel() + g.numel())
    return LayerProblem(
        workload,
        expected,
        kept_flops=per_weight * kept,
        dense_flops=per_weight * mask.numel(),
        kept_bytes=numbers * dtype.itemsize + kept // workload.block * INDEX_BYTES,
        layer=layer,
        mask=mask,
        x=_in_layout(x, workload),
        g=_in_layout(g, workload),
    )


def _layer(workload: Workload, device: torch.device) -> nn.Linear | nn.Conv2d:
    if workload.kind not in CONVOLUTIONS:
        linear: nn.Linear = nn.utils.skip_init(nn.Linear, *workload.sizes, device=device)
        return linear
    inputs, outputs, _ = workload.sizes
    half = workload.kernel // 2
    conv: nn.Conv2d = nn.utils.skip_init(
        nn.Conv2d, inputs, outputs, workload.kernel, workload.stride, padding=half, device=device
    )
    return conv


def _input_shape(workload: Workload) -> tuple[int, ...]:
    inputs, _, *image = workload.sizes
    # Images are square.
    return (workload.batch, inputs, *image * 2)


def batch_inner(x: Tensor) -> Tensor:
    """The same (batch, ...) with the batch innermost in memory, the other dimensions in their order."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def _in_layout(x: Tensor, workload: Workload) -> Tensor:
    return batch_inner(x) if workload.layout == BATCH_INNER else x
