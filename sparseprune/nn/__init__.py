"""Modules that train and run pruned layers."""

from sparseprune.nn.linear import SparseLinear
from sparseprune.nn.masked import MaskedConv1d, MaskedConv2d, MaskedConv3d, MaskedLinear
from sparseprune.nn.relu import FusedReLU

__all__ = ["FusedReLU", "MaskedConv1d", "MaskedConv2d", "MaskedConv3d", "MaskedLinear", "SparseLinear"]
