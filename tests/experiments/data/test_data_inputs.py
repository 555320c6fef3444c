"""Inputs that are held compactly stand for the same float32 numbers as a tensor."""

import numpy as np
import pytest
import torch
from bounds import assert_within
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparseprune.experiments.data import Csr, Dataset, FirstBatches, Scaled, batches
from sparseprune.experiments.data.inputs import selected
from sparseprune.experiments.data.iteration import room
from sparseprune.experiments.train import evaluate, train, warm_up


def csr(dense):
    """A `Csr` of the numbers of a dense matrix that are not 0."""
    row, col = dense.nonzero().T
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(row, minlength=len(dense)).cumsum(0)])
    return Csr(crow, col, dense[row, col], tuple(dense.shape))


@st.composite
def both(draw):
    """Stored inputs, and the tensor that they stand for."""
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    samples = draw(st.integers(1, 9))
    if draw(st.booleans()):
        shape = draw(st.sampled_from([(1,), (7,), (1, 3, 4), (2, 5)]))
        values = torch.randint(256, (samples, *shape), generator=random, dtype=torch.uint8)
        mean, std = draw(st.sampled_from([(0.0, 1.0), (0.2747, 0.3504), (-1.5, 3.0)]))
        return Scaled(values, mean, std), torch.tensor(-mean / std).add(values.float(), alpha=1 / (255 * std))
    dense = torch.randn(samples, draw(st.integers(1, 8)), generator=random)
    dense *= torch.rand(dense.shape, generator=random) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    return csr(dense), dense


@given(both(), st.data())
def test_stored_inputs_are_the_tensor_that_they_stand_for(made, data):
    stored, dense = made
    count = len(dense)
    assert (stored.shape, len(stored), stored.dtype) == (dense.shape, count, dense.dtype)
    assert torch.equal(stored.dense(), dense)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), max_size=6)), dtype=torch.int64)
    assert torch.equal(selected(stored, rows), dense[rows])
    for inputs in (stored, dense):
        out = torch.full((len(rows), *dense.shape[1:]), torch.nan)
        assert selected(inputs, rows, out) is out
        assert torch.equal(out, dense[rows])
    assert torch.equal(stored[rows].dense(), dense[rows])
    start, stop = data.draw(st.integers(0, count)), data.draw(st.integers(0, count))
    assert torch.equal(stored[start:stop].dense(), dense[start:stop])
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    assert torch.equal(stored[mask].dense(), dense[mask])
    size = data.draw(st.integers(1, count + 1))
    for one, other in zip(stored.split(size), dense.split(size), strict=True):
        assert torch.equal(one, other)
    flat = dense.flatten(1)
    columns = torch.randperm(flat.shape[1])[: data.draw(st.integers(1, flat.shape[1]))]
    assert torch.equal(stored.columns(columns).dense(), flat[:, columns])
    assert type(stored[rows]) is type(stored.columns(columns)) is type(stored)


def test_csr_is_what_scipy_makes_of_it_in_any_order_and_with_numbers_in_parts():
    sparse = pytest.importorskip("scipy.sparse")
    crow, col = np.array([0, 3, 3, 7]), np.array([4, 0, 4, 2, 1, 2, 0])
    values = np.array([1, 2, 3, 4, 5, 6, 7], np.float32)
    stored = Csr(*(torch.from_numpy(part) for part in (crow, col, values)), (3, 5))
    dense = sparse.csr_matrix((values, col, crow), shape=(3, 5)).toarray()
    assert dense[0].tolist() == [2, 0, 0, 0, 4]
    assert torch.equal(stored.dense(), torch.from_numpy(dense))
    rows, columns = torch.tensor([2, 2, 0]), torch.tensor([4, 2])
    assert torch.equal(selected(stored, rows), torch.from_numpy(dense[rows]))
    assert torch.equal(stored.columns(columns).dense(), torch.from_numpy(dense[:, columns]))


def test_bytes_stand_for_their_scaled_values():
    values = torch.arange(256, dtype=torch.uint8).view(4, 64)
    for mean, std in [(0.0, 1.0), (0.2747, 0.3504), (-1.5, 3.0)]:
        scaled = values.double() / 255
        # scale and shift are rounded once, and so are their product with a value and its sum with the other.
        rounded = 2**-24 * (2 * scaled / std + 2 * abs(mean / std) + abs(scaled - mean) / std)
        assert_within(Scaled(values, mean, std).dense(), (scaled - mean) / std, 1.01 * rounded)


@given(both(), st.integers(1, 10), st.booleans())
def test_batches_are_the_same_in_memory_that_is_used_again(made, size, as_tensor):
    x = made[1] if as_tensor else made[0]
    y, order = torch.arange(len(x)), torch.Generator()
    fresh = list(batches(x, y, size, order.manual_seed(0)))
    out = room(x, size)
    for again, once in zip(batches(x, y, size, order.manual_seed(0), out), fresh, strict=True):
        assert torch.equal(again[0], once[0])
        assert torch.equal(again[1], once[1])
        assert again[0].data_ptr() == out.data_ptr()


@given(both(), st.integers(1, 10), st.integers(0, 12) | st.none(), st.booleans())
def test_first_batches_are_the_same_in_each_pass(made, size, count, as_tensor):
    x = made[1] if as_tensor else made[0]
    y = torch.arange(len(x))
    first = FirstBatches(Dataset("stored", "here", x, y, x, y), size, 3, count)
    found, again = list(first), list(first)
    every = list(batches(x, y, size, torch.Generator().manual_seed(3)))
    assert len(first) == len(found) == len(every if count is None else every[:count])
    for (inputs, labels), (inputs_again, _), (expected, order) in zip(found, again, every, strict=False):
        assert torch.equal(inputs, expected)
        assert torch.equal(inputs_again, expected)
        assert torch.equal(labels, order)


def test_bytes_held_are_those_of_the_parts():
    assert Scaled(torch.zeros(3, 40, dtype=torch.uint8)).nbytes == 120
    assert csr(torch.eye(4)).nbytes == 8 * 5 + 8 * 4 + 4 * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scaled(torch.zeros(3, 2)), r"type uint8 and shape \(samples, ...\), got torch.float32"),
        (lambda: Scaled(torch.zeros(3, dtype=torch.uint8)), r"got torch.uint8 and \(3,\)"),
        (lambda: Scaled(torch.zeros(3, 1, dtype=torch.uint8), 0.0, 0.0), "finite std > 0, got 0.0 and 0.0"),
        (lambda: Scaled(torch.zeros(3, 1, dtype=torch.uint8), float("nan")), "finite mean .* got nan"),
    ],
)
def test_scaled_refuses_what_is_no_bytes_or_no_scale(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crow": [0, 1, 2, 2]}, r"crow of shape \(3,\), and col and values of one shape"),
        ({"col": [0]}, r"got \(3,\), \(1,\) and \(2,\)"),
        ({"crow": [1, 1, 2]}, "rise from 0 to 2, the number of stored values, got 1 to 2"),
        ({"crow": [0, 1, 3]}, "got 0 to 3"),
        ({"crow": [0, 3, 2]}, "got 0 to 2, falling"),
        ({"col": [0, 4]}, "col from 0 to 3, got 0 to 4"),
        ({"col": [-1, 0]}, "got -1 to 0"),
        ({"values": [1.0, float("inf")]}, "finite numbers"),
        ({"values": [1, 2]}, "values of type float32, got torch.int64, torch.int64 and torch.int64"),
    ],
)
def test_csr_refuses_parts_that_do_not_fit(changes, message):
    parts = {"crow": [0, 1, 2], "col": [0, 3], "values": [1.0, 2.0], **changes}
    with pytest.raises(ValueError, match=message):
        Csr(*(torch.tensor(part) for part in parts.values()), (2, 4))


def test_samples_are_selected_by_slices_and_tensors_alone():
    stored = Scaled(torch.zeros(3, 2, dtype=torch.uint8))
    with pytest.raises(TypeError, match="a slice or a tensor of indices to select samples, got 1"):
        stored[1]


@pytest.mark.parametrize("store", [csr, lambda x: Scaled((x * 255).to(torch.uint8))], ids=["csr", "scaled"])
def test_training_scoring_and_evaluation_take_stored_inputs_as_tensors(store):
    x = (torch.rand(40, 6) * (torch.rand(40, 6) < 0.5) * 255).floor() / 255
    y = (x[:, 0] > x[:, 1]).long()
    stored = store(x)
    data = Dataset("stored", "here", stored, y, stored, y)
    plain = Dataset("plain", "here", stored.dense(), y, stored.dense(), y)
    for (a, b), (c, d) in zip(FirstBatches(data, 16, 0, 3), FirstBatches(plain, 16, 0, 3), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    first, second = nn.Linear(6, 2), nn.Linear(6, 2)
    second.load_state_dict(first.state_dict())
    warm_up(first, data, 16)
    train(first, data, epochs=2, batch_size=16)
    train(second, plain, epochs=2, batch_size=16)
    assert torch.equal(first.weight, second.weight)
    assert evaluate(first, data.test_x, y) == evaluate(second, plain.test_x, y)
    assert (data.features, data.sample, data.classes) == (6, (6,), 2)


def test_batches_of_stored_inputs_hold_every_sample_once():
    x = torch.arange(11, dtype=torch.uint8).unsqueeze(1)
    made = list(batches(Scaled(x), torch.arange(11), 4))
    assert [tuple(inputs.shape) for inputs, _ in made] == [(4, 1), (4, 1), (3, 1)]
    for inputs, targets in made:
        assert_within(inputs.squeeze(1), targets.double() / 255, targets.double() * 2**-24)
    assert sorted(torch.cat([targets for _, targets in made]).tolist()) == list(range(11))


# Validation


@pytest.mark.parametrize("store", [lambda x: x, csr], ids=["tensor", "csr"])
def test_validation_splits_the_training_samples_and_has_no_test_sample(store):
    x = torch.arange(1.0, 11).unsqueeze(1)
    data = Dataset("d", "s", store(x), torch.arange(10), store(torch.full((4, 1), 99.0)), torch.full((4,), 9))
    held = data.validation(3)
    train_x, test_x = (torch.cat(list(part.split(4))) for part in (held.train_x, held.test_x))
    assert (len(train_x), len(test_x)) == (7, 3)
    assert sorted([*train_x.flatten().tolist(), *test_x.flatten().tolist()]) == x.flatten().tolist()
    assert torch.equal(train_x.flatten() - 1, held.train_y.float())
    assert torch.equal(test_x.flatten() - 1, held.test_y.float())
    assert (
        held.test_y.tolist()
        == data.validation(3).test_y.tolist()
        != data.validation(3, seed=1).test_y.tolist()
    )
    assert held.source == "s, 3 training samples held out for validation"


@pytest.mark.parametrize("count", [0, 10, 5000])
def test_validation_leaves_samples_to_train_on(count):
    data = Dataset("d", "s", torch.zeros(10, 1), torch.arange(10), torch.zeros(1, 1), torch.zeros(1).long())
    with pytest.raises(ValueError, match=f"count from 1 to 9, .* the 10 training samples of d .*got {count}"):
        data.validation(count)
