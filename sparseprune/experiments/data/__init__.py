"""Small real data sets, from packages or a folder, as tensors in memory; nothing is downloaded."""

from sparseprune.experiments.data.datasets import DATASETS, Dataset, load
from sparseprune.experiments.data.idx import read_idx
from sparseprune.experiments.data.iteration import batches

__all__ = ["DATASETS", "Dataset", "batches", "load", "read_idx"]
