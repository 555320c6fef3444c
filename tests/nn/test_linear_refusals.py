"""What SparseLinear refuses, and what it says."""

import re
from typing import Any

import pytest
import torch
from linear_pairs import noise, pair
from torch import nn

from sparseprune import SparseLinear


def test_linear_refuses_wrong_inputs() -> None:
    sparse, _ = pair()
    message = "SparseLinear: expected x.shape[-1] == 20 (in_features), got x.shape "
    for x in (noise(3, 21), noise(19), torch.tensor(1.0), noise(20, 3)):
        with pytest.raises(ValueError, match=re.escape(message + str(list(x.shape)))):
            sparse(x)


def test_linear_refuses_wrong_input_dtypes(needs_extension: None) -> None:
    sparse, _ = pair()
    with pytest.raises(ValueError, match="spmm: expected values to be float64, got float32"):
        sparse(noise(3, 20).double())
    with pytest.raises(ValueError, match="spmm: expected values to be bfloat16, got float32"):
        sparse(noise(3, 20).bfloat16())
    with pytest.raises(ValueError, match=r"spmm: expected x to be float32.*, got float16"):
        sparse(noise(3, 20).half())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda d, m: (d, m.t()), ValueError, "expected a mask of shape [4, 5] (the weight's), got [5, 4]"),
        (
            lambda d, m: (d, m.float()),
            TypeError,
            "expected the mask to be a bool tensor (True = keep), got dtype",
        ),
        (
            lambda d, m: (d, m.tolist()),
            TypeError,
            "expected the mask to be a bool tensor (True = keep), got list",
        ),
        (lambda d, m: (d.half(), m), TypeError, "got torch.float16, which has no sparse kernels; use"),
    ],
)
def test_linear_from_dense_refuses(make: Any, error: type[Exception], message: str) -> None:
    dense, mask = make(nn.Linear(5, 4), torch.ones(4, 5, dtype=torch.bool))
    with pytest.raises(error, match=re.escape(message)):
        SparseLinear.from_dense(dense, mask)


@pytest.mark.parametrize(
    ("rows", "block", "message"),
    [
        (8, (3, 1), "block == (V, 1), rows x columns, with V in 1, 2, 4, 8, 16, got (3, 1)"),
        (8, (4, 2), "with V in 1, 2, 4, 8, 16, got (4, 2)"),
        (8, 4, "with V in 1, 2, 4, 8, 16, got 4"),
        (6, (4, 1), "rows divisible by 4 (rows of a block), got 6"),
        (8, (4, 1), "a mask made of whole 4 x 1 blocks, got one that cuts blocks; prune with that"),
    ],
)
def test_linear_from_dense_refuses_blocks(rows: int, block: Any, message: str) -> None:
    mask = torch.ones(rows, 5, dtype=torch.bool)
    mask[3, 2] = False
    with pytest.raises(ValueError, match=f"SparseLinear.from_dense: expected .*{re.escape(message)}"):
        SparseLinear.from_dense(nn.Linear(5, rows), mask, block=block)


def test_linear_refuses_half_a_pattern_and_other_shapes() -> None:
    crow = torch.zeros(5, dtype=torch.int32)
    with pytest.raises(ValueError, match="expected both crow and col, or neither, got one of them"):
        SparseLinear(5, 4, crow=crow)
    with pytest.raises(
        ValueError, match=re.escape("expected crow.shape == [4] (out_features / 1 + 1), got [5]")
    ):
        SparseLinear(5, 3, crow=crow, col=crow[:0])
    with pytest.raises(
        ValueError, match=re.escape("expected crow.shape == [3] (out_features / 2 + 1), got [5]")
    ):
        SparseLinear(5, 4, crow=crow, col=crow[:0], block=(2, 1))
    with pytest.raises(ValueError, match=r"out_features divisible by 8 \(rows of a block\), got 12"):
        SparseLinear(5, 12, block=(8, 1))
    with pytest.raises(ValueError, match=re.escape("SparseLinear: expected block == (V, 1)")):
        SparseLinear(5, 12, block=(12, 1))
    with pytest.raises(TypeError, match=r"got torch\.float16, which has no sparse kernels"):
        SparseLinear(5, 4, dtype=torch.float16)
