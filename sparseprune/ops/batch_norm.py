"""Batch normalisation with what surrounds it: wrappers, fake kernels and gradients of the operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FAKES: dict[str, Callable[..., Any]] = {}
# (operator, backward, setup_context)
GRADIENTS: list[tuple[str, Callable[..., Any], Callable[..., Any]]] = []
