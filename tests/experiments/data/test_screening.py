import sys
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.feature_selection import f_classif

from sparseprune.experiments.data import Csr, Dataset, Scaled, screening
from sparseprune.experiments.data.screening import f_statistics, screened


def csr(dense):
    row, col = dense.nonzero().T
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(row, minlength=len(dense)).cumsum(0)])
    return Csr(crow, col, dense[row, col], tuple(dense.shape))


def as_is(x):
    return x


def scaled(x):
    return Scaled(x.to(torch.uint8), 0.3, 0.4)


KINDS = pytest.mark.parametrize("store", [as_is, scaled, csr])


def signal(count=90, inputs=40, at=(3, 17, 31)):
    """Whole numbers of which a few inputs depend on the label, and the labels."""
    y = torch.arange(count) % 3
    x = torch.randint(0, 50, (count, inputs)).float()
    x[:, list(at)] += 60 * y[:, None]
    return x, y


def dataset(x, y, store=as_is):
    return Dataset("noise", "a generator", store(x), y, store(x[:5]), y[:5])


@KINDS
@pytest.mark.parametrize("at_a_time", [2**22, 90 * 7, 1])
def test_screened_finds_the_inputs_that_carry_the_signal(store, at_a_time, monkeypatch):
    monkeypatch.setattr(screening, "AT_A_TIME", at_a_time)
    x, y = signal()
    data = dataset(x, y, store)
    view, chosen = screened(data, 3)
    assert chosen.tolist() == [3, 17, 31]
    assert chosen.dtype == torch.int64
    assert type(view.train_x) is type(data.train_x)
    for part in ("train_x", "test_x"):
        one, other = (torch.cat(list(getattr(of, part).split(7))) for of in (view, data))
        assert torch.equal(one, other[:, chosen])
    assert (view.sample, view.classes) == ((3,), 3)
    assert torch.equal(view.train_y, y)
    assert view.source == "a generator; 3 inputs with the largest F statistic"


@KINDS
def test_f_statistics_are_those_of_the_whole_matrix(store, monkeypatch):
    monkeypatch.setattr(screening, "AT_A_TIME", 90 * 7)
    x, y = signal()
    stored = store(x)
    whole = f_classif(torch.cat(list(stored.split(99))).double().numpy(), y.numpy())[0]
    # Bytes are screened before they are scaled, which leaves F as it is but for rounding to float32.
    np.testing.assert_allclose(f_statistics(stored, y), whole, rtol=1e-12 if store is not scaled else 1e-4)


def test_f_statistics_by_hand():
    # Means 1 and 4, their mean 2.5: between 2 x 2 x 1.5^2 = 9 (1 degree), within 4 x 1 = 4 (2 degrees).
    x = torch.tensor([[0.0], [2.0], [3.0], [5.0]])
    assert f_statistics(x, torch.tensor([0, 0, 1, 1])).tolist() == [9 / 1 / (4 / 2)]


@KINDS
def test_screened_takes_the_first_of_equal_inputs_and_constant_ones_last(store):
    y = torch.arange(30) % 2
    weak = torch.arange(30) % 7
    # Constant, equal to the label, weak twice, constant, the label turned round.
    x = torch.stack([torch.full((30,), 7), y, weak, weak, torch.zeros(30), 1 - y], 1).float()
    order = [screened(dataset(x, y, store), count)[1].tolist() for count in range(1, 7)]
    assert order == [[1], [1, 5], [1, 2, 5], [1, 2, 3, 5], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5]]


def test_constant_inputs_that_float32_cannot_hold_exactly_are_constant():
    y = torch.arange(999) % 3
    x = torch.stack([torch.full((999,), 0.1), torch.full((999,), 1e6 / 3), torch.randn(999)], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        statistics = f_statistics(x, y)
    assert statistics[:2].tolist() == [-np.inf, -np.inf]
    assert np.isfinite(statistics[2])


def test_inputs_without_variance_within_classes_come_first():
    y = torch.arange(999) % 3
    # What rounding leaves of the variance within may be below 0.
    x = torch.stack([torch.randn(999), *(value + 0.1 * y for value in (0.1, 0.7, 1 / 3))], 1)
    _, chosen = screened(dataset(x, y), 3)
    assert chosen.tolist() == [1, 2, 3]


def test_images_are_screened_as_flat_samples():
    x, y = signal()
    images = x.to(torch.uint8).view(90, 1, 5, 8)
    data = Dataset("images", "s", Scaled(images), y, Scaled(images[:5]), y[:5])
    view, chosen = screened(data, 3)
    assert chosen.tolist() == [3, 17, 31]
    assert torch.equal(view.train_x.values, images.flatten(1)[:, chosen])


@pytest.mark.parametrize("count", [0, -1, 41])
def test_screened_refuses_counts_that_there_are_not(count):
    with pytest.raises(ValueError, match=rf"count from 1 to 40 \(inputs\), got {count}"):
        screened(dataset(*signal()), count)


def test_screened_refuses_a_single_label():
    x, y = signal()
    with pytest.raises(ValueError, match="at least two labels, got one"):
        screened(dataset(x, torch.zeros_like(y)), 3)


def test_screened_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_selection", None)
    with pytest.raises(ModuleNotFoundError, match=r"package scikit-learn, .* pip install scikit-learn"):
        screened(dataset(*signal()), 3)
