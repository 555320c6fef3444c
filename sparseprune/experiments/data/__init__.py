"""Data sets as tensors in memory: small real ones, and the user's own; nothing is downloaded."""

from sparseprune.experiments.data.dataset import Dataset
from sparseprune.experiments.data.datasets import DATASETS, load
from sparseprune.experiments.data.idx import read_idx
from sparseprune.experiments.data.iteration import batches

__all__ = ["DATASETS", "Dataset", "batches", "load", "read_idx"]
