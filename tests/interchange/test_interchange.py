"""Masks and weights of torch's own pruning and sparse tensors, both ways."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from other_layers import Conv1D
from torch import Tensor, nn
from torch.nn.utils import prune

import sparseprune as sp
from sparseprune.interchange import from_torch_prune, linear_from_sparse, sparse_weight, to_torch_prune


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 6), nn.Linear(6, 3))


def random_masks(model: nn.Module, density: float = 0.4) -> dict[str, Tensor]:
    return {name: torch.rand(p.shape) < density for name, p in model.named_parameters() if p.dim() > 1}


# ---- zeros -------------------------------------------------------------------------------------------------


def test_masks_from_zeros_are_those_that_were_applied() -> None:
    model = small()
    masks = random_masks(model)
    del masks["4.weight"]
    sp.apply_masks(model, masks)
    found = sp.masks_from_zeros(model)
    # A layer without zeros has no mask.
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], masks[name]) for name in masks)
    x = torch.randn(3, 2, 4, 4)
    assert torch.equal(sp.sparsify(model, found, layers="dense")(x), model(x))


def test_masks_from_zeros_knows_masks_of_layers_that_have_one() -> None:
    model = small()
    masks = random_masks(model)
    for name in masks:
        # A weight that is kept may be 0.
        model.get_parameter(name).data.view(-1)[masks[name].view(-1).nonzero()[0]] = 0
    forms = [sp.sparsify(model, masks, layers=layers) for layers in ("sparse", "dense")]
    for form in (*forms, to_torch_prune(forms[0])):
        found = sp.masks_from_zeros(form)
        assert found.keys() == masks.keys()
        assert all(torch.equal(found[name], masks[name]) for name in masks)


def test_masks_from_zeros_in_whole_blocks() -> None:
    layer = nn.Linear(3, 4)
    layer.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 2], [0, 0, 0], [0, 3, 0]])
    mask = sp.masks_from_zeros(layer, block=(2, 1))["weight"]
    expected = [[True, False, True]] * 2 + [[False, True, False]] * 2
    assert mask.tolist() == expected
    assert sp.masks_from_zeros(layer)["weight"].sum() == 3
    with pytest.raises(ValueError, match=r"rows of 'weight' divisible by 8 .* got 4"):
        sp.masks_from_zeros(layer, block=(8, 1))
    with pytest.raises(ValueError, match=r"masks_from_zeros: expected block == \(V, 1\)"):
        sp.masks_from_zeros(layer, block=(3, 1))


def test_masks_from_zeros_skips_what_cannot_be_pruned() -> None:
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2, dtype=torch.complex64), nn.LazyLinear(2)])
    model.append(nn.Embedding(3, 2))
    for layer in (model[0], model[1], model[3]):
        layer.weight.data.zero_()
    assert sp.masks_from_zeros(model).keys() == {"0.weight"}


def test_masks_from_zeros_has_blocks_of_outputs_where_inputs_come_first() -> None:
    layer = Conv1D(4, 3)
    layer.weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 3], [0, 2, 0, 0]])
    expected = [[True, True, False, False], [False, False, True, True], [True, True, False, False]]
    assert sp.masks_from_zeros(layer, block=(2, 1))["weight"].tolist() == expected


# ---- torch.nn.utils.prune ----------------------------------------------------------------------------------


def test_from_torch_prune() -> None:
    model = small()
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.ln_structured(model[3], "weight", 0.5, n=2, dim=0)
    prune.random_unstructured(model[4], "bias", 1)
    x = torch.randn(3, 2, 4, 4)
    expected = model(x)
    state = copy.deepcopy(model.state_dict())
    dense, masks = from_torch_prune(model)
    assert masks.keys() == {"0.weight", "3.weight"}
    assert torch.equal(masks["0.weight"], model[0].weight_mask.bool())
    assert all(torch.equal(masks[name], mask) for name, mask in sp.masks_from_zeros(dense).items())
    assert "weight" in dense[0]._parameters
    assert "bias_orig" in dense[4]._parameters
    assert torch.equal(dense(x), expected)
    # The model stays pruned by torch.
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    assert torch.equal(model(x), expected)
    masked = sp.sparsify(from_torch_prune(model)[0], masks, layers="dense")
    assert torch.equal(masked(x), expected)


def test_to_torch_prune() -> None:
    model, x = small(), torch.randn(3, 2, 4, 4)
    masks = random_masks(model)
    del masks["4.weight"]
    for layers in ("sparse", "dense"):
        sparse = sp.sparsify(model, masks, layers=layers)
        pruned = to_torch_prune(sparse)
        assert prune.is_pruned(pruned[0])
        assert not prune.is_pruned(pruned[4])
        assert torch.equal(pruned(x), sp.densify(sparse)(x))
        dense, found = from_torch_prune(pruned)
        assert found.keys() == masks.keys()
        assert all(torch.equal(found[name], masks[name]) for name in masks)
        assert torch.equal(dense(x), pruned(x))


def test_from_torch_prune_needs_a_pruned_model() -> None:
    with pytest.raises(
        ValueError, match=r"expected a model pruned by torch\.nn\.utils\.prune .*masks_from_zeros"
    ):
        from_torch_prune(small())


# ---- sparse tensors ----------------------------------------------------------------------------------------


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A matrix and its mask, of whole blocks, at which it may be 0."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    block, rows, cols = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 5)), draw(st.integers(1, 9))
    mask = (torch.rand(rows, cols) < draw(st.sampled_from([0.0, 0.2, 0.7]))).repeat_interleave(block, 0)
    weight = torch.randn(mask.shape).masked_fill(~mask, 0)
    if draw(st.booleans()):
        weight.view(-1)[mask.view(-1).nonzero()[:1]] = 0
    return weight, mask


@given(matrices(), st.booleans())
def test_sparse_tensors_there_and_back(case: tuple[Tensor, Tensor], wide: bool) -> None:
    weight, mask = case
    dense = nn.Linear(mask.shape[1], mask.shape[0])
    dense.weight.data = weight
    layer = sp.SparseLinear.from_dense(dense, mask)
    tensor = sparse_weight(layer)
    assert tensor.layout == (torch.sparse_csr if layer.block[0] == 1 else torch.sparse_bsr)
    assert torch.equal(tensor.to_dense(), weight)
    if mask.any():
        assert tensor.values().data_ptr() == layer.values.data_ptr()
    if wide:
        indices = tensor.crow_indices().long(), tensor.col_indices().long()
        tensor = torch.sparse_compressed_tensor(
            *indices, tensor.values(), tensor.shape, layout=tensor.layout, check_invariants=True
        )
    again = linear_from_sparse(tensor, dense.bias)
    assert torch.equal(again.mask, mask)
    assert torch.equal(again.values, layer.values)
    assert again.block == layer.block
    x = torch.randn(3, mask.shape[1])
    assert torch.equal(again(x), layer(x))


@pytest.mark.parametrize("layout", ["csr", "csc", "bsr", "bsc", "coo"])
def test_every_sparse_layout_of_torch(layout: str) -> None:
    weight = torch.randn(8, 6) * (torch.rand(4, 6) < 0.4).repeat_interleave(2, 0)
    tensor = {
        "csr": lambda: weight.to_sparse_csr(),
        "csc": lambda: weight.to_sparse_csc(),
        "bsr": lambda: weight.to_sparse_bsr((4, 3)),
        "bsc": lambda: weight.to_sparse_bsc((2, 2)),
        "coo": lambda: weight.to_sparse(),
    }[layout]()
    layer = linear_from_sparse(tensor)
    assert layer.bias is None
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.mask[weight != 0], torch.ones(int((weight != 0).sum())).bool())


def test_sparse_weight_of_a_convolution() -> None:
    conv = nn.Conv2d(3, 4, 3)
    layer = sp.SparseConv2d.from_dense(conv, torch.rand(conv.weight.shape) < 0.3)
    assert torch.equal(sparse_weight(layer).to_dense(), layer.weight.flatten(1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: linear_from_sparse(torch.ones(2, 2)), TypeError, "expected a sparse tensor of torch"),
        (
            lambda: linear_from_sparse(torch.ones(2, 2, 2).to_sparse()),
            ValueError,
            "a matrix, got 3 dimensions",
        ),
        (
            lambda: linear_from_sparse(torch.ones(2, 3).to_sparse_csr(), torch.ones(3)),
            ValueError,
            r"bias.shape == \[2\] \(rows of weight\), got \[3\]",
        ),
        (lambda: sparse_weight(nn.Linear(2, 2)), TypeError, "expected a sparse layer, got Linear"),
    ],
)
def test_other_arguments_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
