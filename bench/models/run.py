"""Try every model, and keep a line for each."""

from __future__ import annotations

import gc
import importlib.metadata
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.ledger import Ledger
from bench.models.checks import CHECKS, Check
from bench.models.model import Model
from bench.models.trial import Trial, initial, pruned, unscored
from bench.verify import message
from sparseprune.scores import prunable

YES, NO, NEITHER = "yes", "no", "dense neither"
PRUNES = "prunes"
LONGEST = 300  # characters of a reason
Say = Callable[[str], None]
Cell = dict[str, str]  # {"is": yes, no or dense neither, "remark": ...}


def perform(models: Sequence[Model], file: Path, say: Say) -> None:
    """Try the models that have no line in the file yet.

    Args:
        models: what is tried; a model that cannot be made, as without its library, is left out.
        file: JSON lines, see `bench.ledger`.
        say: function that is told of the progress.
    Raises:
        BlockingIOError: another process works on the file.
    """
    with Ledger(file) as ledger:
        for model in models:
            key = {"model": model.name}
            if ledger.get(key) is not None:
                continue
            if not model.is_installed:
                say(f"{model.name}: left out, as {model.library} is not installed")
                continue
            try:
                result = attempt(model)
            except Exception as error:
                say(f"{model.name}: left out, as it cannot be made: {_short(message(error))}")
                continue
            ledger.add(key, result)
            say(f"{model.name}: {_in_words(result['cells'])}")


def attempt(model: Model) -> dict[str, Any]:
    """All columns of a model.

    Returns:
        "cells", {column: {"is": "yes", "no" or "dense neither", "remark": text}}; "parameters" and "weights",
        how many it has, and how many of these can be pruned; "version" of its library.
    """
    with warnings.catch_warnings():
        # Those of other libraries; ours are tested elsewhere.
        warnings.simplefilter("ignore")
        made = initial(model)
        counts = {
            "parameters": sum(p.numel() for p in made.parameters()),
            "weights": sum(weight.numel() for weight in prunable(made).values()),
        }
        del made
        cells: dict[str, Cell] = {}
        trial, cells[PRUNES] = _prune(model)
        for column, check in CHECKS.items():
            if trial is None:
                cells[column] = {"is": NO, "remark": "there are no masks"}
            else:
                cells[column] = _check(check, trial)
        torch._dynamo.reset()
        gc.collect()
    return {"cells": cells, **counts, "version": importlib.metadata.version(model.library)}


def _prune(model: Model) -> tuple[Trial | None, Cell]:
    try:
        trial, remark = pruned(model)
    except Exception as error:
        cell = {"is": NO, "remark": _short(message(error))}
    else:
        return trial, {"is": YES, "remark": _short(remark)}
    try:
        return unscored(model), cell
    except Exception:
        return None, cell


def _check(check: Check, trial: Trial) -> Cell:
    # Whatever is raised, by whichever library, is the result.
    try:
        return {"is": YES, "remark": _short(check.sparse(trial))}
    except Exception as error:
        reason = message(error)
    if check.dense is not None:
        try:
            check.dense(trial)
        except Exception as error:
            return {"is": NEITHER, "remark": _short(message(error))}
    return {"is": NO, "remark": _short(reason)}


def _short(text: str) -> str:
    """In one line that a table can hold."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ..."


def _in_words(cells: dict[str, Cell]) -> str:
    others = [
        f"{column}: {cell['is']}, {cell['remark']}" for column, cell in cells.items() if cell["is"] != YES
    ]
    return "; ".join(others) or "yes in all columns"
