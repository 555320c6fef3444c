"""A user's own data: four arrays from a function or from a file .npz, checked."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseprune.experiments import reference
from sparseprune.experiments.data.dataset import Dataset

ARRAYS = ("x", "y", "x_test", "y_test")


def call_function(name: str) -> Dataset:
    """Data that a function returns.

    Args:
        name: ``"package.module:function"``; it returns (x, y, x_test, y_test), tensors or arrays, or a
            `Dataset`.
    Returns:
        the data set, float32 and int64.
    Raises:
        ValueError: the function cannot be found or raises, or what it returns does not fit together.
    """
    op = f"data {name}"
    function = reference.find(name, op)
    made = reference.call(function, {}, op)
    if isinstance(made, Dataset):
        made = (made.train_x, made.train_y, made.test_x, made.test_y)
    if not isinstance(made, tuple | list) or len(made) != len(ARRAYS):
        got = f"{len(made)} values" if isinstance(made, tuple | list) else f"a {type(made).__name__}"
        raise ValueError(f"{op}: expected the function to return {', '.join(ARRAYS)}, got {got}")
    return _dataset(name, reference.source_of(function), dict(zip(ARRAYS, made, strict=True)), op)


def read_npz(file: str) -> Dataset:
    """Data from a file of numpy.savez, with arrays x, y, x_test and y_test.

    Args:
        file: path of the file.
    Returns:
        the data set, float32 and int64.
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
            arrays = {name: content[name] for name in content.files if name in ARRAYS}
            found = content.files
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(
            f"{op}: expected arrays of numbers, got others, or a damaged file ({error})"
        ) from error
    if missing := [name for name in ARRAYS if name not in arrays]:
        raise ValueError(
            f"{op}: expected arrays {', '.join(ARRAYS)}, got {', '.join(found) or 'none'}; "
            f"add {', '.join(missing)}"
        )
    return _dataset(file, str(path.resolve()), arrays, op)


def _dataset(name: str, source: str, arrays: Mapping[str, Any], op: str) -> Dataset:
    """Check four arrays, and convert inputs to float32 and labels to int64."""
    tensors = {key: _tensor(value, f"{op}: {key}") for key, value in arrays.items()}
    for x, y in (("x", "y"), ("x_test", "y_test")):
        inputs, labels = tensors[x], tensors[y]
        if inputs.dim() < 2 or len(inputs) == 0:
            raise ValueError(
                f"{op}: expected {x} of shape (samples, ...), one sample at least, got {tuple(inputs.shape)}"
            )
        if labels.shape != inputs.shape[:1]:
            raise ValueError(
                f"{op}: expected {y} of shape {tuple(inputs.shape[:1])}, a label for each sample of {x}, "
                f"got {tuple(labels.shape)}{_remedy(labels)}"
            )
    if tensors["x"].shape[1:] != tensors["x_test"].shape[1:]:
        raise ValueError(
            f"{op}: expected x and x_test to have samples of one shape, "
            f"got {tuple(tensors['x'].shape[1:])} and {tuple(tensors['x_test'].shape[1:])}"
        )
    scaled = tensors["x"].dtype == torch.uint8
    if scaled != (tensors["x_test"].dtype == torch.uint8):
        raise ValueError(
            f"{op}: expected x and x_test both uint8 or both floating, "
            f"got {tensors['x'].dtype} and {tensors['x_test'].dtype}"
        )
    return Dataset(
        name,
        f"{source}, uint8 scaled to 0 ... 1" if scaled else source,
        _inputs(tensors["x"], f"{op}: x"),
        _labels(tensors["y"], f"{op}: y"),
        _inputs(tensors["x_test"], f"{op}: x_test"),
        _labels(tensors["y_test"], f"{op}: y_test"),
    )


def _tensor(value: Any, op: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return torch.tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{op}: expected a tensor or an array of numbers, got a {type(value).__name__} ({error})"
        ) from error


def _remedy(labels: Tensor) -> str:
    if labels.dim() != 2:
        return ""
    return "; use y.reshape(-1)" if labels.shape[1] == 1 else "; of one-hot labels use y.argmax(1)"


def _inputs(x: Tensor, op: str) -> Tensor:
    if x.dtype == torch.uint8:
        return x.float().div_(255)
    if not x.is_floating_point():
        raise ValueError(f"{op}: expected floating numbers, or uint8 of 0 to 255, got {_name(x)}")
    if not x.isfinite().all():
        raise ValueError(f"{op}: expected finite numbers, got NaN or infinite ones")
    return x.float()


def _labels(y: Tensor, op: str) -> Tensor:
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"{op}: expected integers as labels, got {_name(y)}; use y.astype(int)")
    y = y.long()
    if y.min() < 0:
        raise ValueError(f"{op}: expected labels from 0, got {int(y.min())}")
    return y


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
