"""Prune a network before training: score, then select."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune import scores
from sparseprune._sparsify import sparsify
from sparseprune.cost import seconds as cost
from sparseprune.cost import speedup as speedups
from sparseprune.scores import METHODS
from sparseprune.select import budget, masks

SELECTION_OPTIONS = ("allow_empty", "min_per_layer")
SPARSITY = 0.9  # where no target is named
AUTO_BLOCKS = (1, 4, 16)  # each is timed in each layer


def prune(
    model: nn.Module,
    batches: scores.Batches | None = None,
    *,
    method: str = "snip",
    sparsity: float | None = None,
    flops: float | None = None,
    speedup: float | None = None,
    input_size: Sequence[int] | None = None,
    batch_size: int = 128,
    cost_exponent: float = budget.EXPONENT,
    scope: str = "global",
    block: tuple[int, int] | Literal["auto"] = (1, 1),
    rounds: int | None = None,
    loss: scores.Loss = F.cross_entropy,
    exclude: Iterable[str] = (),
    seed: int = 0,
    **options: Any,
) -> dict[str, Tensor]:
    """Score the weights of Linear and Conv layers and keep the best: so many, or as the network may cost.

    One of three targets: ``sparsity`` keeps the best k = round(n · (1 − sparsity)) weights; ``flops`` and
    ``speedup`` keep what scores best for its cost within a budget (see :mod:`sparseprune.select.budget`),
    for a weight of an early convolution, used at a thousand positions, costs a thousand times one of a
    linear layer. The model is left untouched; give the masks to ``sparsify`` or ``apply_masks``.

    Args:
        model: the network, at its initialisation.
        batches: iterable of (input, target) to score on; ``"random"`` and ``"magnitude"`` need none.
        method: ``"random"``, ``"magnitude"``, ``"gradient"``, ``"snip"`` or ``"grasp"``; see
            ``sparseprune.scores``.
        sparsity: fraction of the prunable weights that is removed, in [0, 1); 0.9 where no target is named.
        flops: fraction of the prunable layers' floating-point operations in a training step that stay, in
            (0, 1]; never exceeded.
        speedup: how many times faster a training step (forward and backward of the whole network at
            ``batch_size``) is to be than that of the dense model, 1 or more, measured on this machine. What
            ``sparsify`` makes of the masks is timed and the budget corrected, up to twice; the masks have it
            as ``masks.speedup``.
        input_size: shape of one sample, for ``flops`` and ``speedup``; by default that of the first of
            ``batches``.
        batch_size: samples in a training step, for ``speedup``.
        cost_exponent: weights are ranked by score / cost^exponent, 0 to 1, for ``flops`` and ``speedup``.
        scope: ``"global"`` ranks all weights together, ``"layer"`` prunes every layer to the same sparsity
            (with ``sparsity`` only).
        block: ``(V, 1)``, V in 1, 2, 4, 8, 16, keeps or removes whole blocks of V rows × 1 column of
            ``weight.flatten(1)`` by the mean of their scores; n and k then count blocks. A layer whose rows V
            does not divide, such as one of 10 classes, is pruned weight by weight, ranked together with the
            others' blocks; n and k then count weights. ``"auto"``, with ``speedup``, chooses V for each layer
            of 1, 4 and 16: the blocks whose scores sum to most in the layer's share of the time.
        rounds: None, one round; pruning in several rounds is not supported.
        loss: ``loss(model(input), target)`` is a scalar.
        exclude: names of parameters or modules that stay dense; they have no mask.
        seed: of ``method="random"``.
        **options: of the method (``bn``, ``temperature``), and of the selection: ``min_per_layer`` (weights
            that each layer keeps at least) and ``allow_empty`` (accept layers that keep none).
    Returns:
        ``{parameter name: bool tensor of the weight's shape}``, True = keep, in the order of the modules;
        with ``speedup`` a :class:`sparseprune.cost.speedup.TimedMasks`.
    Raises:
        TypeError: an argument has a wrong type, or an option is unknown.
        ValueError: an argument is out of range, the batches are empty, a score is not finite, or a layer
            would keep no weight.
    """
    if method not in METHODS:
        raise ValueError(f"prune: expected method to be one of {', '.join(METHODS)}, got {method!r}")
    if rounds is not None:
        raise ValueError(f"prune: expected rounds=None (all weights are scored once), got {rounds!r}")
    score = METHODS[method]
    accepted = [
        name
        for name, parameter in inspect.signature(score).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in ("exclude", "seed")
    ]
    if unknown := [name for name in options if name not in accepted and name not in SELECTION_OPTIONS]:
        raise TypeError(
            f"prune: expected options of method {method!r} ({', '.join([*accepted, *SELECTION_OPTIONS])}), "
            f"got {', '.join(unknown)}"
        )
    selection = {name: options.pop(name) for name in SELECTION_OPTIONS if name in options}
    excluded = [exclude] if isinstance(exclude, str) else list(exclude)
    weights = scores.prunable(model, excluded)
    if not weights:
        raise ValueError(
            "prune: expected a model with Linear or Conv1d/2d/3d layers, found none to prune"
            + ("; exclude leaves nothing" if excluded else "")
        )
    # Whatever is wrong with the arguments of the selection is said before the data is read.
    if flops is None and speedup is None and sparsity is None:
        sparsity = SPARSITY
    shape = _check_block(block, speedup)
    _check_target({"sparsity": sparsity, "flops": flops, "speedup": speedup}, scope)
    budget.check_exponent(cost_exponent)
    cost.check_batch_size(batch_size)
    shapes = {name: weight.shape for name, weight in weights.items()}
    masks.check_selection(shapes, 0.0 if sparsity is None else sparsity, scope, shape, **selection)
    if method == "random":
        options["seed"] = seed
    if sparsity is not None:
        scored = score(model, batches, loss, exclude=excluded, **options)
        return masks.select_masks(scored, sparsity, scope=scope, block=shape, **selection)
    if input_size is None:
        input_size, batches = _sample_of(batches)
    within: dict[str, Any] = {"exponent": cost_exponent, **selection}
    if flops is not None:
        costs = cost.flops_costs(model, input_size, exclude=excluded)
        everything = math.fsum(c.dense for c in costs.values())
        floor = selection.get("min_per_layer", 0)
        _check_flops(flops, everything, budget.least_costs(shapes, costs, block=shape, min_per_layer=floor))
        scored = budget_scores(method, model, batches, loss, exclude=excluded, **options)
        return budget.select_within(scored, costs, flops * everything, block=shape, **within)
    assert speedup is not None
    layers = {
        rows: cost.measured_costs(model, input_size, batch_size, block=(rows, 1), exclude=excluded)
        for rows in (AUTO_BLOCKS if block == "auto" else shape[:1])
    }
    scored = budget_scores(method, model, batches, loss, exclude=excluded, **options)
    return speedups.masks_for(
        model,
        lambda limit: budget.select_blocks_within(scored, layers, limit, **within),
        sparsify,
        {name: min((of[name] for of in layers.values()), key=lambda of: of.of(0)) for name in shapes},
        speedup,
        input_size,
        batch_size,
    )


def budget_scores(method: str, *arguments: Any, **options: Any) -> scores.Scores:
    """Scores by a method, called with these arguments, for masks within a budget."""
    scored = METHODS[method](*arguments, **options)
    return budget.heavy_tailed(scored) if method == "random" else scored


def _check_block(block: tuple[int, int] | str, speedup: float | None) -> tuple[int, int]:
    """The block of all layers; any that fits all where they are chosen."""
    if not isinstance(block, str):
        return block
    if block != "auto":
        raise ValueError(f'block: expected (V, 1) or "auto", got {block!r}')
    if speedup is None:
        raise ValueError('block: expected (V, 1); "auto" chooses V by measured time, for speedup= only')
    return (1, 1)


def _check_target(targets: dict[str, float | None], scope: str) -> None:
    named = {name: value for name, value in targets.items() if value is not None}
    if len(named) > 1:
        raise ValueError(
            f"prune: expected one of sparsity, flops and speedup, got {' and '.join(named)}; choose one"
        )
    ((name, value),) = named.items()
    if name == "sparsity":
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if name == "flops" and not 0 < value <= 1:
        raise ValueError(f"flops: expected the fraction of the operations that stays, in (0, 1], got {value}")
    if name == "speedup" and not value >= 1:
        raise ValueError(f"speedup: expected 1 or more times as fast as dense, got {value}")
    if scope != "global":
        raise ValueError(f'scope: expected "global" with {name} (layers share one budget), got {scope!r}')


def _check_flops(flops: float, everything: float, least: dict[str, float]) -> None:
    """Raise ValueError where the weights that must stay take more operations."""
    if math.fsum(least.values()) > flops * everything:
        needed = math.ceil(math.fsum(least.values()) / everything * 1e4) / 1e4  # up: what it says suffices
        most = sorted(least, key=lambda name: -least[name])[:3]
        raise ValueError(
            f"flops: expected at least {needed:g}, what min_per_layer takes, got {flops:g}; most of it is "
            + ", ".join(f"{name!r} ({least[name] / everything:.2g})" for name in most)
        )


def _sample_of(batches: scores.Batches | None) -> tuple[tuple[int, ...], scores.Batches]:
    """The shape of one sample of the first batch, and all batches, that one too."""
    if batches is None:
        raise ValueError(
            "prune: expected input_size=, the shape of one sample, or batches to take it from: what a weight "
            "costs depends on it"
        )
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"prune: expected batches to be an iterable of (input, target), got {type(batches).__name__}"
        )
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError("prune: expected at least one batch, got none")
    if not isinstance(first, tuple | list) or len(first) != 2 or not isinstance(first[0], Tensor):
        raise TypeError(
            "prune: expected each item of batches to be a pair of tensors (input, target), got a "
            f"{type(first).__name__}; wrap a single batch in a list: [(input, target)]"
        )
    rest = itertools.chain([first], iterator)
    return tuple(first[0].shape[1:]), rest
