"""Univariate screening: the inputs that, each by itself, tell the classes apart best.

It is what a statistician tries first on wide data, and so the control of every experiment on it. It has to
be told how many inputs to keep, and finds nothing where no single input carries a signal.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparseprune.experiments.data.dataset import Dataset
from sparseprune.experiments.data.inputs import Csr, Inputs, Scaled

AT_A_TIME = 2**22  # numbers that are float64, 32 MB


def screened(data: Dataset, count: int) -> tuple[Dataset, Tensor]:
    """The inputs with the largest one-way F statistic over the classes, and the data with these alone.

    F is the variance between the classes over that within them. It is taken from the training samples. Of
    equal ones the first are taken, and inputs that are constant only where there are no others.

    Args:
        data: inputs of any shape and kind.
        count: number of inputs to keep.
    Returns:
        the data set, samples of shape (count,), as compact as it was; and the positions of its inputs in a
        flattened sample, int64, (count,), ascending.
    Raises:
        ValueError: count is not between 1 and the number of inputs, or all training samples have one label.
        ModuleNotFoundError: scikit-learn is not installed.
    Reference:
        Fisher, Statistical Methods for Research Workers, 1925: the analysis of variance.
    """
    if not 0 < count <= data.features:
        raise ValueError(f"screened: expected a count from 1 to {data.features} (inputs), got {count}")
    if len(data.train_y.unique()) < 2:
        raise ValueError("screened: expected training samples of at least two labels, got one")
    statistics = f_statistics(data.train_x, data.train_y)
    chosen = torch.from_numpy(np.sort(np.argsort(-statistics, kind="stable")[:count]))
    view = replace(
        data,
        source=f"{data.source}; {count} inputs with the largest F statistic",
        train_x=_columns(data.train_x, chosen),
        test_x=_columns(data.test_x, chosen),
    )
    return view, chosen


def f_statistics(x: Inputs, y: Tensor) -> npt.NDArray[np.float64]:
    """The one-way F statistic of every input.

    Args:
        x: inputs, (samples, ...).
        y: labels, (samples,), at least two different ones.
    Returns:
        float64, (inputs,): infinite where the classes differ and nothing varies within them, minus infinity
        where an input is constant.
    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_selection import f_classif
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"screened: needs the Python package scikit-learn, and module {error.name} is not installed; "
            "pip install scikit-learn"
        ) from error
    labels = y.numpy()
    found = []
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        # Of constant inputs, which are told apart here.
        warnings.filterwarnings("ignore", "(?s)Features .* are constant", UserWarning)
        warnings.filterwarnings("ignore", "invalid value|divide by zero", RuntimeWarning)
        for part, constant in _parts(x):
            statistics = f_classif(part, labels)[0]
            # Rounding may leave less than nothing of a variance within classes that is 0.
            statistics[statistics < 0] = np.inf
            statistics[constant | np.isnan(statistics)] = -np.inf
            found.append(statistics)
    return np.concatenate(found)


def _parts(x: Inputs) -> Iterator[tuple[Any, npt.NDArray[np.bool_]]]:
    """A few columns at a time, float64 or a sparse matrix of it, and which of them are constant."""
    if isinstance(x, Csr):
        # It comes with scikit-learn.
        from scipy.sparse import csr_matrix

        parts = (x.values.double().numpy(), x.col.numpy(), x.crow.numpy())
        matrix = csr_matrix(parts, shape=x.shape)
        # Squares of what is stored are wrong where a number is stored in parts.
        matrix.sum_duplicates()
        yield matrix, (matrix.max(axis=0) - matrix.min(axis=0)).toarray()[0] == 0
        return
    # Of bytes as they are: F is the same on every scale, and sums of whole numbers are exact.
    plain = x.values if isinstance(x, Scaled) else x
    assert isinstance(plain, Tensor)
    flat = plain.flatten(1)
    for columns in flat.split(max(AT_A_TIME // len(flat), 1), dim=1):
        part = columns.double().numpy()
        yield part, part.max(0) == part.min(0)


def _columns(x: Inputs, chosen: Tensor) -> Inputs:
    return x.flatten(1).index_select(1, chosen) if isinstance(x, Tensor) else x.columns(chosen)
