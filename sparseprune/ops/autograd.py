"""What the gradients of several operators share."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def without_views() -> AbstractContextManager[Any]:
    """Within, results of operators do not count as views, which `y += shortcut` could not change."""
    guard: AbstractContextManager[Any] = torch._C._AutoDispatchBelowADInplaceOrView()
    return guard


def in_backward() -> AbstractContextManager[Any]:
    """The same in a backward pass; a second derivative needs the operators' own gradients."""
    return contextlib.nullcontext() if torch.is_grad_enabled() else without_views()


def relu_backward(g: Tensor, y: Tensor) -> Tensor:
    """``g`` where the output ``y`` of a ReLU is positive or NaN, 0 elsewhere; differentiable in ``g``."""
    # Not masked_fill, which brings g into another layout: ten times slower.
    return torch.ops.aten.threshold_backward.default(g, y.detach(), 0)
