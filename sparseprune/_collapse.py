"""What prune says and does of layers that would be empty, or whose scores mean nothing."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy
import torch
from torch import Tensor, nn

from sparseprune.scores.base import numbers
from sparseprune.scores.batches import Batches
from sparseprune.scores.paths import NoPathsError, live
from sparseprune.scores.samples import Sample, sample_in
from sparseprune.select.blocks import Blocks, listed
from sparseprune.select.quotas import FALLBACK, Counts
from sparseprune.select.ties import decided_by_position, rankings

TIES = 0.01  # of the kept weights, from which on they are reported


def living_floor(
    model: nn.Module,
    batches: Batches | None,
    sample: Sample | None,
    as_in_model: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    blocks: Blocks,
    count: Callable[[Blocks], Counts],
) -> int:
    """The least power of two for min_per_layer with which paths from input to output lead through all layers.

    One weight keeps a layer from being empty, but the layer after it may not use that very weight's output.

    Args:
        model: the network.
        batches: batches to take the shape of a sample from, where ``sample`` is None.
        sample: shape of one sample, or example inputs.
        as_in_model: function that makes masks of the blocks those of the model's weights.
        blocks: scored blocks, with the floors that were too low.
        count: quota, from blocks to the numbers that layers keep.
    Returns:
        the floor; 1 where paths cannot be followed, or no floor would do.
    """
    if sample is None and batches is not None and not isinstance(batches, Iterator):
        sample = sample_in(next(iter(batches), None))
    if sample is None:
        return 1
    kept, floor = blocks.weights_of(count(blocks)), 1
    while floor <= max(shape.numel() for shape in blocks.shapes.values()):
        raised = blocks.with_floor(floor)
        if raised.weights_of(raised.floors) > kept:
            return 1
        masks = as_in_model(raised.masks(count(raised), allow_empty=True))
        try:
            alive = live(model, masks, sample)
        except NoPathsError:
            return 1
        if all(alive[name].any() for name in masks):
            return floor
        floor *= 2
    return 1


def warn_of_collapse(layers: Sequence[str], stacklevel: int) -> None:
    """Warn that layers would be empty by one ranking of all weights, so that another rule was taken.

    Args:
        layers: names of the weights of which none would stay.
        stacklevel: how far above whoever is to be told stands.
    """
    warnings.warn(
        "prune: expected every layer to keep a weight, got none kept by one ranking of all layers in "
        f'{listed(layers)}, so that layers share the weights by scope="{FALLBACK}"; to choose yourself, name '
        'a scope: "balanced", "erk" or "layer", or "global" with min_per_layer=1',
        RuntimeWarning,
        stacklevel=stacklevel + 1,
    )


def check_zero_scores(zero_scores: str) -> None:
    """Raise ValueError for what is no way to treat layers whose scores are all zero."""
    if zero_scores not in ("refuse", "random"):
        raise ValueError(f'zero_scores: expected "refuse" or "random", got {zero_scores!r}')


def layers_of_zeros(
    scores: Mapping[str, Tensor], names: Sequence[str], masks: Mapping[str, Tensor] | None = None
) -> list[str]:
    """The layers among these that have weights, all of whose scores are zero: those of kept weights."""

    def is_zero(name: str) -> bool:
        score = scores[name] if masks is None else scores[name][masks[name]]
        return score.numel() > 0 and not bool(score.any())

    return [name for name in names if is_zero(name)]


def refuse_zeros(model: nn.Module, zero: Sequence[str], layers: int) -> None:
    """Raise ValueError where layers have no scores but zeros; the error says why, and what helps.

    Args:
        model: the network.
        zero: names of the layers' weights.
        layers: number of all layers that are scored.
    """
    if not zero:
        return
    parameters = dict(model.named_parameters(remove_duplicate=False))
    causes = [
        name
        for name, parameter in parameters.items()
        if name.endswith(("weight", "gamma", "scale")) and parameter.numel() and not bool(parameter.any())
    ]
    cause = "no gradient reaches them, or it is too small for their dtype"
    if causes:
        are = "is" if len(causes) == 1 else "are"
        cause = f"{listed(causes)} {are} zero at initialisation, and nothing is learned through zeros"
    raise ValueError(
        f"prune: expected scores that tell weights apart, got only zeros in {len(zero)} of {layers} layers: "
        f"{listed(zero)}. The likely cause: {cause}. Initialise otherwise, prune after a few steps of "
        'training, leave these layers dense (exclude=), or let chance choose: zero_scores="random"'
    )


def scored_by_chance(
    scores: Mapping[str, Tensor],
    zero: Sequence[str],
    blocks: Blocks,
    seed: int,
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The scores, those of some layers replaced by a random order of the scores that all others have.

    Ranked together, such a layer keeps about the share that the others do; alone, a random choice. Where all
    layers are replaced, scores are uniform noise.

    Args:
        scores: ``{parameter name: score}`` of all layers.
        zero: names of the layers that are replaced.
        blocks: blocks that are kept or removed together, and so get one score.
        seed: seed of the order, which is the same in every round.
        masks: of the round before: only what it kept counts.
    """
    generator = numbers(seed, "zero_scores")
    scored = blocks.scored(scores)
    result = dict(scores)

    def kept(name: str) -> Tensor:
        if masks is None:
            return torch.ones_like(scored.scores[name], dtype=torch.bool)
        return blocks.kept(name, masks[name])

    others = [scored.scores[name][kept(name)].double().cpu() for name in scores if name not in zero]
    pool = numpy.sort(torch.cat(others).numpy()) if any(map(len, others)) else numpy.arange(2.0)
    for name in zero:
        of_layer, mask = scored.scores[name], kept(name).cpu()
        noise = torch.from_numpy(generator.random(tuple(of_layer.shape)))
        number = int(mask.sum())
        # Equally spaced quantiles of what the others have.
        places = (torch.arange(number, dtype=torch.float64) + 0.5) / max(number, 1) * (len(pool) - 1)
        chosen = torch.zeros(of_layer.shape, dtype=torch.float64)
        quantiles = torch.from_numpy(numpy.interp(places.numpy(), numpy.arange(len(pool)), pool))
        chosen[mask] = quantiles[noise[mask].argsort().argsort()]
        result[name] = blocks.spread(name, chosen.to(of_layer))
    return result


def warn_of_ties(blocks: Blocks, masks: Mapping[str, Tensor], together: bool, stacklevel: int) -> None:
    """Warn where more than a hundredth of the kept weights have scores that removed ones have, too.

    Args:
        blocks: scored blocks.
        masks: what was kept.
        together: whether layers shared one ranking.
        stacklevel: how far above whoever is to be told stands.
    """
    counts = {name: int(blocks.kept(name, mask).count_nonzero()) for name, mask in masks.items()}
    found = [decided_by_position(blocks, masks, names) for names in rankings(blocks, counts, together)]
    all_kept, tied = blocks.weights_of(counts), sum(number for number, _ in found)
    if tied > TIES * all_kept:
        layers = [name for _, names in found for name in names]
        warnings.warn(
            f"prune: expected scores that tell weights apart, got {tied} of {all_kept} kept weights "
            f"({tied / all_kept:.0%}) whose scores removed ones have, too, in {listed(layers)}: the earlier "
            "position was kept; score more batches, use another method, or keep another number of weights",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )
