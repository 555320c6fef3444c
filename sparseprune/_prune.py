"""Prune a network before training: score, then select."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune import scores
from sparseprune._sparsify import sparsify
from sparseprune.cost.flops import flops_costs
from sparseprune.cost.seconds import check_batch_size, measured_costs, same_dense
from sparseprune.cost.speedup import masks_for
from sparseprune.scores.base import pairs
from sparseprune.select import budget, quotas
from sparseprune.select.blocks import Blocks, check_blocks
from sparseprune.select.quotas import Scope

SPARSITY = 0.9  # where no target is named
AUTO_BLOCKS = (1, 4, 16)  # each is timed in each layer


def prune(
    model: nn.Module,
    batches: scores.Batches | None = None,
    *,
    method: str | scores.Method = "snip",
    sparsity: float | None = None,
    flops: float | None = None,
    speedup: float | None = None,
    input_size: Sequence[int] | None = None,
    batch_size: int = 128,
    cost_exponent: float = budget.EXPONENT,
    scope: Scope = "global",
    block: tuple[int, int] | Literal["auto"] = (1, 1),
    rounds: int | None = None,
    loss: scores.Loss = F.cross_entropy,
    exclude: Iterable[str] = (),
    seed: int = 0,
    bn: str | None = None,
    temperature: float | None = None,
    min_per_layer: int = 0,
    allow_empty: bool = False,
) -> dict[str, Tensor]:
    """Score the weights of Linear and Conv layers and keep the best: so many, or as the network may cost.

    One of three targets: ``sparsity`` keeps the best k = round(n · (1 − sparsity)) weights; ``flops`` and
    ``speedup`` keep what scores best for its cost within a budget (see :mod:`sparseprune.select.budget`),
    for a weight of an early convolution, used at a thousand positions, costs a thousand times one of a
    linear layer. The model is left untouched; give the masks to ``sparsify`` or ``apply_masks``.

    Args:
        model: the network, at its initialisation.
        batches: iterable of (input, target) to score on; ``"random"`` and ``"magnitude"`` need none.
        method: ``"random"``, ``"magnitude"``, ``"gradient"``, ``"snip"`` or ``"grasp"`` (see
            ``sparseprune.scores``), or a function of your own, ``(model, batches, loss)`` to
            ``{parameter name: score}``, higher = keep.
        sparsity: fraction of the prunable weights that is removed, in [0, 1); 0.9 where no target is named.
        flops: fraction of the prunable layers' floating-point operations in a training step that stay, in
            (0, 1]; never exceeded.
        speedup: how many times faster a training step (forward and backward of the whole network at
            ``batch_size``) is to be than that of the dense model, 1 or more, measured on this machine. What
            ``sparsify`` makes of the masks is timed and the budget corrected, up to twice; the masks have it
            as ``masks.speedup``. Where the closest masks fall short by more than 10 %, a RuntimeWarning says
            by how much and why.
        input_size: shape of one sample, for ``flops`` and ``speedup``; by default that of the first of
            ``batches``.
        batch_size: samples in a training step, for ``speedup``.
        cost_exponent: weights are ranked by score / cost^exponent, 0 to 1, for ``flops`` and ``speedup``.
        scope: how ``sparsity`` is divided among layers. ``"global"`` ranks all weights together; ``"layer"``
            prunes every layer to the same sparsity; ``"erk"`` gives layers the densities of
            Erdős-Rényi-kernel graphs (Evci et al., 2020, arXiv:1911.11134), more to small ones; and
            ``{name of a parameter or module: density}`` names the fraction that each layer keeps, in place of
            ``sparsity``.
        block: ``(V, 1)``, V in 1, 2, 4, 8, 16, keeps or removes whole blocks of V rows × 1 column of
            ``weight.flatten(1)`` by the mean of their scores; n and k then count blocks. A layer whose rows V
            does not divide, such as one of 10 classes, is pruned weight by weight, ranked together with the
            others' blocks; n and k then count weights. ``"auto"``, with ``speedup``, chooses V for each layer
            of 1, 4 and 16: the blocks whose scores sum to most in the layer's share of the time.
        rounds: None, one round; pruning in several rounds is not supported.
        loss: function of (model(input), target) that returns a scalar.
        exclude: names of parameters or modules that stay dense; they have no mask.
        seed: seed of the method ``"random"``.
        bn: statistics that batch-norm uses while weights are scored, ``"train"`` (the batch's, the default)
            or ``"eval"`` (the running ones), for ``"gradient"``, ``"snip"`` and ``"grasp"``.
        temperature: T of ``"grasp"``, which divides the logits by it; 200 by default.
        min_per_layer: number of weights that each layer keeps at least.
        allow_empty: accept layers that keep no weight.
    Returns:
        ``{parameter name: bool tensor of the weight's shape}``, True = keep, in the order of the modules;
        with ``speedup`` a :class:`sparseprune.cost.speedup.TimedMasks`.
    Raises:
        TypeError: an argument has a wrong type, or the method has no such option.
        ValueError: an argument is out of range, the batches are empty, a score is not finite, a layer would
            keep no weight, or ``speedup`` is more than twice what one weight in each layer would give.
    """
    # Whatever is wrong with the arguments is said before the data is read.
    if rounds is not None:
        raise ValueError(f"prune: expected rounds=None (all weights are scored once), got {rounds!r}")
    excluded = [exclude] if isinstance(exclude, str) else list(exclude)
    score = scores.scorer(method, excluded, seed=seed, bn=bn, temperature=temperature)
    weights = scores.prunable(model, excluded)
    if not weights:
        raise ValueError(
            "prune: expected a model with Linear or Conv1d/2d/3d layers, found none to prune"
            + ("; exclude leaves nothing" if excluded else "")
        )
    _check_target({"sparsity": sparsity, "flops": flops, "speedup": speedup}, scope)
    shape = _check_block(block, speedup)
    budget.check_exponent(cost_exponent)
    check_batch_size(batch_size)
    shapes = {name: weight.shape for name, weight in weights.items()}
    wanted = SPARSITY if sparsity is None and flops is None and speedup is None else sparsity or 0.0
    block_rows = check_blocks(shapes, shape, min_per_layer, allow_empty)
    blocks = Blocks.unscored(shapes, block_rows, min_per_layer)
    quotas.check_scope(blocks, wanted, scope)

    if flops is None and speedup is None:
        blocks = blocks.scored(score(model, batches, loss))
        return blocks.masks(quotas.of_scope(blocks, wanted, scope), allow_empty=allow_empty)
    if input_size is None:
        input_size, batches = _sample_of(batches)
    if flops is not None:
        layers = {shape[0]: flops_costs(model, input_size, exclude=excluded)}
        limit = budget.limit_of_flops(flops, layers[shape[0]], blocks)
    else:
        layers = same_dense(
            {
                v: measured_costs(model, input_size, batch_size, block=(v, 1), exclude=excluded)
                for v in (AUTO_BLOCKS if block == "auto" else shape[:1])
            }
        )
    scored = budget.scores_for(method, score(model, batches, loss))

    def select(limit: float) -> budget.Selected:
        return budget.select_blocks_within(scored, layers, limit, cost_exponent, min_per_layer, allow_empty)

    if speedup is None:
        return select(limit).masks
    # As the budget is first divided: with one V for all layers.
    cheapest = min(layers.values(), key=lambda costs: math.fsum(cost.total(0) for cost in costs.values()))
    return masks_for(model, select, sparsify, cheapest, speedup, input_size, batch_size)


def _check_block(block: tuple[int, int] | str, speedup: float | None) -> tuple[int, int]:
    """The block of all layers; any that fits all where they are chosen."""
    if not isinstance(block, str):
        return block
    if block != "auto":
        raise ValueError(f'block: expected (V, 1) or "auto", got {block!r}')
    if speedup is None:
        raise ValueError('block: expected (V, 1); "auto" chooses V by measured time, for speedup= only')
    return (1, 1)


def _check_target(targets: dict[str, float | None], scope: Scope) -> None:
    named = {name: value for name, value in targets.items() if value is not None}
    if len(named) > 1:
        raise ValueError(
            f"prune: expected one of sparsity, flops and speedup, got {' and '.join(named)}; choose one"
        )
    for name, value in named.items():
        if isinstance(scope, Mapping):
            raise ValueError(
                f"{name}: expected none beside scope={{layer: density}}, which says what stays, got {value}"
            )
        if name == "sparsity":
            continue
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
        if name == "flops" and not 0 < value <= 1:
            raise ValueError(
                f"flops: expected the fraction of the operations that stays, in (0, 1], got {value}"
            )
        if name == "speedup" and not value >= 1:
            raise ValueError(f"speedup: expected 1 or more times as fast as dense, got {value}")
        if scope != "global":
            raise ValueError(f'scope: expected "global" with {name} (layers share one budget), got {scope!r}')


def _sample_of(batches: scores.Batches | None) -> tuple[tuple[int, ...], scores.Batches]:
    """The shape of one sample of the first batch, and all batches, that one too."""
    if batches is None:
        raise ValueError(
            "prune: expected input_size=, the shape of one sample, or batches to take it from: what a weight "
            "costs depends on it"
        )
    iterator = pairs("prune", batches)
    first = next(iterator)
    return tuple(first[0].shape[1:]), itertools.chain([first], iterator)
