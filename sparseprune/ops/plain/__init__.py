"""The operators in plain torch: what runs where the C++ extension is not built, on any device.

Each function is the definition of its operator: the sparse weight is written out as a dense matrix and
multiplied. Correct, differentiable through the same formulas, and no faster than dense.
"""

from collections.abc import Callable
from typing import Any

import torch

from sparseprune.ops.plain import batch_norm, convolution, products, topk

FAMILIES = (topk, products, convolution, batch_norm)
SCHEMAS: dict[Callable[..., Any], str] = {op: text for f in FAMILIES for op, text in f.SCHEMAS.items()}


def define() -> torch.library.Library:
    """Define and implement ``torch.ops.sparseprune`` in plain torch, for as long as the result lives."""
    library = torch.library.Library("sparseprune", "DEF")
    for schema in SCHEMAS.values():
        library.define(schema)
    implement(library, "CompositeExplicitAutograd")
    return library


def implement(library: torch.library.Library, key: str) -> None:
    """Implement the operators that have no kernel yet for one of torch's dispatch keys, such as "CUDA"."""
    for function in SCHEMAS:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"sparseprune::{function.__name__}", key):
            library.impl(function.__name__, function, key)
