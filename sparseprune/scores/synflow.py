"""|θ ⊙ ∂R/∂θ| with R = 1ᵀ ∏|θ| 1"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.scores.base import Masks, Scores, dtype_of, prunable
from sparseprune.scores.batches import Batches, pairs
from sparseprune.scores.frozen import functional, gradients
from sparseprune.scores.losses import Loss
from sparseprune.scores.samples import Sample, shape_of

REMEDY = (
    "give the shape of one sample as input_size=, or, where ones cannot take the place of one input tensor, "
    'use another method, such as "snip"'
)


def synflow(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    input_size: Sample | None = None,
    dtype: torch.dtype = torch.float64,
    exclude: Iterable[str] = (),
    masks: Masks | None = None,
) -> Scores:
    """Score weights by their synaptic flow, θ ⊙ ∂R/∂θ, where ``R = 1ᵀ (∏ |θ|) 1`` needs no data (SynFlow).

    R is the sum of the outputs for one input of ones, with the absolute values of all parameters and buffers
    in place of themselves, in evaluation mode. In :func:`sparseprune.prune` it takes 100 rounds, as in the
    paper, each of which removes the same share of what is left: that is what keeps layers from being cut.
    The paper's code computes in float32, which overflows in deep and wide networks: ``preset="authors"``.

    Args:
        model, exclude, masks: see :mod:`sparseprune.scores`.
        batches: only the shape of the first input is used, and that only without ``input_size``.
        loss: not used.
        input_size: shape of one sample, without the batch, or example inputs that are one tensor.
        dtype: dtype that is computed in.
    Returns:
        ``{parameter name: tensor of dtype and the weight's shape}``, of 0 and more.
    Raises:
        ValueError: neither ``input_size`` nor batches are given, or the sum is not finite.
    Reference:
        Tanaka, Kunin, Yamins, Ganguli, "Pruning neural networks without any data by iteratively conserving
        synaptic flow", 2020, arXiv:2006.05467, algorithm 1.
    """
    if input_size is None:
        if batches is None:
            raise ValueError(
                "synflow: expected input_size=, the shape of one sample, or batches to take it from, got none"
            )
        x, _ = next(pairs("synflow", batches, REMEDY))
        if not x.is_floating_point():
            raise ValueError(
                f"synflow: expected inputs of floating point, got {dtype_of(x)}: an input of ones would be "
                "one and the same token; use another method"
            )
        input_size = tuple(x.shape[1:])
    size = shape_of(input_size, "synflow")
    weights = prunable(model, exclude)

    def absolute(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).abs()

    with functional(model, weights, "eval", masks=masks, change=absolute) as frozen:
        r = frozen(torch.ones(1, *size, dtype=dtype)).sum()
        if not r.isfinite():
            raise ValueError(
                f"synflow: expected a finite flow, got {r.item()} in {dtype_of(r)}; the network is too deep "
                "or too wide for it" + ("" if dtype == torch.float64 else ': use float64, preset="paper"')
            )
        g = gradients(r, frozen)
        return {
            name: torch.zeros_like(leaf) if g_l is None else (g_l * leaf.detach()).abs_()
            for (name, leaf), g_l in zip(frozen.leaves.items(), g, strict=True)
        }
