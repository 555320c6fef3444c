"""Small real data sets that packages ship, as tensors in memory; nothing is downloaded at run time."""

from sparseprune.data.datasets import DATASETS, Dataset, load
from sparseprune.data.idx import read_idx
from sparseprune.data.iteration import batches

__all__ = ["DATASETS", "Dataset", "batches", "load", "read_idx"]
