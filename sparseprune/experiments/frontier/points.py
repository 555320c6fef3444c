"""The networks of a frontier: which are trained, with which seeds, in which order."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparseprune.experiments.frontier.rules import LAYERWISE, RULES, WEIGHTED
from sparseprune.experiments.rewiring import REWIRE, START
from sparseprune.format.bsr import BLOCK_ROWS
from sparseprune.scores import METHODS, ROUNDS
from sparseprune.select.budget import EXPONENT

WIDEST = 16.0  # times the original's width, of a network that is pruned to the original's budget

# Methods that score once; the others choose weights round by round, which a frontier's rules do not.
ONE_SHOT = [name for name in METHODS if name not in ROUNDS]


@dataclass(frozen=True)
class Point:
    """A network of a frontier and the seed of one training run; fields but `kind` and `seed` may be idle.

    Attributes:
        kind: "dense", "small dense" or "sparse".
        seed: seed of initial weights, random masks, scored batches and order of samples.
        flops: fraction of the dense network's training FLOPs that it may take; "budget" in files.
        method: how weights are scored, for "sparse"; see `sparseprune.prune`.
        rule: how the FLOPs are divided among layers; see `masks_within` of rules.py.
        exponent: exponent of the rules "cost" and "time".
        block_rows: V of the blocks of V x 1 that are kept or removed.
        shuffled: whether each layer keeps as many blocks as the scores say, but of chance.
        width: how many times as wide the network is that is pruned to these FLOPs, for "sparse".
        rewire: how the pattern moves during training, "rigl" or "set"; None for not at all.
    """

    kind: str
    seed: int
    flops: float = 1.0
    method: str | None = None
    rule: str | None = None
    exponent: float | None = None
    block_rows: int | None = None
    shuffled: bool = False
    width: float = 1.0
    rewire: str | None = None

    @property
    def family(self) -> str:
        """What a line of the plot joins: runs that differ in FLOPs and seed alone."""
        if self.kind != "sparse":
            return self.kind
        return f"{self._order} {self.rule_text} V={self.block_rows}{self._wide}"

    @property
    def method_text(self) -> str:
        """The method, "snip", "snip shuffled", "RigL" or "snip 2x wide"; else the kind."""
        return f"{self._order}{self._wide}"

    @property
    def rule_text(self) -> str:
        """The rule, with its exponent if it has one: "cost^0.5"."""
        return f"{self.rule or ''}" if self.exponent is None else f"{self.rule}^{self.exponent:g}"

    @property
    def name(self) -> str:
        """Name in reports of progress, the same for all seeds."""
        return self.family if self.kind == "dense" else f"{self.family} {100 * self.flops:.4g} % FLOPs"

    @property
    def label(self) -> str:
        """Name in reports of progress, with the seed."""
        return f"{self.name}, seed {self.seed}"

    @property
    def network(self) -> Point:
        """The same for all seeds."""
        return dataclasses.replace(self, seed=0)

    @property
    def _order(self) -> str:
        if self.rewire is not None:
            return REWIRE[self.rewire]
        return f"{self.method or self.kind}{' shuffled' if self.shuffled else ''}"

    @property
    def _wide(self) -> str:
        return "" if self.width == 1 else f" {self.width:g}x wide"

    def to_dict(self) -> dict[str, Any]:
        """Fields for files; as in older ones, `rewire` where there is one alone."""
        fields = {"budget" if name == "flops" else name: value for name, value in vars(self).items()}
        return fields if self.rewire else {name: fields[name] for name in fields if name != "rewire"}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Point:
        """Undo `to_dict`; fields that are missing, in older files, have their defaults."""
        return cls(**{"flops" if name == "budget" else name: value for name, value in fields.items()})


def frontier_points(
    *,
    flops: Sequence[float] = (0.5, 0.3, 0.2, 0.1, 0.05),
    small: Sequence[float] | None = None,
    methods: Sequence[str] = ("random", "snip", "grasp"),
    rules: Sequence[str] = RULES,
    block_rows: Sequence[int] = (1, 4),
    exponents: Sequence[float] = (EXPONENT,),
    shuffled: bool = False,
    widths: Sequence[float] = (1.0,),
    rewire: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
) -> list[Point]:
    """The runs of a frontier, seed by seed, so that an interrupted one is a complete one of fewer seeds.

    Args:
        flops: fractions of the dense training FLOPs, in (0, 1].
        small: those of the small dense networks; `flops` when None.
        methods: names of scoring methods; see `sparseprune.prune`.
        rules: ways of dividing FLOPs among layers; see `masks_within` of rules.py.
        block_rows: heights V of blocks, of 1, 2, 4, 8, 16.
        exponents: exponents of the rules "cost" and "time", 0 to 1.
        shuffled: whether to add the masks of other rules than "uniform" and "erk" shuffled within layers.
        widths: how many times as wide the networks are that are pruned, 1 to `WIDEST`. All have the FLOPs of
            a fraction of the original's. Wider ones have the rules "uniform" and "erk" alone.
        rewire: how patterns move, "rigl" or "set", in networks of their own, which start from the masks of
            the method "random".
        seeds: seeds, with one run of everything for each.
    Returns:
        for each seed dense, small dense, then method by method and width by width (scored once), each with
        every rule, exponent, V and fraction, and so for each way to rewire. A global ranking of random scores
        is left out: it is uniform.
    Raises:
        ValueError: something is unknown or out of range.
    """
    for what, values, known in (
        ("methods", methods, ONE_SHOT),
        ("rules", rules, RULES),
        ("blocks", block_rows, BLOCK_ROWS),
        ("methods to rewire", rewire, list(REWIRE)),
    ):
        if unknown := [value for value in values if value not in known]:
            raise ValueError(f"frontier: expected {what} of {', '.join(map(str, known))}, got {unknown[0]!r}")
    if rewire and set(rules) <= {"global"}:
        others = ", ".join(rule for rule in RULES if rule != "global")
        raise ValueError(f"frontier: expected a rule of {others} for random masks that move, got global")
    small = flops if small is None else small
    for fraction in (*flops, *small):
        if not 0 < fraction <= 1:
            raise ValueError(
                f"frontier: expected budgets in (0, 1], fractions of the dense training FLOPs, got {fraction}"
            )
    for power in exponents:
        if not 0 <= power <= 1:
            raise ValueError(f"frontier: expected exponents from 0 to 1, got {power}")
    for width in widths:
        if not 1 <= width <= WIDEST:
            raise ValueError(
                f"frontier: expected widths from 1 to {WIDEST:g}, times that of the network, got {width}"
            )
        if width != 1 and not set(rules) & set(LAYERWISE):
            raise ValueError(
                f"frontier: expected a rule of {', '.join(LAYERWISE)} for networks {width:g} times as wide, "
                f"got {', '.join(rules) or 'none'}"
            )
    starts = [*((method, None) for method in methods), *((START, how) for how in rewire)]
    points = []
    for seed in seeds:
        points.append(Point("dense", seed))
        points += [Point("small dense", seed, fraction) for fraction in small]
        for (method, how), width, rule in itertools.product(starts, widths, rules):
            if (method, rule) == ("random", "global") or (width != 1 and rule not in LAYERWISE):
                continue
            powers: Sequence[float | None] = exponents if rule in WEIGHTED else (None,)
            orders = (False, True) if shuffled and rule not in LAYERWISE and method != "random" else (False,)
            for order, exponent, rows, fraction in itertools.product(orders, powers, block_rows, flops):
                points.append(
                    Point("sparse", seed, fraction, method, rule, exponent, rows, order, float(width), how)
                )
    return list(dict.fromkeys(points))
