"""Data sets in memory: small real ones, mosaics of them, and the user's own; nothing is downloaded."""

from sparseprune.experiments.data.dataset import Dataset
from sparseprune.experiments.data.datasets import DATASETS, load
from sparseprune.experiments.data.idx import read_idx
from sparseprune.experiments.data.inputs import Csr, Inputs, Scaled, Stored
from sparseprune.experiments.data.iteration import FirstBatches, batches

__all__ = [
    "DATASETS",
    "Csr",
    "Dataset",
    "FirstBatches",
    "Inputs",
    "Scaled",
    "Stored",
    "batches",
    "load",
    "read_idx",
]
