"""What the hand-written autograd nodes of eager mode have in common."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch


def without_views() -> AbstractContextManager[Any]:
    """Within, results of operators do not count as views, which `y += shortcut` could not change."""
    guard: AbstractContextManager[Any] = torch._C._AutoDispatchBelowADInplaceOrView()
    return guard


def in_backward() -> AbstractContextManager[Any]:
    """The same in a backward pass; a second derivative needs the operators' own gradients."""
    return contextlib.nullcontext() if torch.is_grad_enabled() else without_views()
