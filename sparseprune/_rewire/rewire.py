"""``Rewire``: the pattern of a network moves while it is trained."""

import logging
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune._rewire.eager import Eager
from sparseprune._rewire.layers import Moving, moving_layers
from sparseprune._rewire.proposal import next_pattern
from sparseprune._rewire.rules import Rule, by_magnitude, is_constant_fan_in
from sparseprune._rewire.schedule import Schedule
from sparseprune.scores.ranks import of_rank_0, sum_over_ranks

log = logging.getLogger(__name__)

METHODS = ("rigl", "set")


class Rewire:
    """Moves the pattern of sparse and masked layers while they are trained: RigL, SET, or your own rule.

    Every so many steps, each layer loses the k blocks with the smallest mean ``|w|`` and gets k others: those
    with the largest mean ``|dL/dw|`` ("rigl"), or random ones ("set"); k = ⌊f n⌋ of its n blocks, with
    f = fraction / 2 · (1 + cos(π t / until)) after t steps. A block that was just lost may come back, and
    keeps its weights then. New weights start at 0, and so does what the optimizer keeps of them. Layers keep
    their numbers of blocks; where all rows have as many, they keep that too.

    Call :meth:`step` after every ``optimizer.step()``::

        model = sp.sparsify(model, sp.prune(model, batches, method="random", sparsity=0.9))
        optimizer = torch.optim.AdamW(model.parameters())
        rewire = sp.Rewire(model, optimizer, until=7500)  # three quarters of 10,000 steps
        for x, y in batches:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
            rewire.step()

    ``values`` and masks stay the same tensors, so that optimizers, DDP and compiled graphs go on. The
    gradient of the weights that are not there is computed in the step before a move alone, from what the
    layers saw in its backward passes, some rows at a time: no dense matrix is held. In that step compiled
    models run in eager mode. With several processes of ``torch.distributed`` gradients are summed over them,
    and all move alike. Where a gradient is not finite, as of a loss that was scaled too far, the move waits
    for the next step.

    Args:
        model: network with layers of :func:`sparsify`, sparse or masked, of which those move that train.
        optimizer: what trains them, or several; tensors of its state of a weight's shape move with the
            weight.
        method: "rigl", "set", or a function ``(weights, candidates, pattern) -> (stay, grow)``. It gets a
            layer's weights (n, V), n + m :class:`Candidates`, and ``(crow, col)``. It gives what each of the
            n blocks is worth keeping, and what each of the n + m candidates is worth having where it is not
            kept. Both are finite; the largest win.
        fraction: part of each layer's blocks that moves at first.
        every: steps from one move to the next.
        until: step before which the last move is, three quarters of all is usual; None: they never end, and
            f stays as it is.
        seed: seed of random choices.
        sparsity: part of all weights of these layers that is to be removed in the end. Until half of
            ``until`` their number falls, n = n_end + (n_start − n_end) (1 − 2 t / until)³, in every layer in
            proportion (GraNet). None: it stays. Compiled graphs are made anew where it falls.
        copies: networks that follow, such as the average of an ``AveragedModel``: of the same layers and
            patterns. Their weights move along; new ones are 0.
    Raises:
        TypeError, ValueError: the model has no such layer, the optimizer does not train one, or a number is
            out of range.
    Reference:
        Evci, Gale, Menick, Castro, Elsen, "Rigging the lottery", 2020, arXiv:1911.11134, algorithm 1;
        Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity",
        2018, arXiv:1707.04780 (SET); Liu et al., "Sparse training via boosting pruning plasticity with
        neuroregeneration", 2021, arXiv:2106.10404 (GraNet).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        method: Literal["rigl", "set"] | Rule = "rigl",
        fraction: float = 0.3,
        every: int = 100,
        until: int | None = None,
        seed: int = 0,
        *,
        sparsity: float | None = None,
        copies: Sequence[nn.Module] = (),
    ) -> None:
        self._schedule = Schedule(fraction, every, until, sparsity)
        if not callable(method) and method not in METHODS:
            raise ValueError(f'Rewire: expected method "rigl", "set" or a function, got {method!r}')
        if seed < 0:
            raise ValueError(f"Rewire: expected seed >= 0, got {seed}")
        self._method, self._seed = method, seed
        given = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
        self._optimizers = [_within(its) for its in given]
        self._layers = moving_layers(model)
        _check_trained(self._layers, self._optimizers)
        self._copies = [_like(copy, self._layers) for copy in copies]
        # Blocks at the start, and whether all rows had as many: what a run that goes on must know.
        patterns = [layer.pattern() for layer in self._layers]
        self._start = [len(col) for _, col in patterns]
        self._constant_fan_in = [is_constant_fan_in(crow) for crow, _ in patterns]
        self._steps = 0
        self._waiting = False
        self._has_stepped = stepped = threading.Event()
        for its in self._optimizers:
            # Not a method, so that the optimizer does not keep this object.
            its.register_step_post_hook(lambda *_: stepped.set())
        self._eager = Eager()
        weakref.finalize(self, _stop, self._layers, self._eager)
        self._look_ahead()

    # ---- the steps -----------------------------------------------------------------------------------------

    def step(self) -> None:
        """Count a step of the optimizer, and move the patterns where it is time.

        Raises:
            RuntimeError: there was no step of the optimizer or no backward pass yet, or none that the layers
                saw; nothing has moved.
            TypeError, ValueError: the rule gave something else than expected; nothing has moved.
        """
        if not self._has_stepped.is_set() and all(layer.parameter.grad is None for layer in self._layers):
            raise RuntimeError(
                "Rewire.step: expected a backward pass and a step of the optimizer before, got none; call it "
                "after optimizer.step(), once a step"
            )
        step = self._steps + 1
        waiting = False
        if self._is_due(step):
            seen = self._what_was_seen() if self._needs_gradient else [True] * len(self._layers)
            waiting = seen is None
            if seen is None:
                log.info("Rewire: a gradient of step %d is not finite; the patterns move at the next", step)
            else:
                self._move(step, seen)
        self._steps, self._waiting = step, waiting
        self._look_ahead()

    def _is_due(self, step: int) -> bool:
        return self._schedule.moves_at(step) or (self._waiting and not self._schedule.is_over(step))

    @property
    def _needs_gradient(self) -> bool:
        return self._method != "set"

    def _look_ahead(self) -> None:
        """Let the layers note what their backward passes see, where they move after the next step."""
        _stop(self._layers, self._eager)
        if self._needs_gradient and self._is_due(self._steps + 1):
            for layer in self._layers:
                layer.observe()
            self._eager.on()

    def _what_was_seen(self) -> list[bool] | None:
        """Whether a backward pass on some rank went through each layer; None if not all is finite."""
        told = [float(not layer.is_finite()) for layer in self._layers]
        told += [float(layer.was_seen) for layer in self._layers]
        counts = torch.tensor(told, device=self._layers[0].parameter.device)
        sum_over_ranks([counts])
        infinite, seen = counts.cpu().view(2, -1).tolist()
        if not any(seen):
            raise RuntimeError(
                "Rewire.step: expected a backward pass through the sparse layers since the last step, got "
                "none; call it after loss.backward() and optimizer.step(), once a step"
            )
        for layer, passes in zip(self._layers, seen, strict=True):
            if not passes:
                log.warning("Rewire: %s was not called in this step, and stays as it is", layer.name)
        return None if any(infinite) else [bool(passes) for passes in seen]

    def _move(self, step: int, seen: Sequence[bool]) -> None:
        """Work all next patterns out, then give them to the layers."""
        part = self._schedule.part(step)
        rule = self._method if callable(self._method) else by_magnitude
        patterns: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.no_grad():
            for i, layer in enumerate(self._layers):
                if seen[i]:
                    count, before = self._blocks(i, step), len(layer.pattern()[1])
                    random = None if self._needs_gradient else self._random(step, i)
                    patterns[i] = next_pattern(
                        layer, rule, min(count, before), int(part * before), random, self._constant_fan_in[i]
                    )
            # Their weights may differ in the last bit, and so what is smallest.
            patterns = of_rank_0(patterns)
            for i, (crow, col) in patterns.items():
                self._layers[i].move(crow, col, self._optimizers)
                for layers in self._copies:
                    layers[i].move(crow, col, ())

    def _blocks(self, i: int, step: int) -> int:
        """How many blocks a layer has after a move."""
        start = self._start[i]
        sparsity = self._schedule.sparsity
        if sparsity is None:
            return start
        layers = self._layers
        sizes = [layer.rows * layer.cols * layer.block_rows for layer in layers]
        kept = sum(n * layer.block_rows for n, layer in zip(self._start, layers, strict=True))
        end = start * min(1.0, (1 - sparsity) * sum(sizes) / max(kept, 1))
        return self._schedule.blocks(step, start, max(round(end), min(start, 1)))

    def _random(self, step: int, layer: int) -> torch.Generator:
        state = numpy.random.SeedSequence([*b"sparseprune", self._seed, step, layer]).generate_state(1)
        return torch.Generator().manual_seed(int(state[0]))

    # ---- checkpoints ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on: numbers and names, of which JSON can be made.

        Patterns are in the model's state.
        """
        return {
            "steps": self._steps,
            "waiting": self._waiting,
            "method": self._method if isinstance(self._method, str) else "callable",
            "fraction": self._schedule.fraction,
            "every": self._schedule.every,
            "until": self._schedule.until,
            "sparsity": self._schedule.sparsity,
            "seed": self._seed,
            "layers": {
                layer.name: {"blocks": n, "block_rows": layer.block_rows, "constant_fan_in": constant}
                for layer, n, constant in zip(self._layers, self._start, self._constant_fan_in, strict=True)
            },
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; the numbers that it has replace those given.

        Load the model's and the optimizer's state, too.

        Raises:
            ValueError: it is of another model or method, or a part is missing; nothing was changed.
        """
        own = self.state_dict()
        if not isinstance(state_dict, Mapping) or (missing := own.keys() - state_dict.keys()):
            got = f"one without {', '.join(sorted(missing))}" if isinstance(state_dict, Mapping) else "none"
            raise ValueError(f"Rewire.load_state_dict: expected what state_dict() gave, got {got}")
        if state_dict["method"] != own["method"]:
            raise ValueError(
                f"Rewire.load_state_dict: expected the state of method {own['method']!r}, got that of "
                f"{state_dict['method']!r}"
            )
        layers = state_dict["layers"]
        facts = {name: it["block_rows"] for name, it in layers.items()}
        if facts != {name: it["block_rows"] for name, it in own["layers"].items()}:
            differ = sorted(facts.items() ^ {(n, it["block_rows"]) for n, it in own["layers"].items()})
            raise ValueError(
                "Rewire.load_state_dict: expected the layers of this model, with their blocks, got others: "
                f"{', '.join(sorted({name for name, _ in differ})[:5])}"
            )
        schedule = Schedule(*(state_dict[name] for name in ("fraction", "every", "until", "sparsity")))
        self._schedule, self._seed = schedule, state_dict["seed"]
        self._start = [layers[layer.name]["blocks"] for layer in self._layers]
        self._constant_fan_in = [layers[layer.name]["constant_fan_in"] for layer in self._layers]
        self._steps, self._waiting = state_dict["steps"], state_dict["waiting"]
        if self._steps:
            self._has_stepped.set()
        self._look_ahead()


def _stop(layers: Sequence[Moving], eager: Eager) -> None:
    """Let the layers note nothing more, and compiled models run."""
    for layer in layers:
        layer.stop()
    eager.off()


def _within(optimizer: Any) -> Any:
    """Torch's optimizer within those of accelerate and Lightning."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def _check_trained(layers: Sequence[Moving], optimizers: Sequence[Optimizer]) -> None:
    if not layers:
        raise ValueError(
            "Rewire: expected a model with sparse or masked layers whose weights train, got none; make them "
            'with sparsify(model, prune(model, batches, method="random", sparsity=0.9))'
        )
    for it in optimizers:
        if not isinstance(it, Optimizer):
            raise TypeError(f"Rewire: expected an optimizer of torch, or several, got {type(it).__name__}")
    trained = {p for it in optimizers for group in it.param_groups for p in group["params"]}
    if others := [layer.name for layer in layers if layer.parameter not in trained]:
        raise ValueError(
            f"Rewire: expected an optimizer that trains all sparse layers, got one without {len(others)} of "
            f"{len(layers)}, such as {others[0]!r}; make it of the parameters of the model after sparsify(), "
            "or freeze those that should stay with requires_grad_(False)"
        )


def _like(copy: nn.Module, layers: Sequence[Moving]) -> list[Moving]:
    """The layers of a copy, which are to follow."""
    found = moving_layers(copy, frozen=True)
    shapes = [(layer.parameter.shape, layer.rows, layer.cols) for layer in layers]
    if [(layer.parameter.shape, layer.rows, layer.cols) for layer in found] != shapes or any(
        not torch.equal(a, b)
        for own, other in zip(layers, found, strict=True)
        for a, b in zip(own.pattern(), other.pattern(), strict=True)
    ):
        raise ValueError(
            "Rewire: expected copies with the layers and patterns of the model, got another network; make "
            "the copy of the model that is trained"
        )
    return found
