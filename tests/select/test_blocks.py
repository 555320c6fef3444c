"""Layers that are kept whole, whole output channels, and what is said of layers that are empty."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from selecting import select_masks
from torch import nn

import sparseprune as sp
from sparseprune.select import quotas
from sparseprune.select.blocks import Blocks
from sparseprune.select.rounds import never_again


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), nn.Flatten(), nn.Linear(8 * 4, 10)
    )


# ---- layers that are kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "layers"),
    [
        ((), []),
        ("first", ["0.0.weight"]),
        (["last", "first"], ["0.0.weight", "2.weight"]),
        (("0",), ["0.0.weight", "0.1.weight"]),
        ("0.1.weight", ["0.1.weight"]),
    ],
)
def test_layers_are_named_by_parameters_modules_or_place(keep: str | list[str], layers: list[str]) -> None:
    shapes = {name: p.shape for name, p in network().named_parameters() if p.dim() > 1}
    assert quotas.layers_of(shapes, keep) == layers


def test_a_module_called_first_is_meant_by_its_name() -> None:
    model = nn.ModuleDict({"second": nn.Linear(4, 4), "first": nn.Linear(4, 4)})
    shapes = {f"{name}.weight": torch.Size((4, 4)) for name in model}
    modules = dict(model.named_modules())
    assert quotas.layers_of(shapes, ["first"], modules) == ["first.weight"]
    assert quotas.layers_of(shapes, ["first"]) == ["second.weight"]
    masks = sp.prune(model, method="magnitude", sparsity=0.5, keep="first", allow_empty=True)
    assert [int(mask.sum()) for mask in masks.values()] == [0, 16]


@pytest.mark.parametrize("scope", quotas.SCOPES)
def test_what_is_kept_counts_among_the_k(scope: str) -> None:
    masks = sp.prune(network(), method="magnitude", sparsity=0.5, scope=scope, keep=["first"])
    counts = [int(mask.sum()) for mask in masks.values()]
    assert counts[0] == 216
    if scope == "layer":
        assert counts[1:] == [288, 160]  # on top, as floors are
    else:
        assert sum(counts) == 556


def test_what_is_kept_stays_within_a_budget() -> None:
    options = {"method": "magnitude", "input_size": (3, 6, 6), "min_per_layer": 1}
    masks = sp.prune(network(), flops=0.5, keep="last", **options)
    assert masks["2.weight"].all()
    # 216 weights at 16 positions, 576 at 4, 320 at one; three products of each, but two where no gradient of
    # the input is computed. So 960 of 14,784 in the last layer, 32 and 12 of one weight in the others.
    message = "flops: expected at least 0.068, what keep and min_per_layer take, got 0.03; most of it is '2.w"
    with pytest.raises(ValueError, match=re.escape(message)):
        sp.prune(network(), flops=0.03, keep="last", **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"keep": ["0", "head", "1"]},
            ValueError,
            "keep: expected names of prunable layers ('0.0.weight', '0.1.weight', '2.weight'), "
            "\"first\" or \"last\", got 'head', '1'",
        ),
        ({"keep": [0]}, TypeError, "keep: expected names of parameters or modules, got int"),
        ({"keep": "2", "exclude": "2"}, ValueError, "got '2'"),
        (
            {"keep": "last"},
            ValueError,
            "keep, min_per_layer: expected floors of 111 weights in total at most (kept at sparsity 0.9), "
            "got 320 with '2.weight' whole; keep fewer layers, lower min_per_layer or the sparsity",
        ),
    ],
)
def test_layers_that_cannot_be_kept(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        sp.prune(network(), method="magnitude", sparsity=0.9, **options)


# ---- whole channels ----------------------------------------------------------------------------------------


def test_channels_are_ranked_by_the_mean_of_their_scores() -> None:
    scores = {
        "a": torch.tensor([[1.0, 2.0], [9.0, 3.0], [4.0, 4.0]]),
        "b": torch.tensor([[5.0] * 4, [0.0] * 4]),
    }
    of = Blocks.unscored({n: s.shape for n, s in scores.items()}, {"a": 1, "b": 1}, whole_rows=True)
    assert of.sizes == {"a": 2, "b": 4}
    assert of.numbers == {"a": 3, "b": 2}
    of = of.scored(scores)
    assert of.scores["a"].tolist() == [[1.5], [6.0], [4.0]]
    # In their order: a row of 2 (6.0), of 4 (5.0), of 2 (4.0), of 2, of 4.
    expected = {
        0: (0, 0),
        1: (0, 0),
        2: (1, 0),
        5: (1, 0),
        6: (1, 1),
        7: (1, 1),
        8: (2, 1),
        13: (3, 1),
        14: (3, 2),
    }
    for k, counts in expected.items():
        assert tuple(quotas.global_(of, k).values()) == counts, k
    masks = of.masks({"a": 2, "b": 1})
    assert masks["a"].tolist() == [[False, False], [True, True], [True, True]]
    assert masks["b"].tolist() == [[True] * 4, [False] * 4]


def test_channels_that_a_round_removed_stay_removed() -> None:
    score = torch.arange(3 * 5000.0).reshape(3, 5000)
    of = Blocks.unscored({"a": score.shape}, {"a": 1}, whole_rows=True)
    masks = of.scored({"a": score}).masks({"a": 2})
    assert masks["a"].any(1).tolist() == [False, True, True]
    again = of.scored(never_again({"a": -score}, masks))
    assert torch.isfinite(again.scores["a"]).all()
    assert again.masks({"a": 1})["a"].any(1).tolist() == [False, True, False]


@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=4),
    scope=st.sampled_from(list(quotas.SCOPES)),
    sparsity=st.floats(0, 0.99),
    floor=st.integers(0, 4),
)
def test_channels_are_whole(shapes: list[tuple[int, int]], scope: str, sparsity: float, floor: int) -> None:
    scores = {str(i): torch.rand(*shape, 2) for i, shape in enumerate(shapes)}
    sizes = {name: score.shape for name, score in scores.items()}
    of = Blocks.unscored(sizes, dict.fromkeys(scores, 1), floor, whole_rows=True).scored(scores)
    k = of.kept_at(sparsity)
    if scope != "layer" and k < of.weights_of(of.floors):
        return
    masks = of.masks(quotas.of_scope(of, sparsity, scope), allow_empty=True)
    for name, mask in masks.items():
        assert mask.shape == sizes[name]
        rows = mask.flatten(1)
        assert torch.equal(rows.all(1), rows.any(1))
        assert int(mask.sum()) >= min(floor, mask.numel())
    if scope != "layer":
        assert 0 <= k - sum(int(mask.sum()) for mask in masks.values()) < max(of.sizes.values())


def test_prune_removes_whole_channels_but_no_class() -> None:
    options = {"method": "magnitude", "block": "channel", "sparsity": 0.5, "scope": "layer"}
    masks = sp.prune(network(), **options)
    assert masks["2.weight"].all()
    for name in ("0.0.weight", "0.1.weight"):
        rows = masks[name].flatten(1)
        assert torch.equal(rows.all(1), rows.any(1))
        assert int(rows.any(1).sum()) == 4
    # Where the last layer is excluded, the one before has no classes.
    assert not sp.prune(network(), exclude="2", **options)["0.1.weight"].all()


def test_channels_have_no_budget() -> None:
    for target in ({"flops": 0.5}, {"speedup": 2.0}):
        with pytest.raises(
            ValueError, match=r'block: expected .* with flops and speedup, got "channel"; a lay'
        ):
            sp.prune(network(), method="magnitude", block="channel", **target)


# ---- layers that are empty ---------------------------------------------------------------------------------


def test_the_error_of_empty_layers_names_five_and_what_works() -> None:
    scores = {str(i): torch.arange(100.0).reshape(10, 10) - 200 * i for i in range(8)}
    message = (
        "masks: expected every layer to keep a weight, got none kept in '1', '2', '3', '4', '5' and 2 more; "
        "{scopes}give each layer a floor with min_per_layer=1, keep more weights, or accept empty layers "
        "with allow_empty=True"
    )
    of = Blocks.of(scores, dict.fromkeys(scores, 1))
    with pytest.raises(ValueError, match=re.escape(message.format(scopes=""))):
        of.masks(quotas.global_(of, 80))
    assert quotas.scopes_that_fill(of, 0.9) == ["balanced", "erk", "layer"]
    with pytest.raises(
        ValueError, match=re.escape(message.format(scopes='choose scope="balanced" or "erk" or "layer", '))
    ):
        of.masks(quotas.global_(of, 80), scopes=lambda: quotas.scopes_that_fill(of, 0.9))
    for remedy in (
        {"scope": "balanced"},
        {"min_per_layer": 1},
        {"scope": "erk"},
        {"scope": "layer"},
        {"allow_empty": True},
    ):
        assert len(select_masks(scores, 0.9, **remedy)) == 8


def test_no_remedy_is_named_that_does_not_work() -> None:
    scores = {"a": torch.rand(10, 10), "b": torch.rand(2, 2) - 1}
    of = Blocks.of(scores, dict.fromkeys(scores, 1))
    # 0.04 of the small layer are rounded to none.
    assert quotas.scopes_that_fill(of, 0.96) == ["balanced", "erk"]
    message = "'a', 'b'; keep more weights (one block in each layer takes 2, these are 0), or accept empty"
    with pytest.raises(ValueError, match=re.escape(message)):
        of.masks({"a": 0, "b": 0})


def test_prune_names_the_scopes_that_leave_no_layer_empty() -> None:
    model = network()
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    with pytest.raises(
        ValueError, match=r"in '2\.weight'; choose scope=\"balanced\" or \"erk\" or \"layer\", give each"
    ):
        sp.prune(model, method="magnitude", scope="global")
    # Densities by hand are what was wanted.
    with pytest.raises(ValueError, match="min_per_layer=1, keep more weights, or"):
        sp.prune(model, method="magnitude", scope={"0": 0.5, "2": 0.0})
