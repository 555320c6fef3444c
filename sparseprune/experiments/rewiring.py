"""How patterns move in experiments: `sparseprune.Rewire` for a run of epochs or of seconds."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

import sparseprune as sp

# Methods of `Rewire`, and their names in tables and plots. All start from random masks.
REWIRE = {"rigl": "RigL", "set": "SET"}
START = "random"
EVERY = 100  # steps
FRACTION = 0.3  # of the weights, which move at first
PART = 0.75  # of the training, after which patterns stay


def check_rewire(methods: Iterable[str], every: int, steps: int | None = None) -> None:
    """Raise ValueError for an unknown method, or where no pattern would move in so many steps."""
    for method in methods:
        if method not in REWIRE:
            raise ValueError(f"rewire: expected a method of {', '.join(REWIRE)}, got {method!r}")
    if every < 1:
        raise ValueError(f"rewire: expected every >= 1 (steps), got {every}")
    if steps is not None and every >= (until := _until(steps)):
        raise ValueError(
            f"rewire: expected patterns to move once at least, got {steps} steps, of which the first {until} "
            f"may, and a move every {every}; train for longer, or let them move more often (--rewire-every)"
        )


def rewired_text(methods: Iterable[str | None], every: int) -> list[str]:
    """A line below tables on the methods of `REWIRE` among these; none if there are none."""
    found = set(methods)
    names = " and ".join(text for name, text in REWIRE.items() if {name, text} & found)
    if not names:
        return []
    return [
        f"{names}: random masks that move every {every} steps, {100 * FRACTION:g} % of the weights at first "
        "and none in the last quarter of the training."
    ]


class Moves:
    """Moves the pattern of a model in the first three quarters of its training.

    Where the training ends after a time, its number of steps is not known. It is estimated anew before each
    move, from the steps so far and the part of the time that they took. So the part of the weights that moves
    falls with the part of the training that is done, as it does in a run of epochs.

    Args:
        model: network with sparse or masked layers.
        optimizer: what trains it.
        method: one of `REWIRE`.
        every: steps from one move to the next.
        seed: seed of random choices.
        steps: number of steps of the whole training; None where it ends after a time.
        start: steps that were done before.
    Raises:
        ValueError: see `sparseprune.Rewire` and `check_rewire`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        method: str,
        every: int,
        seed: int,
        steps: int | None,
        start: int = 0,
    ) -> None:
        check_rewire([method], every, steps)
        until = None if steps is None else _until(steps)
        # Rewire takes no negative seeds, and torch does.
        self._rewire = sp.Rewire(
            model, optimizer, "set" if method == "set" else "rigl", FRACTION, every, until, seed % 2**64
        )
        self._every, self._is_timed = every, steps is None
        self._until, self._steps = until, start
        self.count = 0  # of moves
        self._set(steps=start)

    def step(self, done: float) -> None:
        """Count a step, and move where it is time.

        Args:
            done: part of the training that was done before this step, 0 ... 1.
        """
        self._rewire.step()
        before, self._steps = self._steps, self._steps + 1
        self.count += self._steps % self._every == 0 and not (self._until and self._steps >= self._until)
        if self._is_timed and done > 0 and (self._steps + 1) % self._every == 0:
            self._until = _until(before / done)
            self._set(until=self._until)

    def _set(self, **numbers: int) -> None:
        self._rewire.load_state_dict({**self._rewire.state_dict(), **numbers})


def _until(steps: float) -> int:
    return max(round(PART * steps), 1)
