"""Prune a network before training, then train and run it faster than dense."""

__version__ = "0.1.0"

from sparseprune import jit, ops, scores
from sparseprune.masks import apply_masks, rescale_weights, topk_masks
from sparseprune.nn import SparseConv1d, SparseConv2d, SparseLinear
from sparseprune.prune import prune
from sparseprune.sparsify import densify, sparsify
from sparseprune.summary import Summary, summary

__all__ = [
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "Summary",
    "apply_masks",
    "densify",
    "jit",
    "ops",
    "prune",
    "rescale_weights",
    "scores",
    "sparsify",
    "summary",
    "topk_masks",
]
