"""Modules that train and run pruned layers."""

from sparseprune.nn.batch_norm import BatchNormAct2d
from sparseprune.nn.conv import SparseConv1d, SparseConv2d
from sparseprune.nn.linear import SparseLinear
from sparseprune.nn.masked import MaskedConv1d, MaskedConv2d, MaskedConv3d, MaskedLinear
from sparseprune.nn.relu import FusedReLU
