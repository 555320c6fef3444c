"""Scores of the prunable weights of a network, one file and one function a method: higher score = keep.

All take the same arguments and leave the model as it was: weights, buffers, gradients, ``requires_grad``,
modes and torch's random state are bit-identical afterwards, also after an error. Forward passes run with
dropout off (everything but normalisation is in evaluation mode), so a score depends on the model and the data
alone. Under torch.distributed gradients are summed over all ranks, each of which must call the method with
its own batches and the same model.

Args:
    model: the network, in float32, float64 or bfloat16.
    batches: iterable of (input, target), or of any objects that ``loss`` takes, such as dicts; their tensors
        are moved to the model's device, one batch at a time.
    loss: function of (model(input), target) that returns a scalar; or, if its first parameter is named
        ``model``, of the model and the batch as it is, such as ``lambda model, batch: model(**batch).loss``.
        With ``micro_batch_size`` a mean over samples.
    bn: statistics that batch-norm uses, the batch's (``"train"``, as in the training that follows) or the
        running ones (``"eval"``).
    exclude: names of parameters or modules to leave out.
    masks: ``{parameter name: bool tensor}`` of an earlier round: the network is scored with the weights that
        they keep.
    micro_batch_size: samples that are computed at once, where a batch does not fit into memory: gradients
        are those of whole batches but for rounding, and batch-norm's own statistics with ``bn="train"``.
Returns:
    ``{parameter name: tensor of the weight's shape}``, float64 for weights in float64, else float32.
Raises:
    ValueError: there are no batches, or ``loss`` is not a scalar, or a weight has no part in it.
    TypeError: ``batches`` is not an iterable of (input, target) beside a loss of these, or weights are
        float16 or complex.
"""

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune.scores.base import Masks, Scores, prunable
from sparseprune.scores.batches import Batches, items
from sparseprune.scores.force import force
from sparseprune.scores.gradient import gradient
from sparseprune.scores.grasp import grasp, grasp_abs
from sparseprune.scores.losses import Loss
from sparseprune.scores.magnitude import magnitude
from sparseprune.scores.ntk_sap import ntk_sap
from sparseprune.scores.prospr import prospr
from sparseprune.scores.random import random
from sparseprune.scores.samples import Sample
from sparseprune.scores.snip import iter_snip, snip
from sparseprune.scores.synflow import synflow

Method = Callable[[nn.Module, Batches | None, Loss], Mapping[str, Tensor]]
# (model, batches, loss, masks of the round before) to scores
Scorer = Callable[..., Scores]

METHODS: dict[str, Callable[..., Scores]] = {
    "random": random,
    "magnitude": magnitude,
    "gradient": gradient,
    "snip": snip,
    "iter_snip": iter_snip,
    "force": force,
    "grasp": grasp,
    "grasp_abs": grasp_abs,
    "synflow": synflow,
    "prospr": prospr,
    "ntk_sap": ntk_sap,
}
# Options of a method that `prune` hands on.
OPTIONS: dict[str, tuple[str, ...]] = {
    "random": ("seed",),
    "magnitude": (),
    "gradient": ("bn", "micro_batch_size"),
    "snip": ("bn", "micro_batch_size"),
    "iter_snip": ("bn", "micro_batch_size"),
    "force": ("bn", "micro_batch_size"),
    "grasp": ("bn", "temperature", "micro_batch_size"),
    "grasp_abs": ("bn", "temperature", "micro_batch_size"),
    "synflow": ("input_size",),
    "prospr": ("bn",),
    "ntk_sap": ("micro_batch_size", "seed"),
}
# Methods whose scores do not depend on what was removed before.
ONE_ROUND = ("random", "magnitude")
# Options of a method as its paper has them, and as its authors' code has them where that differs.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {name: {"paper": {}} for name in METHODS}
PRESETS["snip"]["authors"] = {"bn": "eval"}
PRESETS["grasp"]["authors"] = PRESETS["grasp_abs"]["authors"] = {"halves": True}
PRESETS["synflow"]["authors"] = {"dtype": torch.float32}
PRESETS["prospr"]["authors"] = {"lr": 0.5, "momentum": 0.9, "detach_first": True}
PRESETS["iter_snip"]["authors"] = PRESETS["force"]["authors"] = {"batches_in_turn": True}
# Rounds of the methods whose papers have several.
ROUNDS = {"iter_snip": 60, "force": 60, "synflow": 100, "ntk_sap": 20}
# Methods that may take back what an earlier round removed.
REVIVING = ("force",)


def scorer(
    method: str | Method,
    exclude: Iterable[str] = (),
    *,
    preset: str = "paper",
    seed: int = 0,
    input_size: Sample | None = None,
    **options: Any,
) -> Scorer:
    """Bind the options of a method: what is left takes (model, batches, loss, masks).

    Args:
        method: a name in ``METHODS``, or a function ``(model, batches, loss) -> {parameter name: score}`` of
            the user's own, higher = keep.
        exclude: names of parameters or modules that are not scored.
        preset: ``"paper"``, or ``"authors"`` for the methods whose authors' code differs.
        seed: seed of the methods that draw random numbers.
        input_size: shape of one sample, for the methods that make one, or example inputs.
        options: the method's other options; None leaves one as the preset has it.
    Returns:
        a function whose result has a score of the weight's shape for every prunable weight that is not
        excluded, in the order of the modules.
    Raises:
        TypeError: the method is neither a name nor a function, or has no such option.
        ValueError: the name or the preset is not known.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not isinstance(method, str):
        if not callable(method):
            raise TypeError(
                "prune: expected method to be a name or a function (model, batches, loss) -> "
                f"{{parameter name: score}}, got {type(method).__name__}"
            )
        if given or preset != "paper":
            named = ", ".join([*given, *(["preset"] if preset != "paper" else [])])
            raise TypeError(
                f"prune: expected no options of a method of your own, got {named}; "
                "bind them with functools.partial"
            )
        return functools.partial(_own, method, list(exclude))
    if method not in METHODS:
        raise ValueError(
            f"prune: expected method to be one of {', '.join(METHODS)}, got {method!r}; "
            "or give a function (model, batches, loss) -> {parameter name: score}"
        )
    if preset not in PRESETS[method]:
        raise ValueError(
            f"preset: expected {' or '.join(map(repr, PRESETS[method]))} for method {method!r}, "
            f"got {preset!r}"
        )
    offered = OPTIONS[method]
    if unknown := [name for name in given if name not in offered]:
        raise TypeError(
            f"prune: expected options of method {method!r} ({', '.join(offered) or 'it has none'}), "
            f"got {', '.join(unknown)}"
        )
    bound = {**PRESETS[method][preset], **given}
    if "seed" in offered:
        bound["seed"] = seed
    if "input_size" in offered:
        bound["input_size"] = input_size
    batches_in_turn = bound.pop("batches_in_turn", False)
    score = functools.partial(METHODS[method], exclude=list(exclude), **bound)
    if method in ONE_ROUND:
        return lambda model, batches, loss, masks=None: score(model, batches, loss)
    return _in_turn(score) if batches_in_turn else _with_masks(score)


def rounds_of(method: str | Method, rounds: int | None) -> int:
    """How many rounds there are: what was asked for, or what the method's paper has.

    Raises:
        ValueError: it is no such number, or more than 1 where all rounds would be alike.
    """
    if rounds is None:
        return ROUNDS.get(method, 1) if isinstance(method, str) else 1
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds: expected a whole number, 1 or more, got {rounds!r}")
    if rounds > 1 and method in ONE_ROUND:
        raise ValueError(
            f"rounds: expected 1 with method {method!r}, whose scores do not depend on what is removed, "
            f"got {rounds}"
        )
    return rounds


def _with_masks(score: Callable[..., Scores]) -> Scorer:
    def score_at(model: nn.Module, batches: Batches | None, loss: Loss, masks: Masks | None = None) -> Scores:
        return score(model, batches, loss, **({} if masks is None else {"masks": masks}))

    return score_at


def _in_turn(score: Callable[..., Scores]) -> Scorer:
    """Each call scores the next of the batches alone, the first again after the last."""
    calls = itertools.count()

    def score_one(
        model: nn.Module, batches: Batches | None, loss: Loss, masks: Masks | None = None
    ) -> Scores:
        every = list(items("prune", batches, loss))
        return score(model, [every[next(calls) % len(every)]], loss, masks=masks)

    return score_one


def _own(
    method: Method,
    exclude: list[str],
    model: nn.Module,
    batches: Batches | None,
    loss: Loss,
    masks: Masks | None = None,
) -> Scores:
    """Scores of a user's own method: of every prunable weight, in its shape and on its device."""
    if masks is not None:
        model = _masked_copy(model, masks)
    scored = method(model, batches, loss)
    if not isinstance(scored, Mapping):
        raise TypeError(
            f"prune: expected the method to return {{parameter name: score}}, got {type(scored).__name__}"
        )
    result = {}
    for name, weight in prunable(model, exclude).items():
        score = scored.get(name)
        if not isinstance(score, Tensor) or score.shape != weight.shape or not score.is_floating_point():
            got = f"{score.dtype} {list(score.shape)}" if isinstance(score, Tensor) else repr(score)
            raise ValueError(
                f"prune: expected the method to score {name!r} with a floating-point tensor of shape "
                f"{list(weight.shape)}, got {got}"
            )
        result[name] = score.detach().to(weight.device)
    return result


def _masked_copy(model: nn.Module, masks: Masks) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).masked_fill_(~mask, 0)
    return model
