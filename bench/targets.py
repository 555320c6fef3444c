"""What the project has set out to reach, as data, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.rows import BEST_DENSE, Row, speedup_over

SPEED = "speed"
MEMORY = "memory"


@dataclass(frozen=True)
class Target:
    """A factor that the contender is to reach.

    Attributes:
        says: in words.
        workload: its id.
        over: what the factor is over: a contender, or `BEST_DENSE`.
        at_least: the factor.
        measure: SPEED, or MEMORY: bytes of parameters, gradients and optimizer state.
    """

    says: str
    workload: str
    over: str
    at_least: float
    measure: str = SPEED


ARTICLE_STEP = "model-step/40000-1000-1000-1000-10/density=0.02/n=256/float32"

TARGETS: tuple[Target, ...] = (
    Target(
        "layer, training step, 90 %",
        "linear-step/1024x1024/density=0.10/n=256/float32",
        "dense-float32",
        4.0,
    ),
    Target(
        "layer, training step, 95 %",
        "linear-step/1024x1024/density=0.05/n=256/float32",
        "dense-float32",
        7.5,
    ),
    Target(
        "layer, forward, 90 %",
        "linear-forward/1024x1024/density=0.10/n=256/float32",
        BEST_DENSE,
        2.5,
    ),
    *(
        target
        for mask in ("random", "snip")
        for target in (
            Target(
                f"article's network, 98 % {mask}, step",
                f"{ARTICLE_STEP}/{mask}/adam-fused",
                "dense-float32",
                10.0,
            ),
            Target(
                f"article's network, 98 % {mask}, memory",
                f"{ARTICLE_STEP}/{mask}/adam-fused",
                "dense-float32",
                15.0,
                MEMORY,
            ),
        )
    ),
    Target(
        "pruning it, against three dense steps",
        "prune/40000-1000-1000-1000-10/density=0.02/n=256/float32/snip/adam-fused",
        "dense-float32",
        1.0,
    ),
    Target("top-k masks of 42.1 M scores", "topk/42.1M/density=0.02/float32", "numpy-partition", 1.0),
)


@dataclass(frozen=True)
class Outcome:
    """A target at one number of threads: the factor that was measured, None where it was not."""

    target: Target
    threads: int
    measured: float | None

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        return "met" if self.measured >= self.target.at_least else "missed"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **vars(self.target),
            "threads": self.threads,
            "measured": self.measured,
            "verdict": self.verdict,
        }


def outcomes(rows: Sequence[Row], contender: str, threads: Sequence[int]) -> list[Outcome]:
    """Hold the rows of one contender against every target, at every number of threads."""
    by_id = {row.id: row for row in rows}
    found = []
    for target in TARGETS:
        for count in threads:
            case = f"{target.workload}/threads={count}"
            row, other = by_id.get(f"{case}/{contender}"), by_id.get(f"{case}/{target.over}")
            measured = None
            if row is not None and target.measure == SPEED:
                measured = speedup_over(row, target.over)
            elif row is not None and other is not None and training_bytes(row) and training_bytes(other):
                measured = training_bytes(other) / training_bytes(row)
            found.append(Outcome(target, count, measured))
    return found


def training_bytes(row: Row) -> int:
    """Bytes of parameters, gradients and optimizer state; 0 where they were not counted."""
    held = row.facts.get("bytes", {})
    return sum(held.get(name, 0) for name in ("parameters", "gradients", "optimizer"))
