"""From masks to the stored format (CSR) and back."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseprune.fallback import dense_weight


def check_mask(mask: Tensor, shape: torch.Size, op: str) -> None:
    """Raise unless ``mask`` is a bool tensor of ``shape``."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = f"dtype {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{op}: expected the mask to be a bool tensor (True = keep), got {got}")
    if mask.shape != shape:
        raise ValueError(
            f"{op}: expected a mask of shape {list(shape)} (the weight's), got {list(mask.shape)}"
        )


def check_block(block: tuple[int, int] | None, op: str) -> None:
    """Raise unless the kernels can store weights in blocks of this size."""
    if block not in (None, (1, 1)):
        raise ValueError(
            f"{op}: expected block=None or (1, 1), got {block}; larger blocks have no kernels yet"
        )


def csr_from_mask(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(crow, col, flat)`` of a bool matrix: int32 ``(rows + 1,)``, int32 ``(nnz,)``, int64 positions."""
    rows, cols = mask.shape
    if max(rows, cols) >= 2**31 or mask.numel() >= 2**62:
        raise ValueError(f"expected fewer than 2^31 rows and columns (int32 indices), got {rows} x {cols}")
    flat = mask.reshape(-1).nonzero()[:, 0]
    if flat.numel() >= 2**31:
        raise ValueError(f"expected fewer than 2^31 nonzeros (int32 indices), got {flat.numel()}")
    starts = torch.arange(rows + 1, device=mask.device) * cols
    crow = torch.searchsorted(flat, starts)
    row = torch.div(flat, max(cols, 1), rounding_mode="floor")
    return crow.int(), (flat - row * cols).int(), flat


def mask_from_csr(crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """The bool matrix ``(rows, cols)`` that is True at the nonzeros."""
    ones = torch.ones(len(col), 1, device=col.device)
    return dense_weight(ones, crow, col, cols).bool()
