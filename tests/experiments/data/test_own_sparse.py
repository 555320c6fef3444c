"""Compact inputs of the user's own: bytes, and sparse matrices from a function or a file."""

import re
import sys

import numpy as np
import pytest
import torch
from bounds import assert_within

from sparseprune.experiments.data import Csr, Dataset, Scaled, load

SOURCE = """
import numpy as np
import torch

from sparseprune.experiments.data import Csr, Dataset, Scaled

DENSE = np.random.default_rng(0).normal(size=(12, 5)) * (np.arange(60).reshape(12, 5) % 3 == 0)
Y = np.arange(12) % 3


def parts(x):
    return x[:8], Y[:8], x[8:], Y[8:]


def scipy_csr():
    from scipy.sparse import csr_matrix
    return parts(csr_matrix(DENSE))


def scipy_csc():
    from scipy.sparse import csc_array
    x, y, x_test, y_test = parts(DENSE)
    return csc_array(x), y, csc_array(x_test), y_test


def torch_coo():
    x, y, x_test, y_test = parts(torch.from_numpy(DENSE))
    return x.to_sparse(), y, x_test.to_sparse(), y_test


def torch_csr():
    x, y, x_test, y_test = parts(torch.from_numpy(DENSE).float())
    return x.to_sparse_csr(), y, x_test.to_sparse_csr(), y_test


def counts():
    from scipy.sparse import csr_matrix
    return parts(csr_matrix((DENSE != 0).astype(np.int64)))


def mixed():
    x, y, x_test, y_test = parts(DENSE)
    return torch.from_numpy(x).to_sparse(), y, x_test, y_test


def cube():
    x = torch.zeros(4, 2, 2).to_sparse()
    return x, np.arange(4), x, np.arange(4)


def hybrid():
    x = torch.eye(4).to_sparse(1)
    return x, np.arange(4), x, np.arange(4)


def empty():
    x = torch.zeros(0, 3).to_sparse()
    return x, np.arange(0), x, np.arange(0)


def too_large():
    x, y, x_test, y_test = parts(torch.from_numpy(DENSE * 1e300))
    return x.to_sparse(), y, x_test.to_sparse(), y_test


def told(factor, shift=0.0):
    return parts(factor * DENSE + shift)


def compact():
    values = torch.arange(6, dtype=torch.uint8).reshape(3, 2)
    return Dataset("any", "thing", Scaled(values, 0.5, 0.25), torch.arange(3), Scaled(values, 0.5, 0.25),
                   torch.arange(3))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A current folder with sparse_mine.py; what it imports is forgotten afterwards."""
    (tmp_path / "sparse_mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    load("sparse_mine:torch_coo")
    yield sys.modules["sparse_mine"]
    del sys.modules["sparse_mine"]


@pytest.mark.parametrize("name", ["scipy_csr", "scipy_csc", "torch_coo", "torch_csr"])
def test_sparse_matrices_of_a_function_stay_sparse(mine, name):
    if name.startswith("scipy"):
        pytest.importorskip("scipy")
    data = load(f"sparse_mine:{name}")
    dense = torch.from_numpy(mine.DENSE).float()
    assert isinstance(data.train_x, Csr)
    assert isinstance(data.test_x, Csr)
    assert torch.equal(data.train_x.dense(), dense[:8])
    assert torch.equal(data.test_x.dense(), dense[8:])
    assert (data.sample, data.classes) == ((5,), 3)
    assert data.train_y.dtype == torch.int64
    few = load(f"sparse_mine:{name}", samples=3)
    assert len(few.train_x) == len(few.train_y) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("counts", "x: data: expected floating numbers, or uint8 of 0 to 255, got int64"),
        ("mixed", "expected x and x_test both uint8, both floating or both sparse, got sparse and floating"),
        ("cube", "x: expected a sparse tensor of shape (samples, inputs), got (4, 2, 2)"),
        ("hybrid", "x: expected a sparse tensor with two sparse dimensions, got a dense one in it"),
        ("empty", "x: expected a sparse matrix of shape (samples, inputs), one of each at least, got (0, 3)"),
        ("too_large", "x: data: expected finite numbers, as float32 too, got NaN or infinite ones"),
    ],
)
def test_sparse_matrices_that_do_not_fit_are_refused(mine, name, message):
    if name == "counts":
        pytest.importorskip("scipy")
    with pytest.raises(ValueError, match=re.escape(f"data sparse_mine:{name}: {message}")):
        load(f"sparse_mine:{name}")


def test_functions_get_arguments_and_results_their_name(mine):
    data = load("sparse_mine:told", args={"factor": 2, "shift": 0.5})
    assert torch.equal(data.train_x, torch.from_numpy(2 * mine.DENSE + 0.5).float()[:8])
    assert data.name == 'sparse_mine:told with {"factor": 2, "shift": 0.5}'
    given = "expected arguments that fit (factor, shift=0.0), got --data-args '{\"faktor\": 2}'"
    with pytest.raises(ValueError, match=re.escape(given)):
        load("sparse_mine:told", args={"faktor": 2})
    with pytest.raises(ValueError, match=r"got none: missing a required argument: 'factor'"):
        load("sparse_mine:told")


def test_compact_inputs_of_a_function_are_left_as_they_are(mine):
    data = load("sparse_mine:compact")
    assert isinstance(data.train_x, Scaled)
    assert (data.train_x.mean, data.train_x.std) == (0.5, 0.25)
    assert "scaled" not in data.source


# Files


def savez(**changes):
    """A file with a sparse matrix of 4 x 6 and one of 2 x 6."""
    arrays = {
        "x_data": np.array([1.0, 2.0, 3.0], np.float32),
        "x_indices": np.array([0, 5, 2], np.int32),
        "x_indptr": np.array([0, 1, 1, 3, 3], np.int32),
        "x_shape": np.array([4, 6]),
        "y": np.arange(4),
        "x_test_data": np.array([4.0]),
        "x_test_indices": np.array([3]),
        "x_test_indptr": np.array([0, 0, 1]),
        "x_test_shape": np.array([2, 6]),
        "y_test": np.arange(2),
    }
    arrays |= changes
    np.savez("sparse.npz", **{name: array for name, array in arrays.items() if array is not None})


def test_files_hold_sparse_matrices_in_place_of_x(mine):
    savez()
    data = load("sparse.npz")
    expected = torch.zeros(4, 6)
    expected[0, 0], expected[2, 5], expected[2, 2] = 1, 2, 3
    assert isinstance(data.train_x, Csr)
    assert torch.equal(data.train_x.dense(), expected)
    assert torch.equal(data.test_x.dense(), torch.tensor([[0.0] * 6, [0, 0, 0, 4, 0, 0]]))
    assert data.source.endswith("sparse.npz")


def test_files_hold_what_scipy_calls_the_parts_of_a_matrix(mine):
    sparse = pytest.importorskip("scipy.sparse")
    matrices = {"x": sparse.csr_matrix(mine.DENSE[:8]), "x_test": sparse.csr_matrix(mine.DENSE[8:])}
    arrays = {
        f"{name}_{part}": getattr(matrix, part)
        for name, matrix in matrices.items()
        for part in ("data", "indices", "indptr", "shape")
    }
    np.savez("sparse.npz", **arrays, y=mine.Y[:8], y_test=mine.Y[8:])
    data = load("sparse.npz")
    assert torch.equal(data.train_x.dense(), torch.from_numpy(mine.DENSE[:8]).float())
    assert torch.equal(data.test_x.dense(), torch.from_numpy(mine.DENSE[8:]).float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_indptr": None}, "add x; or, of a sparse matrix in CSR form, x as x_indptr"),
        (
            {"x_test_data": None, "x_test_shape": None, "y": None},
            "add y, x_test; or, of a sparse matrix in CSR form, x_test as x_test_data, x_test_shape",
        ),
        ({"x_indptr": np.array([0, 2, 1, 3, 3])}, "x: crow is indptr, col is indices, values is data; Csr: "),
        ({"x_indptr": np.array([0, 2, 1, 3, 3])}, "expected crow to rise from 0 to 3, .* 0 to 3, falling"),
        ({"x_indptr": np.array([0, 1, 1, 3])}, r"crow of shape \(5,\)"),
        ({"x_indptr": np.array([0, 1, 1, 3, 4])}, "got 0 to 4"),
        ({"x_indptr": np.zeros(5)}, "x: indptr: expected integers, got float64"),
        ({"x_indices": np.array([0, 6, 2])}, "col from 0 to 5, got 0 to 6"),
        ({"x_indices": np.array([0, -1, 2])}, "got -1 to 2"),
        ({"x_indices": np.array([0, 1])}, r"of one shape \(nnz,\)"),
        ({"x_data": np.array([1.0, np.nan, 2.0])}, "x: data: expected finite numbers"),
        ({"x_data": np.array([1, 2, 3])}, "x: data: expected floating numbers"),
        ({"x_data": np.array(["a", "b", "c"])}, "x: data: expected a tensor or an array of numbers"),
        ({"x_shape": np.array([4, 6, 1])}, r"shape \(samples, inputs\), .* got \(4, 6, 1\)"),
        ({"x_shape": np.array([4.0, 6.0])}, "x: shape: expected integers, got float64"),
        ({"x_shape": np.array([-4, 6])}, r"one of each at least, got \(-4, 6\)"),
        ({"x_test_shape": np.array([2, 7])}, r"samples of one shape, got \(6,\) and \(7,\)"),
        ({"y": np.arange(5)}, r"y of shape \(4,\), a label for each sample of x, got \(5,\)"),
        ({"y_test": np.arange(5)}, r"y_test of shape \(2,\), a label for each sample of x_test"),
    ],
)
def test_files_with_matrices_that_do_not_fit_are_refused(mine, changes, message):
    savez(**changes)
    with pytest.raises(ValueError, match=message) as caught:
        load("sparse.npz")
    assert "\n" not in str(caught.value)


def test_bytes_of_a_file_stay_bytes(mine):
    x = np.arange(12, dtype=np.uint8).reshape(4, 3)
    np.savez("bytes.npz", x=x, y=np.arange(4), x_test=x + 200, y_test=np.arange(4))
    data = load("bytes.npz")
    assert isinstance(data.train_x, Scaled)
    assert (data.train_x.nbytes, data.test_x.nbytes) == (12, 12)
    assert_within(data.test_x.dense(), torch.from_numpy(x + 200).double() / 255, torch.tensor(2.0**-23))
    assert data.source.endswith("bytes.npz, uint8 scaled to 0 ... 1")
    validation = data.validation(1)
    assert isinstance(validation, Dataset)
    assert isinstance(validation.train_x, Scaled)
