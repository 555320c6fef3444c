"""Iterative magnitude pruning: train, remove the smallest weights, set the others back, and again."""

import copy
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune import scores
from sparseprune._sparsify import Layers, densify, sparsify
from sparseprune._ticket.folder import Finished, Folder, fingerprint, state_of
from sparseprune.scores.samples import sample_given
from sparseprune.select.blocks import Blocks, check_blocks
from sparseprune.select.quotas import global_
from sparseprune.select.rounds import never_again

Masks = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class TicketRound:
    """One training in the search for a lottery ticket.

    Attributes:
        number: 0 for the dense network, r after r prunings.
        masks: ``{parameter name: bool tensor of the weight's shape}`` that were trained, True = keep.
        kept: number of weights that they keep.
        sparsity: fraction of the weights that they remove.
        seconds: wall-clock time of the call of ``train``.
        result: what it returned, as JSON gives it back.
    """

    number: int
    masks: Masks
    kept: int
    sparsity: float
    seconds: float
    result: Any


@dataclass(frozen=True, eq=False)
class Ticket:
    """A winning ticket: ``sparsify(ticket.model, ticket.masks)`` is ready to be trained.

    Attributes:
        model: the dense network at step ``rewind`` with all its weights, also those that the masks remove.
        rounds: all trainings, first that of the dense network.
    """

    model: nn.Module
    rounds: tuple[TicketRound, ...]

    @property
    def masks(self) -> Masks:
        """The masks of the last round."""
        return self.rounds[-1].masks


def lottery_ticket(
    make_model: Callable[[], nn.Module],
    train: Callable[..., Any],
    rounds: int,
    *,
    fraction: float = 0.2,
    rewind: int = 0,
    batch_size: int = 256,
    input_size: Sequence[int] | None = None,
    example_inputs: Any = None,
    layers: Layers = "measured",
    exclude: Iterable[str] = (),
    min_per_layer: int = 0,
    folder: str | Path | None = None,
    on_round: Callable[[TicketRound], None] | None = None,
) -> Ticket:
    """Find a sparse network that trains well from its early weights, by training and pruning in turn.

    Round 0 trains the dense network. Every other round removes ``fraction`` of the weights that are left,
    those of all layers with the smallest ``|w|`` after training; sets everything else back to step
    ``rewind``; and trains again, on sparse layers: the later, the faster. After round r exactly
    round(n · (1 − fraction)^r) of n weights stay. What was removed never returns.

    With ``folder`` every finished round becomes a file, and after a kill the same call goes on with the next
    one. Its masks are those of an unbroken run, bit for bit, where ``train`` depends on nothing but the model
    and torch's global generator, and the same layers are sparse (``layers="measured"`` may decide otherwise
    the second time). More rounds may be asked for later.

    Args:
        make_model: function that returns the same freshly initialised network whenever it is called.
        train: function of the model that trains it in place, and returns what JSON can hold, such as its
            accuracy. With ``rewind`` it is called once as ``train(model, start=0, stop=rewind)``, and in each
            round as ``train(model, start=rewind, stop=None)``, to go on with its schedule at that step.
        rounds: number of prunings, 1 or more; there are ``rounds + 1`` trainings.
        fraction: part of the remaining weights that a round removes, in (0, 1).
        rewind: step to whose weights and buffers each round returns; 0 for the initial ones.
        batch_size, input_size, example_inputs, layers: see :func:`sparseprune.sparsify`.
        exclude: names of parameters or modules that stay dense; they have no mask.
        min_per_layer: number of weights that each layer keeps at least.
        folder: where finished rounds are kept; nowhere if None.
        on_round: function that is told of every round in turn, also of those that the folder has.
    Returns:
        the network at step ``rewind``, and all rounds with their masks.
    Raises:
        TypeError: an argument has a wrong type, ``make_model`` returns no module, or ``train`` returns what
            JSON cannot hold.
        ValueError: an argument is out of range, ``make_model`` returns another network when called again or
            one with nothing to prune, a layer would keep no weight, training leaves weights that are not
            finite, or the folder has rounds of other settings or damaged files.
        BlockingIOError: another process works in the folder.
        OSError: the folder cannot be written to; the rounds that it has are kept.
    Reference:
        Frankle, Carbin, "The lottery ticket hypothesis: finding sparse, trainable neural networks", 2019,
        arXiv:1803.03635; back to a later step than 0: Frankle, Dziugaite, Roy, Carbin, "Linear mode
        connectivity and the lottery ticket hypothesis", 2020, arXiv:1912.05671.
    """
    _check_numbers(rounds, fraction, rewind)
    excluded = [exclude] if isinstance(exclude, str) else list(exclude)
    initial = _made(make_model)
    weights = scores.prunable(initial, excluded)
    if not weights:
        raise ValueError(
            "lottery_ticket: expected make_model to return a network with Linear or Conv1d/2d/3d layers, "
            "found none to prune" + ("; exclude leaves nothing" if excluded else "")
        )
    n = sum(weight.numel() for weight in weights.values())
    counts = [round(n * (1 - float(fraction)) ** number) for number in range(rounds + 1)]
    _check_enough(weights, min_per_layer, counts[-1])
    # What is wrong with these is said before hours of training.
    sample = sample_given("lottery_ticket", input_size, example_inputs)
    sparsify(initial, {}, layers=layers, batch_size=batch_size, input_size=sample)
    settings = {
        "fraction": float(fraction),
        "rewind": rewind,
        "batch_size": batch_size,
        "layers": layers,
        "exclude": sorted(excluded),
        # Without a floor an empty layer is an error, so that all rounds up to it are the same with 1.
        "min_per_layer": max(min_per_layer, 1),
        "initial weights": fingerprint(initial),
    }
    done: list[TicketRound] = []
    trained: Mapping[str, Tensor] = {}
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    with Folder.opened(folder, settings) as kept:
        rewound = _rewound(initial, train, rewind, kept)
        for number, count in enumerate(counts):
            if number > 0:
                masks = _pruned(trained, masks, count, min_per_layer, number)
            finished = kept.read_round(number, masks)
            if finished is None:
                model = copy.deepcopy(rewound)
                if number > 0:
                    model = sparsify(model, masks, layers=layers, batch_size=batch_size, input_size=sample)
                finished = _trained(model, train, masks, number, rewind)
                kept.write_round(number, masks, finished)
            trained = finished.trained
            done.append(
                TicketRound(
                    number, masks, count, 1 - count / n, finished.seconds, json.loads(finished.result)
                )
            )
            if on_round is not None:
                on_round(done[-1])
    return Ticket(rewound, tuple(done))


def _check_numbers(rounds: int, fraction: float, rewind: int) -> None:
    for name, value, least in (("rounds", rounds, 1), ("rewind", rewind, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"lottery_ticket: expected {name} to be a whole number, {least} or more, got {value!r}"
            )
    if isinstance(fraction, bool) or not isinstance(fraction, Real):
        raise TypeError(f"lottery_ticket: expected fraction to be a number, got {type(fraction).__name__}")
    if not 0 < fraction < 1:
        raise ValueError(
            f"lottery_ticket: expected the fraction that each round removes, in (0, 1), got {fraction}"
        )


def _made(make_model: Callable[[], nn.Module]) -> nn.Module:
    """The network, if it is the same one when made again."""
    model = make_model()
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"lottery_ticket: expected make_model to return a torch.nn.Module, got {type(model).__name__}"
        )
    # Says so where a lazy layer has no weight yet.
    scores.prunable(model)
    first = fingerprint(model)
    if fingerprint(make_model()) != first:
        raise ValueError(
            "lottery_ticket: expected make_model to return the same initial weights whenever it is called, "
            "got others the second time; seed it, as with torch.manual_seed(0) in its first line"
        )
    # A copy: make_model may hand out one and the same network.
    return copy.deepcopy(model)


def _check_enough(weights: Mapping[str, Tensor], min_per_layer: int, count: int) -> None:
    """Raise ValueError unless the last round keeps what each layer must have, at least one weight."""
    shapes = {name: weight.shape for name, weight in weights.items()}
    single = check_blocks(shapes, (1, 1), min_per_layer)
    need = sum(Blocks.unscored(shapes, single, max(min_per_layer, 1)).floors.values())
    if count < need:
        raise ValueError(
            f"lottery_ticket: expected the last round to keep at least {need} weights "
            f"({max(min_per_layer, 1)} in each layer), got {count}; ask for fewer rounds, or a smaller "
            "fraction"
        )


def _rewound(initial: nn.Module, train: Callable[..., Any], rewind: int, kept: Folder) -> nn.Module:
    """The network at the step that every round starts from."""
    model = copy.deepcopy(initial)
    state = kept.read_start(state_of(model))
    if state is None:
        if rewind > 0:
            train(model, start=0, stop=rewind)
            _check_finite(model, f"the first {rewind} steps")
        state = {name: tensor.detach().clone() for name, tensor in state_of(model).items()}
        kept.write_start(state)
        # Without gradients and whatever else training leaves.
        model = copy.deepcopy(initial)
    with torch.no_grad():
        for name, tensor in state_of(model).items():
            tensor.copy_(state[name])
    return model


def _pruned(
    trained: Mapping[str, Tensor], masks: Masks, count: int, min_per_layer: int, number: int
) -> Masks:
    """The so many largest of the trained weights, of those that the masks have kept."""
    magnitudes = {}
    for name, mask in masks.items():
        magnitudes[name] = torch.zeros(mask.shape, dtype=trained[name].dtype, device=mask.device)
        magnitudes[name][mask] = trained[name].abs()
    blocks = Blocks.of(never_again(magnitudes, masks), dict.fromkeys(masks, 1), min_per_layer)
    counts = global_(blocks, count)
    if empty := [name for name, mask in masks.items() if mask.numel() > 0 and counts[name] == 0]:
        raise ValueError(
            f"lottery_ticket: expected every layer to keep a weight, got none kept in "
            f"{', '.join(map(repr, empty))} in round {number}; give each layer a floor with min_per_layer=1 "
            "(finished rounds in a folder stay), or ask for fewer rounds"
        )
    return blocks.masks(counts, allow_empty=True)


def _trained(model: nn.Module, train: Callable[..., Any], masks: Masks, number: int, rewind: int) -> Finished:
    ahead = {"start": rewind, "stop": None} if rewind > 0 else {}
    begin = time.perf_counter()
    returned = train(model, **ahead)
    seconds = time.perf_counter() - begin
    try:
        result = json.dumps(returned)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "lottery_ticket: expected train to return what JSON can hold, such as a number, got "
            f"{type(returned).__name__} ({error})"
        ) from None
    dense = densify(model)
    _check_finite(dense, f"round {number}")
    trained = {name: dense.get_parameter(name).detach()[mask] for name, mask in masks.items()}
    return Finished(trained, seconds, result)


def _check_finite(model: nn.Module, when: str) -> None:
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if not values.isfinite().all():
            bad = values[~values.isfinite()][0].item()
            raise ValueError(
                f"lottery_ticket: expected finite weights after {when}, got {bad} in {name!r}; lower the "
                "learning rate of train, or look at its data"
            )
