"""torchvision beside a torch of another build: it fails on import, unless its operators have names."""

from __future__ import annotations

import torch

_LIBRARIES: list[torch.library.Library] = []  # kept: what they define goes with them


def name_operators() -> None:
    """Define the operators that torchvision names on import, where nobody has; they cannot be called."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)
