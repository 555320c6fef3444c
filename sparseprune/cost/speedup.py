"""Masks that make a training step so many times faster, checked by timing what comes out."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparseprune.cost.timer import fastest
from sparseprune.select.budget import BudgetError, LayerCost, Selected, total_cost

CORRECTIONS = 2  # of the budget, after timing what it gave
CLOSE_ENOUGH = 0.05  # relative error of the speed-up at which there is none
FALLS_SHORT = 0.1  # of the speed-up, after all corrections, is refused
TRIAL = 0.1  # of what weights add to the layers' seconds, where a first guess leaves no room for any
FEWEST_STEPS, SECONDS = 5, 1.0


class SpeedUp(NamedTuple):
    """How many times faster than the dense model a training step is: what was asked for, and what was timed.

    Attributes:
        promised, measured: ratios.
        dense_seconds, sparse_seconds: seconds of a training step.
    """

    promised: float
    measured: float
    dense_seconds: float
    sparse_seconds: float


class TimedMasks(dict[str, Tensor]):
    """Masks, and the speed-up that they were chosen for."""

    speedup: SpeedUp


def masks_for(
    model: nn.Module,
    select: Callable[[float], Selected],
    sparsify: Callable[..., nn.Module],
    costs: Mapping[str, LayerCost],
    speedup: float,
    input_size: Sequence[int],
    batch_size: int,
) -> TimedMasks:
    """Masks with which the whole model's training step is ``speedup`` times as fast as dense.

    Layers may cost step / speedup less what the rest of the network takes. The rest is what the dense step
    takes beyond its layers at first, then what a sparse one does, which has other batch norms, and layouts
    that layers timed alone do not have: it may be less than nothing.

    Args:
        model: the dense network; not changed.
        select: masks within a budget in seconds, or BudgetError.
        sparsify: :func:`sparseprune.sparsify`, a layer above.
        costs: seconds of the layers, each with the V that is the best for few weights.
        speedup: 1 or more.
        input_size, batch_size: shape and number of the samples in a training step.
    Raises:
        ValueError: no masks are so fast; the error says what the best would be, and which layers limit it.
    """
    dense = dense_seconds(model, input_size, batch_size)
    all_dense = math.fsum(cost.dense for cost in costs.values())
    least = math.fsum(cost.total(0) for cost in costs.values())
    rest = max(dense - all_dense, 0.0)
    best: TimedMasks | None = None
    for _ in range(1 + CORRECTIONS):
        try:
            selected = select(dense / speedup - rest)
        except BudgetError as error:
            # Even with what is known of the rest now.
            if best is not None:
                measured = best.speedup.measured
                raise ValueError(_unreachable(speedup, dense, rest, costs, measured)) from error
            selected = select(least + TRIAL * (all_dense - least))
        masks = TimedMasks(selected.masks)
        sparse = sparsify(model, masks, batch_size=batch_size, input_size=input_size)
        seconds = step_seconds(sparse, input_size, batch_size)
        masks.speedup = SpeedUp(speedup, dense / seconds, dense, seconds)
        if best is None or _error(masks.speedup) < _error(best.speedup):
            best = masks
        if _error(masks.speedup) <= CLOSE_ENOUGH:
            break
        rest = seconds - total_cost(*selected)
    assert best is not None
    if best.speedup.measured < speedup * (1 - FALLS_SHORT):
        raise ValueError(_unreachable(speedup, dense, rest, costs, best.speedup.measured))
    return best


def _error(found: SpeedUp) -> float:
    return abs(math.log(found.measured / found.promised))


def _unreachable(
    speedup: float, dense: float, rest: float, costs: Mapping[str, LayerCost], measured: float
) -> str:
    least = {name: cost.total(0) for name, cost in costs.items()}
    limits = ", ".join(
        f"{name!r} {least[name] * 1e3:.3g} ms" for name in sorted(least, key=lambda n: -least[n])[:3]
    )
    fastest = max(rest + math.fsum(least.values()), 1e-9)
    return (
        f"speedup: expected at most {max(dense / fastest, measured):.3g} times here, got {speedup:g} "
        f"(measured {measured:.3g}): of a dense step of {dense * 1e3:.3g} ms the sparse one takes "
        f"{fastest * 1e3:.3g} ms without any weights; the layers alone, most of all, {limits}; "
        "larger batches or blocks may help"
    )


def dense_seconds(model: nn.Module, input_size: Sequence[int], batch_size: int) -> float:
    """Seconds of a dense model's training step in the faster of torch's two layouts of images."""
    seconds = step_seconds(model, input_size, batch_size)
    if len(input_size) == 3 and any(isinstance(module, nn.Conv2d) for module in model.modules()):
        twin: Any = copy.deepcopy(model)
        twin = twin.to(memory_format=torch.channels_last)
        seconds = min(seconds, step_seconds(twin, input_size, batch_size, channels_last=True))
    return seconds


def step_seconds(
    model: nn.Module, input_size: Sequence[int], batch_size: int, channels_last: bool = False
) -> float:
    """Seconds of the fastest training step: forward and backward of the outputs' sum, no optimizer.

    The model stays as it is, running statistics of batch norms and gradients included.
    """
    parameters = list(model.parameters())
    like = parameters[0] if parameters else torch.zeros(())
    # Not random: measuring must not disturb the user's random numbers.
    count = batch_size * math.prod(input_size)
    x = torch.linspace(-1, 1, count, device=like.device, dtype=like.dtype).reshape(batch_size, *input_size)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    wanted = [parameter for parameter in parameters if parameter.requires_grad]

    def step() -> None:
        torch.autograd.grad(model(x).sum(), wanted, allow_unused=True)

    try:
        with torch.random.fork_rng(devices=[]):
            (seconds,) = fastest([step], like.device, fewest=FEWEST_STEPS, seconds=SECONDS)
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    return seconds
