"""The result of ``summary``: rows and totals, as a table or as data."""

import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from sparseprune._summary import table

WIDEST = 100  # columns of text
TOTALS = ("weights", "kept", "sparsity", "flops", "bytes", "alive", "dead_units", "effective_sparsity")


@dataclass(frozen=True)
class SummaryRow:
    """One prunable weight."""

    name: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    # "VxH" of the largest blocks that the kept weights form, "1x1" if unstructured; empty for a dense layer.
    block: str
    # Of one sample's forward pass, 2 per kept weight and position; None where positions are unknown: those of
    # convolutions without input_size.
    flops: int | None
    # Of the weight as stored, indices included; None for masks alone.
    bytes: int | None
    computes: str
    choice: str = ""
    # Kept weights on a path from the input to the output, and output units without any; None where paths are
    # unknown.
    alive: int | None = None
    dead_units: int | None = None

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Unpruned:
    """All parameters of one kind that are not prunable, such as those of embeddings."""

    # A class, "bias", or which layers share them.
    kind: str
    weights: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """Rows and totals of what is prunable, and what is not; ``str()`` is a table, ``to_dict()`` JSON-able."""

    rows: list[SummaryRow]
    # Why it is unknown which weights are alive; None where nobody asked, empty where it is known.
    why_unknown: str | None = None
    # None for masks alone.
    unpruned: list[Unpruned] | None = None

    @property
    def weights(self) -> int:
        return sum(row.weights for row in self.rows)

    @property
    def kept(self) -> int:
        return sum(row.kept for row in self.rows)

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / self.weights if self.weights else 0.0

    @property
    def flops(self) -> int | None:
        return _total([row.flops for row in self.rows])

    @property
    def bytes(self) -> int | None:
        return _total([row.bytes for row in self.rows])

    @property
    def alive(self) -> int | None:
        return _total([row.alive for row in self.rows])

    @property
    def dead_units(self) -> int | None:
        return _total([row.dead_units for row in self.rows])

    @property
    def effective_sparsity(self) -> float | None:
        """Fraction of the weights that are removed or on no path from the input to the output."""
        if self.alive is None:
            return None
        return 1 - self.alive / self.weights if self.weights else 0.0

    @property
    def parameters(self) -> int | None:
        """Number of the dense model's parameters; None for masks alone."""
        return None if self.unpruned is None else self.weights + sum(of.weights for of in self.unpruned)

    def to_dict(self) -> dict[str, Any]:
        totals = {k: getattr(self, k) for k in TOTALS}
        return {
            "layers": [{**asdict(row), "sparsity": row.sparsity} for row in self.rows],
            **totals,
            "unpruned": None if self.unpruned is None else [asdict(of) for of in self.unpruned],
            "parameters": self.parameters,
        }

    def __str__(self) -> str:
        """A table of at most 100 columns, or as many as the terminal has; what it leaves out, it says."""
        columns = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
        return table.text(self._table(), self._table(brief=True), columns)

    def _repr_html_(self) -> str:
        """The whole table, as notebooks show it."""
        return table.html(self._table())

    def _table(self, brief: bool = False) -> table.Table:
        """The table; a brief one rounds numbers, and has what it says of some layers in notes."""
        paths = self.why_unknown is not None and not (brief and self.alive is None)
        head = ["layer", "shape", "block", "weights", "kept", "sparsity"]
        head += ["alive", "dead units"] * paths + ["FLOPs", "bytes", "computes"]
        large = table.rounded if brief else table.count
        lines = []
        for row in self.rows:
            line = [row.name, "x".join(map(str, row.shape)), row.block, f"{row.weights:,}", f"{row.kept:,}"]
            line += [f"{row.sparsity:.2%}", *[table.count(row.alive), _dead(row)] * paths, large(row.flops)]
            computes = row.computes + (f" ({row.choice})" if row.choice else "")
            lines.append([*line, large(row.bytes), computes.partition(" (")[0] if brief else computes])
        total = ["total", "", "", f"{self.weights:,}", f"{self.kept:,}", f"{self.sparsity:.2%}"]
        total += [table.count(self.alive), table.count(self.dead_units)] * paths
        lines.append([*total, large(self.flops), large(self.bytes), ""])
        for name, weights, kept, size in self._of_model():
            line = [name, "", "", f"{weights:,}", f"{kept:,}", f"{1 - kept / weights if weights else 0:.2%}"]
            lines.append([*line, *["", ""] * paths, "", large(size), ""])
        notes = [] if self.why_unknown is None else [self._note()]
        if self.unpruned:
            notes.append("not prunable: " + ", ".join(f"{of.kind} {of.weights:,}" for of in self.unpruned))
        if brief:
            notes += self._choices()
        cells = dict(zip(head, map(list, zip(*lines, strict=True)), strict=True))
        return table.Table(cells, len(self.rows), notes)

    def _of_model(self) -> list[tuple[str, int, int, int]]:
        """Name, weights, those kept and bytes of what is not prunable, and of the whole model."""
        if not self.unpruned:
            return []
        weights, stored = sum(of.weights for of in self.unpruned), sum(of.bytes for of in self.unpruned)
        whole = (self.weights + weights, self.kept + weights, stored + (self.bytes or 0))
        return [("not prunable", weights, weights, stored), ("model", *whole)]

    def _choices(self) -> list[str]:
        """What slows layers down, and why they compute as they do, or where that is to be found."""
        notes = []
        for computes, n in Counter(row.computes for row in self.rows).items():
            if "(" in computes:
                notes.append(f"{computes}: {n} layer{'s' * (n > 1)}")
        choices = {row.choice for row in self.rows if row.choice}
        if len(choices) > 1:
            notes.append("why layers compute as they do: to_dict(), or the table in a notebook")
        return notes + [f"why layers compute as they do: {choice}" for choice in choices if len(choices) == 1]

    def _note(self) -> str:
        if self.effective_sparsity is None:
            return f"alive: unknown{f' ({self.why_unknown})' if self.why_unknown else ''}"
        note = f"effective sparsity {self.effective_sparsity:.2%}: what is on no path counts as removed"
        dead = [row.name for row in self.rows if row.alive == 0 < row.weights]
        if dead and self.alive == 0:
            return note + "; there is none: the network is cut"
        return note + (f"; dead layers: {', '.join(dead)}" if dead else "")


def _total(numbers: list[int | None]) -> int | None:
    known = [n for n in numbers if n is not None]
    return sum(known) if len(known) == len(numbers) else None


def _dead(row: SummaryRow) -> str:
    """Dead units; "all" of them where the layer is cut."""
    return f"all {row.dead_units:,}" if row.alive == 0 < row.weights else table.count(row.dead_units)
