"""The layers of a checkpoint in a model that has others."""

import copy
from typing import Any

import pytest
import torch
from small_networks import check_unchanged, network, noise, state
from test_checkpoint_kinds import MODELS, batch, masks_of, step
from torch import Tensor, nn

import sparseprune as sp

KINDS = {**MODELS, "network": network}


def of_both_kinds(model: nn.Module) -> nn.Module:
    """Every second weight sparse, the others masked."""
    masks = masks_of(model)
    ways = {name: "sparse" if i % 2 else "dense" for i, name in enumerate(masks)}
    return sp.sparsify(model, masks, layers=ways)


def inputs(kind: str) -> Tensor:
    return noise(4, 2, 5, 5) if kind == "network" else batch(kind)


def kinds(model: nn.Module) -> list[Any]:
    return [
        (type(m).__name__, [tuple(p.shape) for p in m.parameters(recurse=False)]) for m in model.modules()
    ]


@pytest.mark.parametrize("before", ["as made", "all sparse", "all masked"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_with_torchs_own_state_dicts(kind: str, before: str) -> None:
    saved, x = of_both_kinds(KINDS[kind]()), inputs(kind)
    optimizer = torch.optim.Adam(saved.parameters(), 0.01)
    step(saved, optimizer, x)
    checkpoint = copy.deepcopy({"model": saved.state_dict(), "optimizer": optimizer.state_dict()})

    model = KINDS[kind]()
    if before != "as made":
        ways = "sparse" if before == "all sparse" else "dense"
        model = sp.sparsify(model, masks_of(model, seed=1), layers=ways)
    assert sp.sparsify_like(model, checkpoint["model"], inplace=True) is model
    assert kinds(model) == kinds(saved)
    model.load_state_dict(checkpoint["model"])
    resumed = torch.optim.Adam(model.parameters(), 0.01)
    resumed.load_state_dict(checkpoint["optimizer"])
    step(saved, optimizer, x)
    step(model, resumed, x)
    check_unchanged(model, state(saved))
    assert torch.equal(model(x), saved(x))


def test_a_copy_leaves_the_model_alone() -> None:
    saved, model = of_both_kinds(network()), network()
    before = state(model)
    result = sp.sparsify_like(model, {f"module.{name}": t for name, t in saved.state_dict().items()})
    assert kinds(result) == kinds(saved)
    assert kinds(model) == kinds(network())
    check_unchanged(model, before)
    again = sp.sparsify_like(result, saved.state_dict())
    assert again is not result
    assert kinds(again) == kinds(saved)


def test_what_has_the_layers_already_is_left_as_it_is() -> None:
    saved, model = of_both_kinds(network()), of_both_kinds(network())
    modules = list(model.modules())
    sp.sparsify_like(model, saved.state_dict(), inplace=True)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))


def test_a_state_of_torchs_own_pruning_gives_masks() -> None:
    pruned, model = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))
    nn.utils.prune.random_unstructured(pruned[0], "weight", 0.5)
    sp.sparsify_like(model, pruned.state_dict(), inplace=True)
    assert torch.equal(model[0].mask, pruned[0].weight_mask)


def test_a_layer_with_two_names_is_one_layer() -> None:
    def twice() -> nn.Module:
        torch.manual_seed(0)
        layer = nn.Linear(6, 6)
        return nn.Sequential(layer, nn.Tanh(), layer)

    masks = {"0.weight": noise(6, 6) > 0}
    saved = sp.sparsify(twice(), masks, layers="sparse")
    model: Any = sp.sparsify_like(twice(), saved.state_dict())
    assert model[0] is model[2]
    model.load_state_dict(saved.state_dict())
    assert torch.equal(model(noise(2, 6)), saved(noise(2, 6)))


def test_errors_change_nothing() -> None:
    saved, model = of_both_kinds(network()), network()
    before = state(model)
    other = {f"other.{name}": t for name, t in saved.state_dict().items()}
    with pytest.raises(ValueError, match=r"expected the state of such a Sequential, got masks of no weight"):
        sp.sparsify_like(model, other, inplace=True)
    damaged = {**saved.state_dict(), "2.col": saved.state_dict()["2.col"] + 1000}
    with pytest.raises(ValueError, match=r"sparsify_like: 2\.weight: expected columns"):
        sp.sparsify_like(model, damaged, inplace=True)
    check_unchanged(model, before)
    assert kinds(model) == kinds(network())


def test_ways_by_name() -> None:
    model = network()
    masks = {name: torch.rand(p.shape) < 0.5 for name, p in sp.scores.prunable(model).items()}
    result = sp.sparsify(model, masks, layers={"2.weight": "sparse", "4.weight": "dense"})
    assert type(result[2]).__name__ == "SparseLinear"
    assert type(result[4]).__name__ == "MaskedLinear"
    with pytest.raises(ValueError, match="expected layers="):
        sp.sparsify(model, masks, layers={"2.weight": "thin"})
