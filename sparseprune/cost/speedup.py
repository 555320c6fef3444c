"""Masks that make a training step so many times faster, checked by timing what comes out."""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparseprune.cost.progress import progress
from sparseprune.cost.timer import Timed, time_in_turns
from sparseprune.scores.nested import tensors_in
from sparseprune.scores.samples import Examples, Sample, batch_of
from sparseprune.select.budget import BudgetError, LayerCost, Selected, total_cost

CORRECTIONS = 2  # of the budget, after timing what it gave
CLOSE_ENOUGH = 0.05  # relative error of the speed-up at which there is none
FALLS_SHORT = 0.1  # of the speed-up, after all corrections, is said
IMPOSSIBLE = 2.0  # times the speed-up of a network with one weight in each layer is refused
FEW = 0.1  # of what weights add to the layers' seconds, tried once where a guess leaves no room for any
ROUNDS: dict[str, Any] = {"fewest": 5, "seconds": 1.0, "patience": 3.0}

log = logging.getLogger(__name__)


class SpeedUp(NamedTuple):
    """How many times faster than the dense model a training step is: what was asked for, and what was timed.

    Attributes:
        promised, measured: ratios.
        dense_seconds, sparse_seconds: seconds of a training step.
        disturbed: why they are not to be believed; empty where nothing is known against them.
    """

    promised: float
    measured: float
    dense_seconds: float
    sparse_seconds: float
    disturbed: str = ""


class TimedMasks(dict[str, Tensor]):
    """Masks, and the speed-up that they were chosen for."""

    speedup: SpeedUp


def masks_for(
    model: nn.Module,
    select: Callable[[float], Selected],
    sparsify: Callable[..., nn.Module],
    costs: Mapping[str, LayerCost],
    speedup: float,
    sample: Sample,
    batch_size: int,
) -> TimedMasks:
    """Masks with which the whole model's training step is ``speedup`` times as fast as dense.

    Layers may cost step / speedup less what the rest of the network takes. The rest is what the dense step
    takes beyond its layers at first, then what a sparse one does, which has other batch norms, and layouts
    that layers timed alone do not have: it may be less than nothing. Dense and sparse steps take turns, so
    that what slows the machine down slows both. Where there is doubt, the network with one weight in each
    layer is timed, too: there is none that is faster.

    Args:
        model: the dense network; not changed.
        select: masks within a budget in seconds, or BudgetError.
        sparsify: :func:`sparseprune.sparsify`, a layer above.
        costs: seconds of the layers, each with the V that is the best for few weights.
        speedup: 1 or more.
        sample: shape of one sample, or example inputs; see :func:`sparseprune.cost.calls.record_calls`.
        batch_size: number of samples in a training step.
    Returns:
        the masks that came closest; with a RuntimeWarning that says why, where they fall short by more than
        ``FALLS_SHORT``.
    Raises:
        ValueError: no masks are half as fast; the error says what the best would be, and what limits it.
    """
    dense = faster_layout(model, sample, batch_size)

    def timed(masks: Mapping[str, Tensor]) -> SpeedUp:
        sparse = sparsify(model, masks, batch_size=batch_size, input_size=sample)
        (before, after), disturbed = timed_steps([dense[:2], (sparse, False)], sample, batch_size)
        found = SpeedUp(speedup, before / after, before, after, disturbed)
        log.info("speedup %g: %s", speedup, found)
        return found

    def corrected(found: SpeedUp, layers: float) -> tuple[float, float]:
        # A slow moment slows both steps alike, so that their ratio says more than their seconds.
        least_step = min(step, found.dense_seconds)
        return least_step, least_step / found.measured - layers

    all_dense = math.fsum(cost.dense for cost in costs.values())
    least = math.fsum(cost.total(0) for cost in costs.values())
    fewest = {name: _one_weight(model.get_parameter(name)) for name in costs}
    limit: SpeedUp | None = None  # that of the fewest weights
    best: TimedMasks | None = None
    few_tried = False
    step, rest = dense[2], max(dense[2] - all_dense, 0.0)
    for _ in progress("timing the network", range(1 + CORRECTIONS), patience=0.0):
        selected = _select_within(select, step / speedup - rest)
        if selected is None and best is None:
            limit = timed(fewest)
            _refuse_impossible(limit, costs)
            step, rest = corrected(limit, total_cost(fewest, costs))
            selected = _select_within(select, step / speedup - rest)
        if selected is None:
            if few_tried:
                break
            few_tried, selected = True, select(least + FEW * (all_dense - least))
        masks = TimedMasks(selected.masks)
        masks.speedup = timed(masks)
        if best is None or _error(masks.speedup) < _error(best.speedup):
            best = masks
        if _error(masks.speedup) <= CLOSE_ENOUGH:
            break
        step, rest = corrected(masks.speedup, total_cost(*selected))
    assert best is not None
    if best.speedup.measured < speedup * (1 - FALLS_SHORT):
        limit = limit or timed(fewest)
        _refuse_impossible(limit, costs)
        # Of whoever called prune().
        warnings.warn(_falls_short(best.speedup, limit, costs), RuntimeWarning, stacklevel=3)
    return best


def _select_within(select: Callable[[float], Selected], limit: float) -> Selected | None:
    try:
        return select(limit)
    except BudgetError:
        return None


def _one_weight(weight: Tensor) -> Tensor:
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    mask.view(-1)[0] = True
    return mask


def _error(found: SpeedUp) -> float:
    return abs(math.log(found.measured / found.promised))


def _refuse_impossible(limit: SpeedUp, costs: Mapping[str, LayerCost]) -> None:
    """Raise ValueError for a speed-up that no noise can explain."""
    if limit.promised > limit.measured * IMPOSSIBLE:
        doubt = f"; {limit.disturbed} meanwhile, so take this roughly" if limit.disturbed else ""
        raise ValueError(
            f"speedup: expected at most {limit.measured:.3g} times here, got {limit.promised:g}: "
            f"{_what_limits(limit, costs)}{doubt}"
        )


def _falls_short(found: SpeedUp, limit: SpeedUp, costs: Mapping[str, LayerCost]) -> str:
    why = f"at most {max(limit.measured, found.measured):.3g} times here, {_what_limits(limit, costs)}"
    if disturbed := found.disturbed or limit.disturbed:
        why = f"{disturbed} while steps were timed; prune again on a quiet machine"
    return (
        f"speedup: expected {found.promised:g} times, got masks that are measured to be {found.measured:.3g} "
        f"times as fast as dense, {1 - found.measured / found.promised:.0%} less, the closest found: {why}"
    )


def _what_limits(limit: SpeedUp, costs: Mapping[str, LayerCost]) -> str:
    least = {name: cost.total(0) for name, cost in costs.items()}
    layers = ", ".join(
        f"{name!r} {least[name] * 1e3:.3g} ms" for name in sorted(least, key=lambda n: -least[n])[:3]
    )
    return (
        f"of a dense step of {limit.dense_seconds * 1e3:.3g} ms the sparse one takes "
        f"{limit.sparse_seconds * 1e3:.3g} ms with one weight in each layer; the layers alone, most of all, "
        f"{layers}; larger batches or blocks may help"
    )


def faster_layout(model: nn.Module, sample: Sample, batch_size: int) -> tuple[nn.Module, bool, float]:
    """A dense model in the faster of torch's two layouts of images, which it is, and seconds of a step."""
    models = [(model, False)]
    shapes = sample.shapes if isinstance(sample, Examples) else [(batch_size, *sample)]
    has_images = any(len(shape) == 4 for shape in shapes)
    if has_images and any(isinstance(module, nn.Conv2d) for module in model.modules()):
        twin: Any = copy.deepcopy(model)
        models.append((twin.to(memory_format=torch.channels_last), True))
    seconds = timed_steps(models, sample, batch_size).seconds
    fastest_one = min(range(len(models)), key=lambda i: seconds[i])
    return *models[fastest_one], seconds[fastest_one]


def timed_steps(models: Sequence[tuple[nn.Module, bool]], sample: Sample, batch_size: int) -> Timed:
    """Time training steps of models in turns: forward and backward of the outputs' sum, no optimizer.

    The models stay as they are, running statistics of batch norms and gradients included.

    Args:
        models: each with whether its images are channels_last.
        sample: shape of one sample, or example inputs; see :func:`sparseprune.cost.calls.record_calls`.
        batch_size: number of samples in a step.
    """
    buffers = [{name: b.clone() for name, b in model.named_buffers()} for model, _ in models]
    steps = [_step(model, sample, batch_size, channels_last) for model, channels_last in models]
    like = next(models[0][0].parameters(), torch.zeros(()))
    try:
        with torch.random.fork_rng(devices=[]):
            return time_in_turns(steps, like.device, **ROUNDS)
    finally:
        with torch.no_grad():
            for (model, _), before in zip(models, buffers, strict=True):
                for name, buffer in model.named_buffers():
                    buffer.copy_(before[name])


def _step(model: nn.Module, sample: Sample, batch_size: int, channels_last: bool) -> Callable[[], object]:
    parameters = list(model.parameters())
    inputs = batch_of(sample, batch_size, parameters[0] if parameters else torch.zeros(()), "ramp")
    if channels_last:
        inputs = inputs.channels_last()
    wanted = [parameter for parameter in parameters if parameter.requires_grad]

    def step() -> object:
        sums = [y.sum() for y in tensors_in(inputs.call(model)) if y.requires_grad]
        return torch.autograd.grad(sums, wanted, allow_unused=True)

    return step
