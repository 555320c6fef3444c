"""A user's own data: four arrays, or sparse matrices, from a function or from a file .npz, checked."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseprune.experiments import reference
from sparseprune.experiments.data.dataset import Dataset
from sparseprune.experiments.data.inputs import Csr, Inputs, Scaled, Stored

ARRAYS = ("x", "y", "x_test", "y_test")
# In place of x in a file: the attributes of a scipy CSR matrix, and its shape.
SPARSE = ("data", "indices", "indptr", "shape")


def call_function(name: str, args: Mapping[str, Any]) -> Dataset:
    """Data that a function returns.

    Args:
        name: ``"package.module:function"``; it returns (x, y, x_test, y_test), tensors or arrays, or a
            `Dataset`. The inputs x and x_test may be sparse matrices of scipy or sparse tensors of torch,
            with a row for each sample.
        args: its keyword arguments.
    Returns:
        the data set: labels are int64, inputs float32 tensors, or `Scaled` of uint8, or `Csr` of sparse ones.
    Raises:
        ValueError: the function cannot be found or raises, or what it returns does not fit together.
    """
    op = f"data {name}"
    function = reference.find(name, op)
    given = f"--data-args '{json.dumps(dict(args))}'" if args else "none"
    made = reference.call(function, args, op, given)
    if isinstance(made, Dataset):
        made = (made.train_x, made.train_y, made.test_x, made.test_y)
    if not isinstance(made, tuple | list) or len(made) != len(ARRAYS):
        got = f"{len(made)} values" if isinstance(made, tuple | list) else f"a {type(made).__name__}"
        raise ValueError(f"{op}: expected the function to return {', '.join(ARRAYS)}, got {got}")
    return _dataset(name, reference.source_of(function), dict(zip(ARRAYS, made, strict=True)), op)


def read_npz(file: str) -> Dataset:
    """Data from a file of numpy.savez, with arrays x, y, x_test and y_test.

    In place of x (or x_test) it may hold a scipy CSR matrix as four arrays: x_data, x_indices, x_indptr and
    x_shape.

    Args:
        file: path of the file.
    Returns:
        the data set, as of `call_function`.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or lacks an array, or the arrays do not fit together.
    """
    op, path = f"data {file}", Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{op}: there is no such file; write it with numpy.savez(file, x=..., y=...)")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{op}: expected a file of numpy.savez, got another kind of file, or a damaged one")
    try:
        with np.load(path) as content:
            found = content.files
            parts = {name: [f"{name}_{part}" for part in SPARSE] for name in ("x", "x_test")}
            wanted = {*ARRAYS, *parts["x"], *parts["x_test"]}
            arrays = {name: content[name] for name in found if name in wanted}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(
            f"{op}: expected arrays of numbers, got others, or a damaged file ({error})"
        ) from error
    for name, of_matrix in parts.items():
        if name not in arrays and all(part in arrays for part in of_matrix):
            arrays[name] = _csr(f"{op}: {name}", *(arrays[part] for part in of_matrix))
    if missing := [name for name in ARRAYS if name not in arrays]:
        raise ValueError(
            f"{op}: expected arrays {', '.join(ARRAYS)}, got {', '.join(found) or 'none'}; "
            f"add {', '.join(missing)}{_or_sparse(found, missing)}"
        )
    return _dataset(file, str(path.resolve()), {name: arrays[name] for name in ARRAYS}, op)


def _or_sparse(found: Sequence[str], missing: Sequence[str]) -> str:
    """What to do in place of adding x: add the rest of a sparse matrix."""
    hints = [
        f"{name} as {', '.join(absent)}"
        for name in missing
        if name in ("x", "x_test")
        and (absent := [f"{name}_{part}" for part in SPARSE if f"{name}_{part}" not in found])
    ]
    return f"; or, of a sparse matrix in CSR form, {' and '.join(hints)}" if hints else ""


def _dataset(name: str, source: str, arrays: Mapping[str, Any], op: str) -> Dataset:
    """Check four arrays, and convert inputs to float32 or `Stored`, and labels to int64."""
    x, x_test = (_inputs(arrays[key], f"{op}: {key}") for key in ("x", "x_test"))
    y, y_test = (_tensor(arrays[key], f"{op}: {key}") for key in ("y", "y_test"))
    for key, inputs, labels in (("x", x, y), ("x_test", x_test, y_test)):
        if labels.shape != inputs.shape[:1]:
            raise ValueError(
                f"{op}: expected {key.replace('x', 'y')} of shape {tuple(inputs.shape[:1])}, a label for "
                f"each sample of {key}, got {tuple(labels.shape)}{_remedy(labels)}"
            )
    if x.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"{op}: expected x and x_test to have samples of one shape, "
            f"got {tuple(x.shape[1:])} and {tuple(x_test.shape[1:])}"
        )
    if type(x) is not type(x_test):
        raise ValueError(
            f"{op}: expected x and x_test both uint8, both floating or both sparse, "
            f"got {_kind(x)} and {_kind(x_test)}"
        )
    if isinstance(x, Scaled) and (x.mean, x.std) == (0, 1):
        source += ", uint8 scaled to 0 ... 1"
    return Dataset(name, source, x, _labels(y, f"{op}: y"), x_test, _labels(y_test, f"{op}: y_test"))


def _inputs(value: Any, op: str) -> Inputs:
    """A tensor, an array, a sparse matrix of scipy or of torch, checked, or what has been already."""
    if isinstance(value, Csr | Scaled):
        x: Inputs = value
    elif isinstance(value, Tensor) and value.layout != torch.strided:
        x = _of_torch(value.detach().cpu(), op)
    # Whoever has such a matrix has scipy, which nobody else needs.
    elif hasattr(value, "tocsr"):
        matrix = value.tocsr()
        x = _csr(op, matrix.data, matrix.indices, matrix.indptr, matrix.shape)
    else:
        x = _tensor(value, op)
    if len(x.shape) < 2 or len(x) == 0:
        raise ValueError(f"{op}: expected shape (samples, ...), one sample at least, got {tuple(x.shape)}")
    if isinstance(x, Stored):
        return x
    return Scaled(x) if x.dtype == torch.uint8 else _floats(x, op)


def _of_torch(x: Tensor, op: str) -> Csr:
    if x.dim() != 2:
        raise ValueError(f"{op}: expected a sparse tensor of shape (samples, inputs), got {tuple(x.shape)}")
    if x.layout == torch.sparse_csr:
        return _csr(op, x.values(), x.col_indices(), x.crow_indices(), x.shape)
    x = x.to_sparse_coo().coalesce()
    if x.dense_dim():
        raise ValueError(f"{op}: expected a sparse tensor with two sparse dimensions, got a dense one in it")
    row, col = x.indices()
    crow = torch.bincount(row, minlength=len(x)).cumsum(0)
    return _csr(op, x.values(), col, torch.cat([crow.new_zeros(1), crow]), x.shape)


def _csr(op: str, data: Any, indices: Any, indptr: Any, shape: Any) -> Csr:
    sizes = [int(size) for size in _whole(shape, f"{op}: shape").flatten()]
    if len(sizes) != 2 or min(sizes) < 1:
        raise ValueError(
            f"{op}: expected a sparse matrix of shape (samples, inputs), one of each at least, "
            f"got {tuple(sizes)}"
        )
    values = _floats(_tensor(data, f"{op}: data"), f"{op}: data")
    crow, col = _whole(indptr, f"{op}: indptr"), _whole(indices, f"{op}: indices")
    try:
        return Csr(crow, col, values, (sizes[0], sizes[1]))
    except ValueError as error:
        raise ValueError(f"{op}: crow is indptr, col is indices, values is data; {error}") from error


def _tensor(value: Any, op: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return torch.tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{op}: expected a tensor or an array of numbers, got a {type(value).__name__} ({error})"
        ) from error


def _whole(value: Any, op: str) -> Tensor:
    x = _tensor(value, op)
    if x.is_floating_point() or x.is_complex():
        raise ValueError(f"{op}: expected integers, got {_name(x)}")
    return x.long()


def _remedy(labels: Tensor) -> str:
    if labels.dim() != 2:
        return ""
    return "; use y.reshape(-1)" if labels.shape[1] == 1 else "; of one-hot labels use y.argmax(1)"


def _floats(x: Tensor, op: str) -> Tensor:
    if not x.is_floating_point():
        raise ValueError(f"{op}: expected floating numbers, or uint8 of 0 to 255, got {_name(x)}")
    x = x.float()
    if not x.isfinite().all():
        raise ValueError(f"{op}: expected finite numbers, as float32 too, got NaN or infinite ones")
    return x


def _labels(y: Tensor, op: str) -> Tensor:
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"{op}: expected integers as labels, got {_name(y)}; use y.astype(int)")
    y = y.long()
    if y.min() < 0:
        raise ValueError(f"{op}: expected labels from 0, got {int(y.min())}")
    return y


def _kind(x: Inputs) -> str:
    return "sparse" if isinstance(x, Csr) else "uint8" if isinstance(x, Scaled) else "floating"


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
