"""Prune a network before training: score, then select."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune import masks, scores

METHODS: dict[str, Callable[..., scores.Scores]] = {
    "random": scores.random,
    "magnitude": scores.magnitude,
    "gradient": scores.gradient,
    "snip": scores.snip,
    "grasp": scores.grasp,
}

SELECTION_OPTIONS = ("allow_empty", "min_per_layer")


def prune(
    model: nn.Module,
    batches: scores.Batches | None = None,
    *,
    method: str = "snip",
    sparsity: float = 0.9,
    scope: str = "global",
    block: tuple[int, int] = (1, 1),
    rounds: int | None = None,
    loss: scores.Loss = F.cross_entropy,
    exclude: Iterable[str] = (),
    seed: int = 0,
    **options: Any,
) -> dict[str, Tensor]:
    """Score the weights of Linear and Conv layers and keep the best k = round(n · (1 − sparsity)).

    The model is left untouched; give the masks to ``sparsify`` or ``apply_masks``.

    Args:
        model: the network, at its initialisation.
        batches: iterable of (input, target) to score on; ``"random"`` and ``"magnitude"`` need none.
        method: ``"random"``, ``"magnitude"``, ``"gradient"``, ``"snip"`` or ``"grasp"``; see
            ``sparseprune.scores``.
        sparsity: fraction of the prunable weights that is removed, in [0, 1).
        scope: ``"global"`` ranks all weights together, ``"layer"`` prunes every layer to the same sparsity.
        block: ``(V, 1)``, V in 1, 2, 4, 8, 16, keeps or removes whole blocks of V rows × 1 column of
            ``weight.flatten(1)`` by the mean of their scores; n and k then count blocks. A layer whose rows V
            does not divide, such as one of 10 classes, is pruned weight by weight, ranked together with the
            others' blocks; n and k then count weights.
        rounds: None, one round; pruning in several rounds is not supported.
        loss: ``loss(model(input), target)`` is a scalar.
        exclude: names of parameters or modules that stay dense; they have no mask.
        seed: of ``method="random"``.
        **options: of the method (``bn``, ``temperature``), and of the selection: ``min_per_layer`` (weights
            that each layer keeps at least) and ``allow_empty`` (accept layers that keep none).
    Returns:
        ``{parameter name: bool tensor of the weight's shape}``, True = keep, in the order of the modules.
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
    masks.check_selection(
        {name: weight.shape for name, weight in weights.items()}, sparsity, scope, block, **selection
    )
    if method == "random":
        options["seed"] = seed
    scored = score(model, batches, loss, exclude=excluded, **options)
    return masks.select_masks(scored, sparsity, scope=scope, block=block, **selection)
