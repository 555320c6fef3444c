"""Prune a network before training: score, then select."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune import scores
from sparseprune._collapse import (
    check_zero_scores,
    layers_of_zeros,
    living_floor,
    refuse_zeros,
    scored_by_chance,
    warn_of_collapse,
    warn_of_ties,
)
from sparseprune._sparsify import sparsify
from sparseprune.cost.flops import flops_costs
from sparseprune.cost.seconds import check_batch_size, measured_costs, same_dense
from sparseprune.cost.speedup import masks_for
from sparseprune.format.weights import (
    as_stored,
    fused_projections,
    in_one,
    in_thirds,
    outputs_first,
    stored_otherwise,
)
from sparseprune.scores.batches import repeatable
from sparseprune.scores.losses import takes_model
from sparseprune.scores.ranks import same_on_all_ranks
from sparseprune.scores.samples import Sample, sample_given, sample_of_first
from sparseprune.select import budget, quotas
from sparseprune.select.blocks import Blocks, check_blocks, rows_of_blocks
from sparseprune.select.choose import CollapseError, choose_masks, layers_by_scores
from sparseprune.select.patterns import NofM, check_n_of_m, check_pattern
from sparseprune.select.quotas import Scope
from sparseprune.select.rounds import in_rounds
from sparseprune.select.targets import check_block_for, check_targets

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
    example_inputs: Any = None,
    batch_size: int = 128,
    cost_exponent: float = budget.EXPONENT,
    scope: Scope | None = None,
    block: tuple[int, int] | Literal["auto", "channel"] = (1, 1),
    pattern: str | None = None,
    keep: str | Iterable[str] = (),
    rounds: int | None = None,
    preset: str = "paper",
    loss: scores.Loss = F.cross_entropy,
    exclude: Iterable[str] = (),
    seed: int = 0,
    bn: str | None = None,
    temperature: float | None = None,
    micro_batch_size: int | None = None,
    min_per_layer: int = 0,
    allow_empty: bool = False,
    zero_scores: Literal["refuse", "random"] = "refuse",
) -> dict[str, Tensor]:
    """Score the weights of Linear and Conv layers and keep the best: so many, or as the network may cost.

    One of three targets: ``sparsity`` keeps the best k = round(n · (1 − sparsity)) weights; ``flops`` and
    ``speedup`` keep what scores best for its cost within a budget (see :mod:`sparseprune.select.budget`),
    for a weight of an early convolution, used at a thousand positions, costs a thousand times one of a
    linear layer. The model is left untouched; give the masks to ``sparsify`` or ``apply_masks``.

    Under torch.distributed every rank must call this, with its own batches: scores are summed over the ranks,
    and all get the same masks, bit for bit.

    Args:
        model: the network, at its initialisation.
        batches: iterable of (input, target) to score on, or of whatever ``loss`` takes; ``"random"`` and
            ``"magnitude"`` need none, nor does ``"synflow"`` with ``input_size``.
        method: ``"random"``, ``"magnitude"``, ``"gradient"``, ``"snip"``, ``"iter_snip"``, ``"force"``,
            ``"grasp"``, ``"grasp_abs"``, ``"synflow"``, ``"prospr"`` or ``"ntk_sap"`` (see
            ``sparseprune.scores``), or a function of your own, ``(model, batches, loss)`` to
            ``{parameter name: score}``, higher = keep.
        sparsity: fraction of the prunable weights that is removed, in [0, 1); 0.9 where no target is named.
        flops: fraction of the prunable layers' floating-point operations in a training step that stay, in
            (0, 1]; never exceeded.
        speedup: how many times faster a training step (forward and backward of the whole network at
            ``batch_size``) is to be than that of the dense model, 1 or more, measured on this machine. What
            ``sparsify`` makes of the masks is timed and the budget corrected, up to twice; the masks have it
            as ``masks.speedup``; a bar, or logging, tells of it as in ``sparsify``. Where the closest masks
            fall short by more than 10 %, a RuntimeWarning says by how much and why.
        input_size: shape of one sample, for ``flops``, ``speedup`` and ``"synflow"``; by default that of the
            first of ``batches``.
        example_inputs: in its place, for models that take something else than one tensor of floating point:
            a tensor, a tuple of arguments, a dict of arguments by name, or a pair of both, (args, kwargs), as
            ``torch.export`` has them; samples lie along dim 0, and any number of them will do. By default the
            first of ``batches``, where it is a dict.
        batch_size: samples in a training step, for ``speedup``.
        cost_exponent: weights are ranked by score / cost^exponent, 0 to 1, for ``flops`` and ``speedup``.
        scope: how ``sparsity`` is divided among layers. By default all weights are ranked together, as with
            ``"global"``; where that would leave a layer without weights, as it often does with the queries
            and keys of transformers, layers share them as with ``"balanced"`` instead, with a RuntimeWarning.
            ``"global"`` ranks all weights together, and an empty layer is an error; ``"layer"`` prunes every
            layer to the same sparsity; ``"erk"`` gives layers the densities of Erdős-Rényi-kernel graphs
            (Evci et al., 2020, arXiv:1911.11134), more to small ones; ``"balanced"`` gives all layers equally
            many weights, at most all of them; ``"smart_ratio"`` gives the last layer density 0.3 and the
            others less and less with depth (Su et al., 2020, arXiv:2009.11094); and ``{name of a parameter or
            module: density}`` names the fraction that each layer keeps, in place of ``sparsity``. Queries,
            keys and values of one weight (``nn.MultiheadAttention``, GPT-2's ``c_attn``, timm's ``qkv``) are
            three layers here.
        block: ``(V, 1)``, V in 1, 2, 4, 8, 16, keeps or removes whole blocks of V rows × 1 column of
            ``weight.flatten(1)``, outputs × inputs (``weight.t()`` of transformers' ``Conv1D``; of experts
            all their outputs, one below the other), by the mean of their scores; n and k then count blocks.
            A layer whose rows V does not divide, such as one of 10 classes, is pruned weight by weight,
            ranked together with the others' blocks; n and k then count weights. ``"auto"``, with ``speedup``,
            chooses V for each layer of 1, 4 and 16: the blocks whose scores sum to most in the layer's share
            of the time.
            ``"channel"`` keeps or removes whole output channels (rows of ``weight.flatten(1)``): as many as
            fit into k, up to one of the widest layer fewer. The network's last layer, whose rows are the
            classes, keeps all of them.
        pattern: None, or where weights lie within a layer. ``"N:M"``, such as ``"2:4"``: the N best of every
            M consecutive inputs (of a convolution, for each position of its kernel) stay, in place of
            ``sparsity``; a layer whose inputs M does not divide keeps all its weights. ``"fan_in"``: all rows
            of a layer keep equally many, round(count / rows) of the layer's count and at least one, so that
            what stays is a multiple of the rows and may be off k. With ``block=(V, 1)`` both are about rows
            of blocks.
        keep: names of parameters or modules that keep all their weights and count among the k (with
            ``scope="layer"`` and densities they come on top); ``"first"`` and ``"last"`` are the first and
            the last layer, unless a module has that name.
        rounds: how often weights are scored, each time in the network that is left, of which a round removes
            always the same share (for ``"N:M"``, rounded to whole numbers of M); by default once, with
            ``"iter_snip"`` and ``"force"`` 60 times, with ``"ntk_sap"`` 20 and with ``"synflow"`` 100 times,
            as in their papers. What a round removed stays so, but for ``"force"``, where it may return. A
            function of your own is given a copy of the model with zeros. Not with ``speedup``.
        preset: ``"paper"``, the method as its paper has it, or ``"authors"``, as its authors' code has it
            where that differs; see the methods in ``sparseprune.scores``.
        loss: function of (model(input), target) that returns a scalar; or, if its first parameter is named
            ``model``, of the model and a batch of any kind, such as
            ``loss=lambda model, batch: model(**batch).loss``. The model that it is given is the model itself,
            on which it may call what it likes, such as ``model.training_step(batch, 0)``.
        exclude: names of parameters or modules that stay dense; they have no mask.
        seed: seed of the methods ``"random"`` and ``"ntk_sap"``.
        bn: statistics that batch-norm uses while weights are scored, ``"train"`` (the batch's, the default)
            or ``"eval"`` (the running ones), for all methods of data but ``"ntk_sap"``.
        temperature: T of ``"grasp"``, which divides the logits by it; 200 by default, and 1 where the loss
            takes the model.
        micro_batch_size: samples that are scored at once, where a batch does not fit into memory; see
            ``sparseprune.scores``.
        min_per_layer: number of weights that each layer keeps at least.
        allow_empty: accept layers that keep no weight.
        zero_scores: what becomes of layers that have no scores but zeros, whose masks would be made by
            position: ``"refuse"`` raises ValueError, ``"random"`` gives them the scores of all other layers,
            in a random order from ``seed``.
    Returns:
        ``{parameter name: bool tensor of the weight's shape}``, True = keep, in the order of the modules;
        with ``speedup`` a :class:`sparseprune.cost.speedup.TimedMasks`.
    Raises:
        TypeError: an argument has a wrong type, or the method has no such option.
        ValueError: an argument is out of range, the batches are empty, a score is not finite, a layer has no
            scores but zeros, or would keep no weight, or ``speedup`` is more than twice what one weight in
            each layer would give.
    Warns:
        RuntimeWarning: more than 1 % of the kept weights have scores that removed ones have, too, so that
            position chose (not told with a pattern or ``speedup``); or no scope was named, and ranked
            together a layer would be empty.
    """
    # Whatever is wrong with the arguments is said before the data is read.
    excluded = [exclude] if isinstance(exclude, str) else list(exclude)
    takes_model(loss)
    check_zero_scores(zero_scores)
    sample = sample_given("prune", input_size, example_inputs)
    scorer = functools.partial(
        scores.scorer,
        method,
        excluded,
        preset=preset,
        seed=seed,
        input_size=sample,
        bn=bn,
        temperature=temperature,
        micro_batch_size=micro_batch_size,
    )
    score = scorer()
    times = scores.rounds_of(method, rounds)
    if times > 1 and speedup is not None:
        raise ValueError(
            f"speedup: expected a method of one round, got {times} rounds; give rounds=1, or flops= in place "
            "of speedup="
        )
    weights = scores.prunable(model, excluded)
    if not weights:
        raise ValueError(
            "prune: expected a model with Linear or Conv1d/2d/3d layers, found none to prune"
            + ("; exclude leaves nothing" if excluded else "")
        )
    targets = {"sparsity": sparsity, "flops": flops, "speedup": speedup}
    within = None if pattern is None else check_pattern(pattern, block, targets, scope)
    check_targets(targets, scope)
    shape = check_block_for(block, flops, speedup)
    budget.check_exponent(cost_exponent)
    check_batch_size(batch_size)
    # Scores and masks are outputs first as long as they are selected from.
    stored = stored_otherwise(model)
    empty = {name: torch.empty(weight.shape, device="meta") for name, weight in weights.items()}
    empty = outputs_first(empty, stored)
    shapes = {name: tensor.shape for name, tensor in empty.items()}
    wanted = SPARSITY if sparsity is None and flops is None and speedup is None else sparsity or 0.0
    block_rows = check_blocks(shapes, shape, min_per_layer, allow_empty)
    kept = quotas.layers_of(shapes, keep, dict(model.named_modules()))
    if block == "channel":
        # Also where the very last is excluded, the one before is not the classes'.
        *_, last = scores.prunable(model)
        kept = [name for name in shapes if name in kept or name == last]
    blocks = Blocks.unscored(shapes, block_rows, min_per_layer, kept, whole_rows=block == "channel")
    # Where queries, keys and values have one weight, they are three layers for all that counts by layers.
    fused = fused_projections(model) if within is None else []
    thirds = {name: tensor.shape for name, tensor in in_thirds(empty, fused).items()}
    whole = functools.partial(in_one, fused=fused)
    rows, kept_thirds = rows_of_blocks(thirds, shape[0]), quotas.layers_of(thirds, kept)
    layered = Blocks.unscored(thirds, rows, min_per_layer, kept_thirds, whole_rows=block == "channel")
    if isinstance(within, NofM):
        check_n_of_m(blocks, within, kept)
    else:
        quotas.check_scope(layered, wanted, "global" if scope is None else scope, kept)

    by_scores = layers_by_scores(shapes, kept, wanted if speedup is None and flops is None else 1, scope)
    if allow_empty and scope in (None, "global"):
        # Zeros are then as good as anything else that is below all others: the layer may go.
        by_scores = []

    def scores_at(masks: dict[str, Tensor] | None, score: scores.Scorer) -> Mapping[str, Tensor]:
        scored = score(model, batches, loss, None if masks is None else as_stored(masks, stored))
        scored = outputs_first(scored, stored)
        left = None if method in scores.REVIVING else masks
        zero = layers_of_zeros(scored, by_scores, left)
        if zero_scores == "random":
            return scored_by_chance(scored, zero, blocks, seed, left) if zero else scored
        if masks is None:
            refuse_zeros(model, zero, len(by_scores))
        return scored

    if flops is not None or speedup is not None:
        if sample is None:
            sample, batches = sample_of_first(batches, loss)
        layers = _costs_of_layers(model, sample, batch_size, block, shape[0], excluded, flops)

        def within_limit(scored: Mapping[str, Tensor], limit: float) -> budget.Selected:
            ranked = budget.scores_for(method, scored)
            return budget.select_blocks_within(
                ranked, layers, limit, cost_exponent, min_per_layer, allow_empty, kept
            )

        if speedup is not None:
            scored = scores_at(None, score)
            # As the budget is first divided: with one V for all layers.
            cheapest = min(layers.values(), key=lambda of: math.fsum(cost.total(0) for cost in of.values()))

            def select(limit: float) -> budget.Selected:
                masks, costs = within_limit(scored, limit)
                return budget.Selected(as_stored(masks, stored), costs)

            timed = masks_for(model, select, sparsify, cheapest, speedup, sample, batch_size)
            same_on_all_ranks(timed)
            return timed
        assert flops is not None
        limit = budget.limit_of_flops(flops, layers[shape[0]], blocks, kept)
        everything = math.fsum(cost.dense for cost in layers[shape[0]].values())

        def within_flops(scored: Mapping[str, Tensor], part: float) -> dict[str, Tensor]:
            of_round = limit if part == 1 else everything * (limit / everything) ** part
            return within_limit(scored, of_round).masks

    batches = repeatable(batches) if times > 1 else batches
    floor = functools.partial(
        living_floor, model, batches, sample, lambda masks: as_stored(whole(masks), stored)
    )
    # Batches may be an iterator, which is read once.
    scored_once = functools.cache(lambda: scores_at(None, score))

    def masks_by(scope: Scope | None) -> dict[str, Tensor]:
        # A method may take other batches in each round, from the first on.
        of_round = functools.partial(scores_at, score=scorer())

        def agreed(scored: Mapping[str, Tensor], part: float) -> dict[str, Tensor]:
            if flops is None:
                of_layers = in_thirds(scored, fused)
                masks = whole(
                    choose_masks(layered, wanted, scope, within, kept, allow_empty, floor, of_layers, part)
                )
            else:
                masks = within_flops(scored, part)
            same_on_all_ranks(masks)
            if part == 1 and pattern is None:
                together = scope in (None, "global") and flops is None
                # Above masks_by(), prune() and in_rounds().
                warn_of_ties(blocks.scored(scored), masks, together, stacklevel=5)
            return masks

        scores_of = of_round if times > 1 else lambda masks: scored_once()
        masks = in_rounds(times, scores_of, agreed, revives=method in scores.REVIVING)
        return as_stored(masks, stored)

    try:
        return masks_by(scope)
    except CollapseError as error:
        collapse = error
    masks = masks_by(quotas.FALLBACK)
    warn_of_collapse(collapse.layers, stacklevel=2)
    return masks


def _costs_of_layers(
    model: nn.Module,
    sample: Sample,
    batch_size: int,
    block: tuple[int, int] | str,
    block_rows: int,
    excluded: list[str],
    flops: float | None,
) -> dict[int, dict[str, budget.LayerCost]]:
    """Costs of each layer by V, counted for ``flops`` and measured for ``speedup``."""
    if flops is not None:
        return {block_rows: flops_costs(model, sample, exclude=excluded)}
    choices = AUTO_BLOCKS if block == "auto" else (block_rows,)
    return same_dense(
        {v: measured_costs(model, sample, batch_size, block=(v, 1), exclude=excluded) for v in choices}
    )
