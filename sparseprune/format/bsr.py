"""From masks to the stored format (BSR with blocks of V rows x 1 column) and back."""

import torch
from torch import Tensor

BLOCK_ROWS = (1, 2, 4, 8, 16)  # V, ascending: each divides the next


def check_mask(mask: Tensor, shape: torch.Size, op: str) -> None:
    """Raise unless ``mask`` is a bool tensor of ``shape``."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = f"dtype {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{op}: expected the mask to be a bool tensor (True = keep), got {got}")
    if mask.shape != shape:
        raise ValueError(
            f"{op}: expected a mask of shape {list(shape)} (the weight's), got {list(mask.shape)}"
        )


def check_block(block: tuple[int, int], op: str) -> int:
    """V of a block ``(V, 1)``; raise unless it is one that can be stored."""
    if not isinstance(block, tuple) or len(block) != 2 or block[0] not in BLOCK_ROWS or block[1] != 1:
        raise ValueError(
            f"{op}: expected block == (V, 1), rows x columns, with V in {', '.join(map(str, BLOCK_ROWS))}, "
            f"got {block!r}"
        )
    return block[0]


def check_pattern_sizes(op: str, crow: Tensor, cols: int, block_rows: int) -> None:
    """Raise unless there are such blocks, and rows and columns can be counted in int32."""
    if block_rows not in BLOCK_ROWS:
        raise ValueError(f"{op}: expected block_rows to be 1, 2, 4, 8 or 16, got {block_rows}")
    rows = (crow.shape[0] - 1) * block_rows
    if rows >= 2**31 or not 0 <= cols < 2**31:
        raise ValueError(
            f"{op}: expected fewer than 2^31 rows and columns (int32 indices), got {rows} x {cols}"
        )


def largest_block(mask: Tensor) -> int:
    """The largest V for which a bool matrix is made of whole blocks of V rows x 1 column."""
    block_rows = 1
    for twice in BLOCK_ROWS[1:]:
        # Two neighbours of the size before, whose first rows stand for them.
        if len(mask) % twice or not torch.equal(mask[::twice], mask[block_rows::twice]):
            break
        block_rows = twice
    return block_rows


def bsr_from_mask(mask: Tensor, block_rows: int = 1) -> tuple[Tensor, Tensor]:
    """``(crow, col)`` of a bool matrix: int32 ``(rows / block_rows + 1,)`` and int32 ``(nnzb,)``.

    Raises:
        ValueError: the mask is not made of whole blocks, or too large for int32 indices.
    """
    rows, cols = mask.shape
    if rows % block_rows:
        raise ValueError(f"expected rows divisible by {block_rows} (rows of a block), got {rows}")
    blocks = mask[::block_rows]
    if any(not torch.equal(mask[i::block_rows], blocks) for i in range(1, block_rows)):
        raise ValueError(
            f"expected a mask made of whole {block_rows} x 1 blocks, got one that cuts blocks; "
            "prune with that block, or let block=None find what fits"
        )
    if max(rows, cols) >= 2**31 or mask.numel() >= 2**62:
        raise ValueError(f"expected fewer than 2^31 rows and columns (int32 indices), got {rows} x {cols}")
    flat = blocks.reshape(-1).nonzero()[:, 0]
    if flat.numel() >= 2**31:
        raise ValueError(f"expected fewer than 2^31 blocks (int32 indices), got {flat.numel()}")
    starts = torch.arange(len(blocks) + 1, device=mask.device) * cols
    crow = torch.searchsorted(flat, starts)
    row = torch.div(flat, max(cols, 1), rounding_mode="floor")
    return crow.int(), (flat - row * cols).int()


def pattern_of_largest_blocks(mask: Tensor, groups: int = 1) -> tuple[Tensor, Tensor, int]:
    """``(crow, col, V)`` of a bool matrix, with the largest V for which it is made of whole blocks.

    Args:
        mask: bool (rows, cols).
        groups: number of groups of a convolution: V divides the rows of each.
    """
    block_rows = largest_block(mask)
    # A mask of whole blocks is one of blocks half as large.
    while len(mask) // groups % block_rows:
        block_rows //= 2
    return (*bsr_from_mask(mask, block_rows), block_rows)


def as_int32(indices: Tensor, name: str) -> Tensor:
    """Indices of any integer type as int32; the tensor itself if it is.

    Raises:
        TypeError: they are no integers.
        ValueError: one does not fit.
    """
    if indices.dtype == torch.int32:
        return indices
    if indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex():
        raise TypeError(f"expected {name} to be integers, got {indices.dtype}; convert it with .int()")
    wide = indices.long()
    if wide.numel() and not wide.is_meta and not -(2**31) <= wide.min() <= wide.max() < 2**31:
        raise ValueError(f"expected {name} to fit into int32, got numbers from {wide.min()} to {wide.max()}")
    return wide.int()


def mask_from_bsr(crow: Tensor, col: Tensor, cols: int, block_rows: int) -> Tensor:
    """The bool matrix ``(rows, cols)`` that is True at the stored blocks."""
    ones = torch.ones(len(col), block_rows, device=col.device)
    return dense_weight(ones, crow, col, cols).bool()


def row_of_blocks(crow: Tensor, col: Tensor) -> Tensor:
    """Block row of every block, int64 ``(nnzb,)``."""
    counts = (crow[1:] - crow[:-1]).long()
    rows = torch.arange(len(counts), device=crow.device)
    # Told how many there are, torch.compile need not look: models read `weight` in their forward.
    return torch.repeat_interleave(rows, counts, output_size=len(col))


def dense_weight(values: Tensor, crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """The weight as a dense matrix ``(rows, cols)``, differentiable in ``values``."""
    block_rows = values.shape[1]
    rows = (len(crow) - 1) * block_rows
    first = row_of_blocks(crow, col) * (block_rows * cols) + col
    flat = first[:, None] + torch.arange(block_rows, device=col.device) * cols
    zeros = values.new_zeros(rows * cols)
    return zeros.index_copy(0, flat.reshape(-1), values.reshape(-1)).reshape(rows, cols)


def at_blocks(matrix: Tensor, crow: Tensor, col: Tensor, block_rows: int) -> Tensor:
    """``values`` (nnzb, block_rows) of a dense ``(rows, cols)`` matrix: its elements at the blocks."""
    blocks = matrix.reshape(len(crow) - 1, block_rows, matrix.shape[1])
    return blocks[row_of_blocks(crow, col), :, col.long()]
