"""Which dense layer becomes which sparse one, and why not."""

from typing import Any, TypeAlias

from torch import nn

from sparseprune.nn.conv import SparseConv1d, SparseConv2d
from sparseprune.nn.linear import SparseLinear
from sparseprune.nn.masked import DenseLayer
from sparseprune.nn.values import check_dtype

Sparse: TypeAlias = SparseLinear | SparseConv1d | SparseConv2d
SPARSE: dict[type[nn.Module], Any] = {
    nn.Linear: SparseLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
}


def why_not_sparse(module: DenseLayer) -> str:
    """Why there are no sparse kernels for a layer; empty if there are."""
    if type(module) not in SPARSE:
        return f"no sparse kernels for {type(module).__name__}"
    try:
        check_dtype(module.weight, type(module).__name__)
    except TypeError:
        return f"no sparse kernels for {str(module.weight.dtype).removeprefix('torch.')}"
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups > 1 and module.weight.shape[1] == 1:
        return "depthwise: no sparse kernels"
    return ""
