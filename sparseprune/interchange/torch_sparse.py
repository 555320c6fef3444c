"""Torch's sparse tensors (CSR, BSR) as layers, and the weights of layers as torch's sparse tensors."""

import torch
from torch import Tensor

from sparseprune.format.bsr import BLOCK_ROWS, as_int32, at_blocks, pattern_of_largest_blocks
from sparseprune.nn import SparseLinear
from sparseprune.nn.sparse import SparseLayer


def sparse_weight(layer: SparseLayer) -> Tensor:
    """The weight of a sparse layer as a torch tensor: CSR, or BSR with blocks of (V, 1) where V > 1.

    It is ``weight.flatten(1)``, detached, (rows, columns), and shares its numbers with the layer.

    Raises:
        TypeError: this is no sparse layer.
    """
    if not isinstance(layer, SparseLayer):
        raise TypeError(f"sparse_weight: expected a sparse layer, got {type(layer).__name__}")
    crow, col, *_ = layer.pattern
    values, shape = layer.values.detach(), (layer.weight_shape[0], layer._cols)
    if layer.block[0] == 1:
        return torch.sparse_csr_tensor(crow, col, values[:, 0], shape, check_invariants=False)
    return torch.sparse_bsr_tensor(crow, col, values[:, :, None], shape, check_invariants=False)


def linear_from_sparse(weight: Tensor, bias: Tensor | None = None) -> SparseLinear:
    """A sparse linear layer with the weight of a torch tensor in a sparse layout.

    What the tensor stores is kept, also where it is 0.

    Args:
        weight: (out_features, in_features), CSR, BSR, CSC, BSC or COO, indices int32 or int64. Blocks of
            (V, 1) stay; others become the largest blocks of (V, 1) that they are made of.
        bias: (out_features,), or None.
    Raises:
        TypeError: the tensor is not sparse, or its dtype has no kernels.
        ValueError: it is no matrix, or its columns are not in order, or the bias does not fit.
    """
    if weight.layout == torch.strided:
        raise TypeError(
            "linear_from_sparse: expected a sparse tensor of torch, got a dense one; use its to_sparse_csr()"
        )
    if weight.dim() != 2:
        raise ValueError(f"linear_from_sparse: expected a matrix, got {weight.dim()} dimensions")
    rows, cols = weight.shape
    if bias is not None and bias.shape != (rows,):
        raise ValueError(
            f"linear_from_sparse: expected bias.shape == [{rows}] (rows of weight), got {list(bias.shape)}"
        )
    crow, col, values = _blocks(weight.detach())
    block = (values.shape[1], 1)
    layer = SparseLinear(
        cols, rows, bias is not None, values.device, values.dtype, crow=crow, col=col, block=block
    )
    with torch.no_grad():
        layer.values.copy_(values)
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)
    return layer


def _blocks(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(crow, col, values)`` of a sparse matrix."""
    if weight.layout == torch.sparse_csr:
        crow, col, values = weight.crow_indices(), weight.col_indices(), weight.values()[:, None]
    elif weight.layout == torch.sparse_bsr and _storable(weight):
        crow, col, values = weight.crow_indices(), weight.col_indices(), weight.values()[:, :, 0]
    else:
        weight = weight.coalesce() if weight.layout == torch.sparse_coo else weight
        kept = _ones(weight).to_dense().bool()
        crow, col, block_rows = pattern_of_largest_blocks(kept)
        values = at_blocks(weight.to_dense(), crow, col, block_rows)
    return as_int32(crow, "crow"), as_int32(col, "col"), values


def _storable(weight: Tensor) -> bool:
    rows, cols = weight.values().shape[1:]
    return cols == 1 and rows in BLOCK_ROWS


def _ones(weight: Tensor) -> Tensor:
    """The same pattern with ones for numbers."""
    if weight.layout == torch.sparse_coo:
        values = torch.ones_like(weight.values())
        return torch.sparse_coo_tensor(weight.indices(), values, weight.shape, check_invariants=True)
    ones = torch.ones_like(weight.values())
    by_rows = weight.layout in (torch.sparse_csr, torch.sparse_bsr)
    compressed = weight.crow_indices() if by_rows else weight.ccol_indices()
    plain = weight.col_indices() if by_rows else weight.row_indices()
    return torch.sparse_compressed_tensor(
        compressed, plain, ones, weight.shape, layout=weight.layout, check_invariants=True
    )
