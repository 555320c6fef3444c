import re

import pytest
import torch
from torch import Tensor, nn

import sparseprune as sp

NAMES = ["shuffled", "reinitialised", "inverted", "random"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 16), nn.Linear(16, 3))


def masks_of(model: nn.Module, **options) -> dict[str, Tensor]:
    return sp.prune(model, method="magnitude", **options)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_controls_keep_as_many_weights_in_every_layer(sparsity: float) -> None:
    model = network()
    masks = masks_of(model, sparsity=sparsity)
    controls = sp.controls(masks, model)
    assert list(controls) == NAMES
    for control in controls.values():
        assert list(control.masks) == list(masks)
        for name, mask in control.masks.items():
            assert mask.dtype == torch.bool
            assert mask.shape == masks[name].shape
            assert mask.sum() == masks[name].sum()


def test_shuffled_and_random_are_other_masks() -> None:
    model = network()
    masks = masks_of(model)
    controls = sp.controls(masks, model)
    for name, mask in masks.items():
        draws = [mask, controls["shuffled"].masks[name], controls["random"].masks[name]]
        assert not any(torch.equal(draws[i], draws[j]) for i, j in [(0, 1), (0, 2), (1, 2)])
    assert all(controls[name].model is model for name in ("shuffled", "inverted", "random"))


def test_reinitialised_has_the_same_values_elsewhere_and_the_same_masks() -> None:
    model = network()
    before = {name: p.clone() for name, p in model.named_parameters()}
    other, masks = sp.controls(masks_of(model), model)["reinitialised"]
    for name, mask in masks_of(model).items():
        assert torch.equal(masks[name], mask)
        old, new = model.get_parameter(name), other.get_parameter(name)
        assert not torch.equal(old, new)
        assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)
        # What stays is drawn from all weights, not from the large ones that the mask was made of.
        assert new[mask].abs().mean() < old[mask].abs().mean()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_inverted_keeps_the_lowest_scores() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    scores = {"0.weight": torch.tensor([[6.0, 1.0, 3.0], [2.0, 5.0, 4.0]])}
    masks = {"0.weight": torch.tensor([[True, False, False], [False, True, False]])}
    inverted = sp.controls(masks, model, scores=scores)["inverted"].masks["0.weight"]
    assert torch.equal(inverted, torch.tensor([[False, True, False], [True, False, False]]))


def test_inverted_without_scores_keeps_removed_weights_first() -> None:
    model = network()
    for sparsity in (0.8, 0.2):
        masks = masks_of(model, sparsity=sparsity, scope="layer")
        for name, mask in sp.controls(masks, model)["inverted"].masks.items():
            common = int((mask & masks[name]).sum())
            assert common == max(0, 2 * int(mask.sum()) - mask.numel())


def test_blocks_stay_whole() -> None:
    model = network()
    masks = masks_of(model, sparsity=0.5, block=(4, 1))
    scores = sp.scores.magnitude(model)
    for control in sp.controls(masks, model, scores=scores).values():
        for name in ("0.weight", "3.weight"):
            blocks = control.masks[name].flatten(1).unflatten(0, (-1, 4))
            assert torch.equal(blocks.any(1), blocks.all(1))


def test_controls_depend_on_the_seed_alone() -> None:
    model = network()
    masks = masks_of(model)
    first = sp.controls(masks, model, seed=1)
    torch.manual_seed(9)
    again, other = sp.controls(masks, model, seed=1), sp.controls(masks, model, seed=2)
    for name in ("shuffled", "inverted", "random"):
        for weight in masks:
            assert torch.equal(first[name].masks[weight], again[name].masks[weight])
        assert not torch.equal(first[name].masks["3.weight"], other[name].masks["3.weight"])


@pytest.mark.parametrize(
    ("masks", "options", "error", "message"),
    [
        (
            {"x": torch.ones(1).bool()},
            {},
            ValueError,
            "controls: expected names of the model's parameters, got 'x'",
        ),
        (
            {"4.weight": "all"},
            {},
            TypeError,
            "controls: '4.weight': expected the mask to be a tensor or an array, got str",
        ),
        (
            {"4.weight": torch.ones(2).bool()},
            {},
            ValueError,
            "controls: '4.weight': expected a mask of shape",
        ),
        (
            {"4.weight": torch.ones(3, 16).bool()},
            {"scores": {}},
            ValueError,
            "controls: expected scores of every mask's shape, got none of [3, 16] for '4.weight'",
        ),
        ({}, {"seed": -1}, ValueError, "controls: expected seed >= 0, got -1"),
    ],
)
def test_controls_refuse(masks: dict, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        sp.controls(masks, network(), **options)


def test_controls_take_masks_of_any_form() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    masks = sp.prune(model, method="random", sparsity=0.5)
    expected = sp.controls(masks, model)
    for given in (
        list(masks.values()),
        {f"module.{name}": mask.numpy().astype(float) for name, mask in masks.items()},
    ):
        for name, control in sp.controls(given, model).items():
            assert control.masks.keys() == masks.keys()
            assert all(torch.equal(control.masks[n], expected[name].masks[n]) for n in masks)
