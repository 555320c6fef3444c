"""Sparsified models afterwards: made dense again, trained, copied and saved."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bounds import assert_half_the_digits
from small_networks import WEIGHTS, check_unchanged, layer_of, masked, masks_of, network, noise, state
from torch import Tensor, nn

import sparseprune as sp


@pytest.fixture
def images() -> Tensor:
    return noise(9, 2, 5, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_densify_is_the_exact_inverse(layers: Any, dtype: torch.dtype) -> None:
    model = network().to(dtype)
    masks = masks_of(model)
    sparse = sp.sparsify(model, masks, layers=layers)
    before = state(sparse)
    dense = sp.densify(sparse)
    check_unchanged(sparse, before)
    assert [type(m) for m in dense.modules()] == [type(m) for m in model.modules()]
    assert not any(hasattr(module, "mask") or hasattr(module, "choice") for module in dense.modules())
    check_unchanged(dense, state(masked(model, masks)))
    pointers = {t.data_ptr() for t in sparse.state_dict().values()}
    assert not pointers & {t.data_ptr() for t in dense.state_dict().values()}
    again = sp.sparsify(dense, masks, layers=layers)
    check_unchanged(again, before)


def test_densify_of_a_dense_model_is_a_copy() -> None:
    model = network()
    dense = sp.densify(model)
    assert dense is not model
    check_unchanged(dense, state(model))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.AdamW(parameters, 0.05, weight_decay=0.1),
        lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    ],
)
def test_masked_layers_never_revive_pruned_weights(optimizer: Any, images: Tensor) -> None:
    model = network()
    masks = masks_of(model)
    result = sp.sparsify(model, masks, layers="dense")
    steps = optimizer(result.parameters())
    start = {name: layer_of(result, name).weight.clone() for name in WEIGHTS}
    for step in range(10):
        steps.zero_grad()
        result(images + step).square().mean().backward()
        for name, mask in masks.items():
            assert not layer_of(result, name).weight.grad[~mask].any()
        steps.step()
    for name, mask in masks.items():
        weight = layer_of(result, name).weight
        assert not weight[~mask].any()
        assert (weight != start[name])[mask].any()


def test_masked_layers_ignore_what_others_write_into_pruned_weights(images: Tensor) -> None:
    model = network()
    masks = masks_of(model)
    result = sp.sparsify(model, masks, layers="dense").eval()
    expected = result(images)
    with torch.no_grad():
        for name, mask in masks.items():
            layer_of(result, name).weight.masked_fill_(~mask, 3.0)
    assert torch.equal(result(images), expected)
    assert torch.equal(sp.densify(result)(images), expected)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_sparse_models_copy_and_pickle(
    layers: Any, how: Callable[[nn.Module], nn.Module], images: Tensor
) -> None:
    model = network()
    sparse = sp.sparsify(model, masks_of(model), layers=layers).eval()
    copied = how(sparse)
    check_unchanged(copied, state(sparse))
    assert torch.equal(copied(images), sparse(images))
    assert str(sp.summary(copied)) == str(sp.summary(sparse))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    assert not torch.equal(copied(images), sparse(images))


@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_sparse_models_state_dict_round_trip(layers: Any, images: Tensor) -> None:
    model = network()
    sparse = sp.sparsify(model, masks_of(model, 0.3), layers=layers).eval()
    other = sp.sparsify(network(), masks_of(model, 0.6), layers=layers).eval()
    other.load_state_dict(sparse.state_dict())
    assert torch.equal(other(images), sparse(images))


@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_sparse_models_train_alike(layers: Any, images: Tensor) -> None:
    model = network().double()
    masks = masks_of(model)
    models = (sp.sparsify(model, masks, layers=layers), masked(model, masks))
    for one in models:
        optimizer = torch.optim.SGD(one.parameters(), 0.05)
        for step in range(4):
            optimizer.zero_grad()
            one(images.double() + step).square().mean().backward()
            optimizer.step()
            if one is models[1]:
                sp.apply_masks(one, masks)
    dense = sp.densify(models[0])
    for ours, theirs in zip(dense.parameters(), models[1].parameters(), strict=True):
        assert_half_the_digits(ours, theirs)
