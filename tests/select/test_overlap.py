"""What two sets of masks have in common, by hand."""

import pytest
import torch

from sparseprune.select.overlap import Overlap, overlap


def bools(*numbers: int) -> torch.Tensor:
    return torch.tensor([numbers]).bool()


def test_overlap_by_hand() -> None:
    one = {"a": bools(1, 1, 0, 0), "b": bools(1, 0)}
    other = {"a": bools(1, 0, 1, 0), "b": bools(0, 1)}
    layers, total = overlap(one, other)
    # Densities of a half: a quarter in both by chance, three quarters in either.
    assert layers == {"a": Overlap(1 / 3, 1 / 3), "b": Overlap(0.0, 1 / 3)}
    assert total == Overlap(1 / 5, 1 / 3)


def test_overlap_expects_the_formula() -> None:
    one, other = {"a": bools(1, 1, 1, 0, 0)}, {"a": bools(1, 0, 0, 0, 0)}
    layers, total = overlap(one, other)
    assert layers["a"] == total
    assert total.jaccard == 1 / 3
    assert total.expected == pytest.approx(0.6 * 0.2 / (0.6 + 0.2 - 0.6 * 0.2), rel=1e-15)


def test_overlap_of_random_masks_is_what_is_expected() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = ({"a": torch.rand(500, 400, generator=generator) < density} for density in (0.1, 0.3))
    _, total = overlap(one, other)
    # Of 68,000 or more in either set about 9 % are in both: a standard deviation of 0.1 %.
    assert abs(total.jaccard - total.expected) < 0.005


def test_overlap_of_equal_and_of_empty_masks_is_one() -> None:
    full, empty = {"a": bools(1, 0, 1)}, {"a": bools(0, 0, 0)}
    assert overlap(full, full)[1].jaccard == 1.0
    assert overlap(empty, empty) == ({"a": Overlap(1.0, 1.0)}, Overlap(1.0, 1.0))
    assert overlap(full, empty)[1] == Overlap(0.0, 0.0)
    assert overlap({}, {}) == ({}, Overlap(1.0, 1.0))


def test_overlap_refuses_masks_of_other_networks() -> None:
    with pytest.raises(
        ValueError, match="overlap: expected masks of the same layers, got b, c in one of both"
    ):
        overlap({"a": bools(1), "b": bools(1)}, {"a": bools(1), "c": bools(1)})
    with pytest.raises(ValueError, match=r"overlap: 'a': expected a mask of shape \[1, 2\]"):
        overlap({"a": bools(1, 0)}, {"a": bools(1)})
    with pytest.raises(TypeError, match="overlap: 'a': expected the mask to be a bool tensor"):
        overlap({"a": torch.ones(1)}, {"a": torch.ones(1)})
