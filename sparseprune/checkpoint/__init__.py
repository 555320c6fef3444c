"""One checkpoint for a model, whichever of its layers are sparse, masked or dense."""

from sparseprune.checkpoint.like import sparsify_like
from sparseprune.checkpoint.save_load import load, save
from sparseprune.checkpoint.state import convert_state_dict

__all__ = ["convert_state_dict", "load", "save", "sparsify_like"]
