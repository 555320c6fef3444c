"""Libraries of models, which need not be installed."""

from __future__ import annotations

import importlib
from typing import Any

import torch

_KEPT: list[torch.library.Library] = []  # what they define goes with them


def load(name: str) -> Any:
    """Import a library or a module of it.

    torchvision, which the others import where it is installed, fails beside a torch of another build unless
    its operators have names.
    """
    name_operators_of_torchvision()
    return importlib.import_module(name)


def name_operators_of_torchvision() -> None:
    """Define the operators without which the import of torchvision fails here; they cannot be called."""
    if _KEPT:
        return
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
