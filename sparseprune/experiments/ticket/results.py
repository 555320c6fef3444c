"""The runs of a search for a lottery ticket and the file that holds them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sparseprune.experiments.frontier.results import SAME_MACHINE
from sparseprune.experiments.train import CurvePoint, TrainResult
from sparseprune.format import files

Kind = Literal["ticket", "re-initialised", "shuffled"]
FILE = "results.json"


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        kind: "ticket"; "re-initialised", the same masks on other initial weights; or "shuffled", the ticket's
            weights with masks whose places were drawn anew within each layer.
        round: number of prunings before it; 0 is the dense network.
        weights: weights that the masks keep, biases excluded.
        sparsity: fraction of the weights that they remove.
        layers: how each layer computes, and why; see `sparseprune.summary`.
        result: what training gave.
    """

    kind: Kind
    round: int
    weights: int
    sparsity: float
    layers: tuple[str, ...]
    result: TrainResult


@dataclass(frozen=True)
class Search:
    """All runs and what a reader needs to judge them: data, model, settings and machine."""

    data: dict[str, Any]
    model: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    runs: tuple[Run, ...]

    def of_kind(self, kind: Kind) -> list[Run]:
        """The runs of a kind, in the order of the rounds."""
        return sorted((run for run in self.runs if run.kind == kind), key=lambda run: run.round)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists for JSON: seconds, bytes, accuracies 0 ... 1."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Search:
        """Undo `to_dict`; KeyError, TypeError or AttributeError for anything else."""
        runs = []
        for run in content["runs"]:
            figures = {"result": result_of(run["result"]), "layers": tuple(run["layers"])}
            runs.append(Run(**{**run, **figures}))
        return cls(**{**content, "runs": tuple(runs)})


def read(folder: Path, new: Search) -> Search | None:
    """The search that a folder has, if it is the new one; None where there is none.

    Args:
        folder: any, or nothing yet.
        new: data, model, settings and machine of what is to go on there.
    Raises:
        ValueError: these differ, or the file is none of a search.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        old = Search.from_dict(json.loads(file.read_bytes()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"ticket: expected the results of a search in {file}, got something else ({error}); "
            "give another --out"
        ) from error

    def facts(search: Search) -> dict[str, Any]:
        here = {f"data {name}": value for name, value in search.data.items() if name != "source"}
        here |= {f"model {name}": value for name, value in search.model.items()} | search.settings
        return here | {name: search.machine.get(name) for name in SAME_MACHINE}

    there, now = facts(old), facts(new)
    if different := [
        f"{name} {there.get(name)!r} there, {now.get(name)!r} now"
        for name in there | now
        if there.get(name) != now.get(name)
    ]:
        raise ValueError(
            f"ticket: expected the settings of the search in {folder}, got others: {'; '.join(different)}; "
            "give another --out, or the same settings"
        )
    return old


def write(folder: Path, found: Search) -> None:
    """Replace the file; OSError where it cannot be written."""
    files.write(folder / FILE, json.dumps(found.to_dict(), indent=1) + "\n")


def result_of(content: dict[str, Any]) -> TrainResult:
    """Undo `dataclasses.asdict`."""
    curve = tuple(CurvePoint(**point) for point in content["curve"])
    return TrainResult(**{**content, "curve": curve})
