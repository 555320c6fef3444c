"""Sparse convolution in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SCHEMAS: dict[Callable[..., Any], str] = {}
