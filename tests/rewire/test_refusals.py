"""Mistakes that ``Rewire`` names, with nothing moved."""

import copy
import math
from typing import Any

import pytest
import torch
from moving_networks import adam, assert_same, masks_of, network, sparse, train

import sparseprune as sp

# Of torch's own layers: "same" padding of even kernels, which is more on one side.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def made(**options: Any) -> sp.Rewire:
    model = sparse("linear")
    return sp.Rewire(model, adam(model), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "expected 0 < fraction < 1"),
        ({"fraction": 1.0}, "expected 0 < fraction < 1"),
        ({"fraction": math.nan}, "expected 0 < fraction < 1"),
        ({"every": 0}, "expected every >= 1"),
        ({"until": -1}, "expected until >= 1"),
        ({"seed": -1}, "expected seed >= 0"),
        ({"method": "grow"}, 'expected method "rigl", "set" or a function'),
        ({"sparsity": 1.0, "until": 10}, "expected 0 <= sparsity < 1"),
        ({"sparsity": 0.9}, "expected until with sparsity"),
    ],
)
def test_numbers_out_of_range(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_steps_that_are_no_integers() -> None:
    with pytest.raises(TypeError, match="expected every to be a number of steps"):
        made(every=0.5)


def test_a_model_without_sparse_layers() -> None:
    model, _ = network("linear")
    with pytest.raises(ValueError, match="expected a model with sparse or masked layers"):
        sp.Rewire(model, adam(model))


def test_an_optimizer_of_something_else() -> None:
    model, dense = sparse("linear"), network("linear")[0]
    with pytest.raises(ValueError, match=r"got one without 2 of 2, such as '0\.weight'"):
        sp.Rewire(model, adam(dense))
    with pytest.raises(TypeError, match="expected an optimizer of torch"):
        sp.Rewire(model, [3])  # type: ignore[list-item]


def test_a_copy_of_something_else() -> None:
    model, other = sparse("linear"), sparse("blocks")
    with pytest.raises(ValueError, match="expected copies with the layers and patterns of the model"):
        sp.Rewire(model, adam(model), copies=[other])


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_a_step_before_a_backward_pass(method: Any) -> None:
    model = sparse("linear")
    before = copy.deepcopy(model)
    rewire = sp.Rewire(model, adam(model), method, every=1)
    with pytest.raises(RuntimeError, match=r"expected a backward pass and a step of the optimizer before"):
        rewire.step()
    assert_same(model, before)
    assert rewire.state_dict()["steps"] == 0


def test_a_second_step_without_a_backward_pass() -> None:
    model = sparse("linear")
    optimizer = adam(model)
    rewire = sp.Rewire(model, optimizer, every=1)
    train(model, optimizer, rewire, "linear", range(1))
    before = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="expected a backward pass through the sparse layers"):
        rewire.step()
    assert_same(model, before)


def test_rules_that_give_something_else() -> None:
    for rule, error, message in (
        (lambda w, c, p: w, TypeError, "expected method to give two tensors"),
        (lambda w, c, p: (w, c.gradient), ValueError, "expected method to give 190 numbers for '0.weight'"),
        (lambda w, c, p: (w[:, 0] * math.nan, c.gradient), ValueError, "expected method to give finite"),
    ):
        model = sparse("linear")
        before, optimizer = masks_of(model), adam(model)
        with pytest.raises(error, match=message):
            train(model, optimizer, sp.Rewire(model, optimizer, rule, every=1), "linear", range(1))
        assert all(torch.equal(mask, before[name]) for name, mask in masks_of(model).items())


def test_states_of_something_else() -> None:
    rewire = made(every=3)
    before = rewire.state_dict()
    for state, message in (
        ({}, "expected what state_dict"),
        ({**before, "method": "set"}, "expected the state of method 'rigl', got that of 'set'"),
        ({**before, "layers": {}}, "expected the layers of this model"),
        ({**before, "fraction": 3.0}, "expected 0 < fraction < 1"),
    ):
        with pytest.raises(ValueError, match=message):
            rewire.load_state_dict(state)
        assert rewire.state_dict() == before
