"""Prune a network before training, then train and run it faster than dense."""

from sparseprune import interchange, ops, scores
from sparseprune._controls import Control, controls
from sparseprune._freeze import freeze
from sparseprune._group import group_rows
from sparseprune._prune import prune
from sparseprune._rewire import Candidates, Rewire
from sparseprune._sparsify import densify, sparsify
from sparseprune._summary import Summary, summary
from sparseprune._ticket import Ticket, TicketRound, lottery_ticket
from sparseprune._version import __version__
from sparseprune.build import jit
from sparseprune.checkpoint import convert_state_dict, load, save, sparsify_like
from sparseprune.interchange import masks_from_zeros
from sparseprune.nn import SparseConv1d, SparseConv2d, SparseLinear
from sparseprune.select.apply import apply_masks, rescale_weights
from sparseprune.select.overlap import overlap
from sparseprune.select.topk import topk_masks

__all__ = [
    "Candidates",
    "Control",
    "Rewire",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "Summary",
    "Ticket",
    "TicketRound",
    "__version__",
    "apply_masks",
    "controls",
    "convert_state_dict",
    "densify",
    "freeze",
    "group_rows",
    "interchange",
    "jit",
    "load",
    "lottery_ticket",
    "masks_from_zeros",
    "ops",
    "overlap",
    "prune",
    "rescale_weights",
    "save",
    "scores",
    "sparsify",
    "sparsify_like",
    "summary",
    "topk_masks",
]
