"""The file of measured seconds: ``{machine: {layer: {"sparse": seconds, "dense": seconds, "when": date}}}``.

It may be read and deleted at any time: ``sparseprune/choices.json`` in ``$XDG_CACHE_HOME`` or ``~/.cache``,
or what the environment variable ``SPARSEPRUNE_CHOICES`` names (empty: no file). Only what was measured
undisturbed is kept there, for ``DAYS``: no figure can be wrong for ever.
"""

import contextlib
import json
import math
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import filelock

from sparseprune import ops
from sparseprune.cost.timer import SAME
from sparseprune.format import files

LOCK_SECONDS = 60.0  # a file is written in milliseconds, but a thousand may want to; or its holder hangs
LARGEST = 2**26  # bytes: a hundred thousand layers
DAYS = 7.0

Known = dict[str, dict[str, dict[str, float]]]

_told: set[Path] = set()  # files that a warning was given about
_unwritable: set[Path] = set()  # files that are not tried again by this process


@dataclass(frozen=True)
class Choice:
    """Seconds of one training step of a layer, sparse and dense, and what they decide.

    Attributes:
        sparse, dense: seconds.
        disturbed: why they are not to be believed, and not kept; empty where nothing is known against them.
    """

    sparse: float
    dense: float
    disturbed: str = ""

    @property
    def tie(self) -> bool:
        """Whether they are the same, as far as can be measured."""
        return max(self.sparse, self.dense) <= min(self.sparse, self.dense) * (1 + SAME)

    @property
    def use_sparse(self) -> bool:
        """A tie goes to sparse, which stores less, and has less for an optimizer to do."""
        return self.tie or self.sparse < self.dense

    def __str__(self) -> str:
        if ops.extension is None:
            return "plain torch, no sparse kernels"
        sparse, dense = f"sparse {self.sparse * 1e3:.3g} ms", f"dense {self.dense * 1e3:.3g} ms"
        first, second = (sparse, dense) if self.use_sparse else (dense, sparse)
        doubt = f", disturbed: {self.disturbed}" if self.disturbed else ""
        return f"{'a tie: ' if self.tie else ''}{first}, {second} a step{doubt}"


def choices_file() -> Path | None:
    """Where measured seconds are kept; None: nowhere, as where that is something else than a file."""
    named = os.environ.get("SPARSEPRUNE_CHOICES")
    if named is None:
        try:
            cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except RuntimeError:
            # Who has no HOME, and no entry among the users, has no folder either.
            return None
        file = Path(cache) / "sparseprune" / "choices.json"
    elif named:
        file = Path(named)
    else:
        return None
    return None if _is_something_else(file) else file


def load(file: Path | None) -> dict[str, dict[str, Choice]]:
    """What is in the file: nothing where there is none, or (with one warning) where it cannot be read."""
    try:
        known = _read(file)
    except (OSError, ValueError) as error:
        _warn(file, f"{file} is ignored ({error}); layers are measured again, and it is written anew")
        return {}
    return {
        on: {layer: Choice(entry["sparse"], entry["dense"]) for layer, entry in layers.items()}
        for on, layers in known.items()
    }


def save(file: Path | None, on: str, layer: str, choice: Choice) -> None:
    """Add an entry to what is in the file by now; where that fails there is a warning, and no further try."""
    if file is None or file in _unwritable or _is_something_else(file):
        return
    # What a link names is written, not the link.
    real = Path(os.path.realpath(file))
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{real}.lock", timeout=LOCK_SECONDS):
            known: Known = {}
            # What is damaged is begun anew; what merely cannot be read now is not written over.
            with contextlib.suppress(ValueError):
                # Again: others may have written meanwhile.
                known = _read(real)
            known.setdefault(on, {})[layer] = {
                "sparse": choice.sparse,
                "dense": choice.dense,
                "when": time.time(),
            }
            files.write(real, json.dumps(known, indent=1) + "\n")
    except (OSError, NotImplementedError) as error:
        _unwritable.add(file)
        _warn(
            file,
            f"cannot write {file} ({error.__cause__ or error}), so layers are measured anew each time; "
            "name another file in SPARSEPRUNE_CHOICES, or none with an empty one",
        )


def _is_something_else(file: Path) -> bool:
    """Whether there is no file but a device, a pipe or a folder."""
    try:
        return file.exists() and not file.is_file()
    except OSError:
        # Reading and writing say what is wrong.
        return False


def _read(file: Path | None) -> Known:
    """The entries that are not too old; OSError, ValueError where the file is not what `save` writes."""
    if file is None or not file.is_file():
        return {}
    if file.stat().st_size > LARGEST:
        raise ValueError(f"expected {LARGEST} bytes at most")
    now = time.time()
    known: Known = {}
    try:
        for on, layers in json.loads(file.read_text(encoding="utf-8")).items():
            entries = {layer: _entry(entry) for layer, entry in layers.items()}
            young = {name: e for name, e in entries.items() if 0 <= now - e["when"] < DAYS * 86400}
            if young:
                known[on] = young
    except (AttributeError, KeyError, TypeError, OverflowError, RecursionError):
        raise ValueError('expected {machine: {layer: {"sparse": seconds, "dense": seconds}}}') from None
    return known


def _entry(found: dict[str, float]) -> dict[str, float]:
    # Files of earlier versions have no dates: what they say is too old. fsum refuses what is no number.
    entry = {name: math.fsum([found.get(name, 0.0)]) for name in ("sparse", "dense", "when")}
    if not all(0 < entry[name] < math.inf for name in ("sparse", "dense")):
        raise ValueError("seconds are not above 0")
    return entry


def _warn(file: Path | None, message: str) -> None:
    """Once for each file: a network has many layers."""
    if file is None or file in _told:
        return
    _told.add(file)
    warnings.warn(f"sparseprune: {message}", RuntimeWarning, stacklevel=3)
