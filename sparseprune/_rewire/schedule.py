"""When a pattern moves, how much of it, and how many weights are left."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Numbers of :class:`sparseprune.Rewire`.

    Attributes:
        fraction: part of each layer's blocks that moves at first.
        every: steps from one move to the next.
        until: step before which the last one is; None for no end.
        sparsity: part of the weights that is removed from halfway on; None where their number stays.
    """

    fraction: float
    every: int
    until: int | None
    sparsity: float | None

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(
                f"Rewire: expected 0 < fraction < 1, the part of the weights that moves, got {self.fraction}"
            )
        for name, steps in (("every", self.every), ("until", self.until)):
            if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int)):
                raise TypeError(f"Rewire: expected {name} to be a number of steps, got {steps!r}")
            if steps is not None and steps < 1:
                raise ValueError(f"Rewire: expected {name} >= 1 (optimizer steps), got {steps}")
        if self.sparsity is not None:
            if not 0 <= self.sparsity < 1:
                raise ValueError(
                    f"Rewire: expected 0 <= sparsity < 1, the part that is removed, got {self.sparsity}"
                )
            if self.until is None:
                raise ValueError(
                    "Rewire: expected until with sparsity, since weights go until half of these steps are "
                    "done; three quarters of all steps is usual"
                )

    def moves_at(self, step: int) -> bool:
        """Whether the pattern moves after this many steps."""
        return step % self.every == 0 and not self.is_over(step)

    def is_over(self, step: int) -> bool:
        return self.until is not None and step >= self.until

    def part(self, step: int) -> float:
        """Part of the blocks that moves: f = α / 2 · (1 + cos(π t / T)) (RigL, section 3)."""
        if self.until is None:
            return self.fraction
        return self.fraction / 2 * (1 + math.cos(math.pi * step / self.until))

    def blocks(self, step: int, start: int, end: int) -> int:
        """Number of blocks of all layers: n = n_end + (n_start − n_end) (1 − t / t_end)³ (GraNet, eq. 1)."""
        if self.sparsity is None or self.until is None:
            return start
        left = max(1 - step / (self.until / 2), 0.0)
        return end + round((start - end) * left**3)
