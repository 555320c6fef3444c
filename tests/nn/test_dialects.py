"""State dicts of layers that were sparse, masked, dense or pruned by torch, loaded into each other."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from sparseprune import SparseConv2d, SparseLinear
from sparseprune.format.bsr import largest_block
from sparseprune.nn.masked import masked_from_dense

Layer = Any

SOURCES = ("sparse", "masked", "pruned", "dense")


def made(layer: nn.Module, mask: Tensor, kind: str) -> nn.Module:
    """The layer with a mask, in a form whose state dict has the dialect of that name."""
    layer = copy.deepcopy(layer)
    if kind == "sparse":
        return (SparseLinear if isinstance(layer, nn.Linear) else SparseConv2d).from_dense(layer, mask)
    if kind == "masked":
        return masked_from_dense(layer, mask)
    if kind == "pruned":
        return prune.custom_from_mask(layer, "weight", mask)
    layer.weight.data.masked_fill_(~mask, 0)
    return layer


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, Tensor, Tensor]:
    """A layer, and two masks for it."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    if draw(st.booleans()):
        layer: Layer = nn.Linear(draw(st.integers(1, 9)), draw(st.sampled_from([1, 4, 6, 16])))
    else:
        layer = nn.Conv2d(4, draw(st.sampled_from([2, 4, 12])), 3, groups=draw(st.sampled_from([1, 2])))
    masks = []
    for _ in range(2):
        rows, *others = layer.weight.shape
        block = draw(st.sampled_from([b for b in (1, 2, 4, 8, 16) if rows % b == 0]))
        blocks = torch.rand(rows // block, *others) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
        masks.append(blocks.repeat_interleave(block, 0))
    return layer, *masks


@given(layers(), st.sampled_from(SOURCES[:3]), st.sampled_from(["sparse", "masked"]), st.booleans())
def test_layers_load_masks_of_every_dialect(
    case: tuple[nn.Module, Tensor, Tensor], source: str, target: str, within: bool
) -> None:
    layer, mask, other = case
    state = made(layer, mask, source).state_dict(prefix="0." if within else "")
    before = copy.deepcopy(state)
    loaded = made(nn.utils.skip_init(type(layer), **_sizes(layer)), other, target)
    model = nn.Sequential(loaded) if within else loaded
    assert model.load_state_dict(state) == ([], [])
    assert torch.equal(loaded.mask, mask)
    assert torch.equal(loaded.weight[mask], layer.weight[mask])
    assert not loaded.weight[~mask].any()
    assert torch.equal(loaded.bias, layer.bias)
    x = torch.randn(3, 4, 5, 5) if isinstance(layer, nn.Conv2d) else torch.randn(3, layer.in_features)
    again = made(layer, mask, target)
    assert torch.equal(model(x), again(x))
    assert all(torch.equal(state[name], t) for name, t in before.items())


def _sizes(layer: Layer) -> dict[str, Any]:
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features}
    sizes = {name: getattr(layer, name) for name in ("in_channels", "out_channels", "kernel_size")}
    return {**sizes, "groups": layer.groups}


@given(layers(), st.sampled_from(["sparse", "masked"]))
def test_a_dense_weight_is_taken_where_the_mask_keeps_it(
    case: tuple[nn.Module, Tensor, Tensor], target: str
) -> None:
    layer, mask, _ = case
    # A weight that is kept may be 0.
    layer.weight.data[mask.nonzero()[:1].unbind(1)] = 0
    loaded = made(nn.utils.skip_init(type(layer), **_sizes(layer)), mask, target)
    loaded.load_state_dict(made(layer, mask, "dense").state_dict())
    expected = made(layer, mask, target)
    # A sparse layer that keeps nothing has no pattern of its own.
    if mask.any():
        assert torch.equal(loaded.mask, mask)
    assert torch.equal(loaded.weight, expected.weight)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("target", ["sparse", "masked"])
def test_a_dense_weight_that_the_mask_would_cut_is_refused(target: str, strict: bool) -> None:
    layer = nn.Linear(4, 4)
    mask = torch.eye(4).bool()
    loaded = made(layer, mask, target)
    before = copy.deepcopy(loaded.state_dict())
    state = {**nn.Linear(4, 4).state_dict()}
    with pytest.raises(
        RuntimeError, match=r"expected a weight that is 0 where .* got 12 others, which would"
    ):
        loaded.load_state_dict(state, strict=strict)
    assert all(torch.equal(before[name], t) for name, t in loaded.state_dict().items())


def test_a_sparse_layer_without_a_pattern_takes_that_of_a_dense_weight() -> None:
    layer = nn.Linear(8, 16)
    mask = (torch.arange(4 * 8).reshape(4, 8) % 3 == 0).repeat_interleave(4, 0)
    blank = SparseLinear(8, 16)
    blank.load_state_dict(made(layer, mask, "dense").state_dict())
    assert torch.equal(blank.mask, mask)
    assert blank.block == (largest_block(mask), 1) == (4, 1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint16, torch.uint8])
@pytest.mark.parametrize("assign", [False, True])
def test_indices_of_other_integers_are_loaded(dtype: torch.dtype, assign: bool) -> None:
    layer = made(
        nn.Linear(20, 12), torch.rand(12, 20, generator=torch.Generator().manual_seed(0)) < 0.3, "sparse"
    )
    state = layer.state_dict()
    narrow = {**state, "crow": state["crow"].to(dtype), "col": state["col"].to(dtype)}
    for target in (SparseLinear(20, 12), made(nn.Linear(20, 12), torch.ones(12, 20).bool(), "masked")):
        target.load_state_dict(copy.deepcopy(narrow), assign=assign)
        assert torch.equal(target.weight, layer.weight)
    sparse = SparseLinear(20, 12, crow=narrow["crow"], col=narrow["col"])
    assert sparse.crow.dtype == sparse.col.dtype == torch.int32
    assert torch.equal(sparse.mask, layer.mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"col": torch.tensor([1, 0, 2])}, "expected columns of a row to ascend within 0 .. 3"),
        ({"col": torch.tensor([0, 4, 2])}, "expected columns of a row to ascend within 0 .. 3"),
        ({"col": torch.tensor([-1, 1, 2])}, "expected columns of a row to ascend within 0 .. 3"),
        ({"crow": torch.tensor([0, 3, 2, 3])}, "expected crow to ascend from 0 to 3"),
        ({"crow": torch.tensor([0, 2, 3])}, "expected a pattern of 3 rows, got crow.shape [3]"),
        ({"crow": torch.tensor([[0], [2], [3], [3]])}, "expected a pattern of 3 rows"),
        ({"values": torch.zeros(2, 1)}, "expected values.shape == [3 (blocks of the checkpoint's pattern)"),
        ({"values": torch.zeros(3, 3)}, "(rows of a block)], got [3, 3]"),
        ({"values": [1.0]}, "expected values to be a tensor, got list"),
    ],
)
def test_a_masked_layer_refuses_a_corrupt_pattern(change: dict[str, Any], message: str) -> None:
    whole = {"values": torch.ones(3, 1), "crow": torch.tensor([0, 2, 3, 3]), "col": torch.tensor([0, 1, 2])}
    layer = masked_from_dense(nn.Linear(4, 3, bias=False), torch.ones(3, 4).bool())
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"loading state_dict for MaskedLinear") as error:
        layer.load_state_dict({**whole, **change})
    assert message in str(error.value)
    assert all(torch.equal(before[name], t) for name, t in layer.state_dict().items())
    layer.load_state_dict(whole)
    assert torch.equal(layer.weight, torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]))


@pytest.mark.parametrize("kind", ["sparse", "masked"])
def test_a_weight_of_another_shape_is_refused(kind: str) -> None:
    layer = made(nn.Linear(4, 3), torch.ones(3, 4).bool(), kind)
    for source in SOURCES:
        state = made(nn.Linear(5, 3), torch.ones(3, 5).bool(), source).state_dict()
        with pytest.raises(RuntimeError, match=r"expected|size mismatch"):
            layer.load_state_dict(state)


def test_a_parametrized_layer_keeps_its_own_dialect() -> None:
    layer = made(nn.Linear(4, 3), torch.eye(3, 4).bool(), "sparse")
    parametrizations.weight_norm(layer, "values")
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(nn.Linear(4, 3).state_dict())
    layer.load_state_dict(
        {**layer.state_dict(), "crow": layer.crow.long(), "col": layer.col.to(torch.uint16)}
    )
