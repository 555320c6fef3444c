"""|∂/∂m E‖f(z; θ ⊙ m) − f(z; (θ + Δθ) ⊙ m)‖²|"""

from collections.abc import Iterable, Iterator

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.scores.base import Masks, Scores, dtype_of, numbers, prunable, reordered, score_dtype
from sparseprune.scores.batches import Batches, check_micro_batch_size, pairs, repeatable
from sparseprune.scores.frozen import functional, normalised
from sparseprune.scores.losses import Loss
from sparseprune.scores.ranks import sum_over_ranks


def ntk_sap(
    model: nn.Module,
    batches: Batches | None = None,
    loss: Loss = F.cross_entropy,
    *,
    epsilon: float = 0.01,
    samples: int = 5,
    seed: int = 0,
    exclude: Iterable[str] = (),
    masks: Masks | None = None,
    micro_batch_size: int | None = None,
) -> Scores:
    """Score weights by what their removal does to the spectrum of the neural tangent kernel (NTK-SAP).

    The score is ``|∂J/∂m| / Σ`` of ``J = Σ ‖f(z; θ ⊙ m) − f(z; (θ + Δθ) ⊙ m)‖²``, whose mean is in
    proportion to the trace of the kernel. z is Gaussian noise of the batches' shapes, Δθ Gaussian noise with
    the standard deviation ε, and θ is drawn anew for every term, so that no value of a weight counts, only
    its place: each layer's own weights in a random order, which is a fresh draw for layers whose weights were
    drawn independently. Batch-norm uses the statistics of f(z; θ ⊙ m) for both, as constants. In
    :func:`sparseprune.prune` it takes 20 rounds, and 5 samples of every batch, as the paper for CIFAR-10.

    Args:
        model, exclude, masks, micro_batch_size: see :mod:`sparseprune.scores`.
        batches: only the inputs' shapes are used.
        loss: not used.
        epsilon: ε, above 0.
        samples: number of draws of (θ, Δθ, z) for every batch.
        seed: seed of all noise.
    Returns:
        see :mod:`sparseprune.scores`.
    Reference:
        Wang, Li, Sun, "NTK-SAP: Improving neural network pruning by aligning training dynamics", 2023,
        arXiv:2304.02840, algorithm 1.
    """
    if not epsilon > 0 or isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"ntk_sap: expected epsilon > 0 and samples >= 1, got {epsilon} and {samples}")
    generator = numbers(seed, "ntk_sap")
    weights = prunable(model, exclude)
    batches = repeatable(batches)
    with functional(model, weights, "eval") as frozen:
        gates = {
            name: torch.ones_like(leaf) if masks is None else masks[name].to(leaf.device, leaf.dtype)
            for name, leaf in frozen.leaves.items()
        }
        gates = {name: gate.requires_grad_() for name, gate in gates.items()}
        total = [torch.zeros_like(gate, dtype=score_dtype(gate)) for gate in gates.values()]
        for _ in range(samples):
            for x in _inputs(batches, micro_batch_size):
                theta = [
                    reordered(leaf.detach().flatten(), generator).view_as(leaf)
                    for leaf in frozen.leaves.values()
                ]
                moved = [t + epsilon * _normal(t, generator) for t in theta]
                z = _normal(x, generator)
                here = [t * gate for t, gate in zip(theta, gates.values(), strict=True)]
                there = [t * gate for t, gate in zip(moved, gates.values(), strict=True)]
                with frozen.batch_statistics(), torch.no_grad():
                    frozen(z, here)
                distance = (frozen(z, here) - frozen(z, there)).square().sum()
                g = torch.autograd.grad(distance, list(gates.values()), materialize_grads=True)
                for total_l, g_l in zip(total, g, strict=True):
                    total_l.add_(g_l)
        sum_over_ranks(total)
        kept = (gate.detach() for gate in gates.values())
        return normalised(frozen, [t_l.mul_(m_l).abs_() for t_l, m_l in zip(total, kept, strict=True)])


def _inputs(batches: Batches | None, micro_batch_size: int | None) -> Iterator[Tensor]:
    """Inputs of at most so many samples."""
    check_micro_batch_size(micro_batch_size)
    remedy = 'noise takes the place of one input tensor; use another method for others, such as "snip"'
    for x, _ in pairs("ntk_sap", batches, remedy):
        if x.dtype in (torch.int64, torch.int32):
            raise ValueError(
                f"ntk_sap: expected inputs of floating point, got {dtype_of(x)}: noise is no token; use "
                "another method"
            )
        yield from x.split(micro_batch_size or max(len(x), 1))


def _normal(like: Tensor, generator: numpy.random.Generator) -> Tensor:
    """Standard Gaussian noise of a tensor's shape; float32 for images in bytes."""
    noise = torch.from_numpy(generator.standard_normal(tuple(like.shape), dtype=numpy.float32))
    return noise.to(like.device, like.dtype if like.is_floating_point() else torch.float32)
