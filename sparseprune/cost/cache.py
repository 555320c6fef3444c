"""The file of measured seconds: ``{machine: {layer: {"sparse": seconds, "dense": seconds}}}``.

It may be read and deleted at any time: ``sparseprune/choices.json`` in ``$XDG_CACHE_HOME`` or ``~/.cache``,
or what the environment variable ``SPARSEPRUNE_CHOICES`` names (empty: no file).
"""

import contextlib
import json
import math
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import filelock

from sparseprune import ops

LOCK_SECONDS = 10.0  # a file is written in milliseconds: whoever holds the lock for longer hangs


class Choice(NamedTuple):
    """Seconds of one training step of a layer, sparse and dense, and what they decide."""

    sparse: float
    dense: float

    @property
    def use_sparse(self) -> bool:
        return self.sparse < self.dense

    def __str__(self) -> str:
        if ops.extension is None:
            return "plain torch, no sparse kernels"
        faster, slower = ("sparse", "dense") if self.use_sparse else ("dense", "sparse")
        return f"{faster} {min(self) * 1e3:.3g} ms, {slower} {max(self) * 1e3:.3g} ms a step"


def choices_file() -> Path | None:
    """Where measured seconds are kept; None: nowhere."""
    named = os.environ.get("SPARSEPRUNE_CHOICES")
    if named is not None:
        return Path(named) if named else None
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sparseprune" / "choices.json"


def load(file: Path | None) -> dict[str, dict[str, Choice]]:
    """What is in the file: nothing where there is none, or (with a warning) where it cannot be read."""
    try:
        return _read(file)
    except (OSError, ValueError) as error:
        warnings.warn(
            f"sparseprune: {file} is ignored ({error}); layers are measured again, and it is written anew",
            RuntimeWarning,
            stacklevel=2,
        )
        return {}


def _read(file: Path | None) -> dict[str, dict[str, Choice]]:
    if file is None or not file.exists():
        return {}
    try:
        known = {
            on: {layer: Choice(seconds["sparse"], seconds["dense"]) for layer, seconds in layers.items()}
            for on, layers in json.loads(file.read_text(encoding="utf-8")).items()
        }
        if not all(
            0 < s < math.inf for layers in known.values() for choice in layers.values() for s in choice
        ):
            raise ValueError("seconds are not above 0")
    except (AttributeError, KeyError, TypeError):
        raise ValueError('expected {machine: {layer: {"sparse": seconds, "dense": seconds}}}') from None
    return known


def save(file: Path | None, on: str, layer: str, choice: Choice) -> None:
    if file is None:
        return
    new = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{file}.lock", timeout=LOCK_SECONDS):
            known: dict[str, dict[str, Choice]] = {}
            with contextlib.suppress(OSError, ValueError):
                # Again: another process may have written meanwhile.
                known = _read(file)
            known.setdefault(on, {})[layer] = choice
            content = {on: {name: c._asdict() for name, c in layers.items()} for on, layers in known.items()}
            new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            # At once: nobody reads half a file.
            new.replace(file)
    except (OSError, filelock.Timeout) as error:
        warnings.warn(
            f"sparseprune: cannot write {file} ({error}), so layers are measured anew each time; "
            "name another file in SPARSEPRUNE_CHOICES, or none with an empty one",
            RuntimeWarning,
            stacklevel=2,
        )
