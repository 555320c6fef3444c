"""Masks and weights of other libraries, both ways."""

from sparseprune.interchange.torch_prune import from_torch_prune, to_torch_prune
from sparseprune.interchange.torch_sparse import linear_from_sparse, sparse_weight
from sparseprune.interchange.zeros import masks_from_zeros

__all__ = ["from_torch_prune", "linear_from_sparse", "masks_from_zeros", "sparse_weight", "to_torch_prune"]
