"""A small data set of sparse inputs, for tests of bench.wide_data."""

import numpy as np
from scipy import sparse

from bench.wide_data.prepared import Prepared, split


def made_up():
    """60 samples of 40 sparse inputs; the first three tell the three classes, the last is always 0."""
    order = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = order.random((60, 40)) * (order.random((60, 40)) < 0.3)
    x[np.arange(60), labels] += 3
    x[:, -1] = 0
    rows = sparse.csr_matrix(x.astype(np.float32))
    parts = split(labels, np.arange(60), seed=0)
    return Prepared(
        rows[parts.train],
        labels[parts.train],
        rows[parts.test],
        labels[parts.test],
        parts.validation,
        [f"word{i}" for i in range(40)],
        ["red", "green", "blue"],
        {"what": "made up", "taken from": ["a test"]},
    )
