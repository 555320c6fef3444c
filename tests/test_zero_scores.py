"""Scores that mean nothing: layers of zeros, and ties."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseprune as sp
from sparseprune import scores
from sparseprune._collapse import scored_by_chance
from sparseprune.select.blocks import Blocks

CLASSES = 4


class Residual(nn.Module):
    """A network of two branches whose last norms start as zeros, as timm's and torchvision's can."""

    def __init__(self, zero: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(20, 32)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.LayerNorm(32)) for _ in range(2)
        )
        if zero:
            for branch in self.branches:
                nn.init.zeros_(branch[3].weight)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(torch.tanh(x))
        return self.head(x)


ZERO = [f"branches.{i}.{j}.weight" for i in (0, 1) for j in (0, 2)]


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(64, 20, generator=generator), torch.arange(64) % CLASSES)]


@pytest.mark.parametrize(
    "scope", ["global", "layer", "erk", {"": 0.5}, {"branches": 0.5, "stem": 1, "head": 1}]
)
@pytest.mark.parametrize("method", ["snip", "gradient", "grasp", "iter_snip", "force"])
def test_layers_of_zeros_are_refused(method: str, scope: object) -> None:
    model = Residual()
    before = copy.deepcopy(model.state_dict())
    if scope == {"": 0.5}:
        scope = dict.fromkeys(scores.prunable(model), 0.5)
    layers = 4 if isinstance(scope, dict) and "stem" in scope else 6
    message = (
        f"prune: expected scores that tell weights apart, got only zeros in 4 of {layers} layers: "
        f"{', '.join(map(repr, ZERO))}. The likely cause: 'branches.0.3.weight', 'branches.1.3.weight' are "
        "zero at initialisation, and nothing is learned through zeros. Initialise otherwise, prune after a"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        sp.prune(
            model, batches(), method=method, sparsity=None if isinstance(scope, dict) else 0.8, scope=scope
        )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_of_zeros_are_refused_for_a_budget() -> None:
    with pytest.raises(ValueError, match="got only zeros in 4 of 6 layers"):
        sp.prune(Residual(), batches(), flops=0.3)


def test_zero_weights_are_their_own_cause() -> None:
    model = Residual(zero=False)
    nn.init.zeros_(model.head.weight)
    with pytest.raises(
        ValueError, match=r"in 1 of 6 layers: 'head\.weight'\. The likely cause: 'head\.weight' is zero"
    ):
        sp.prune(model, method="magnitude", scope="layer")
    with pytest.raises(ValueError, match="got only zeros in 6 of 6 layers"):
        sp.prune(model, batches(), method="snip")


def test_where_no_weight_is_zero_the_error_says_so() -> None:
    def cut(output: Tensor, target: Tensor) -> Tensor:
        return (output * 0).sum()

    with pytest.raises(
        ValueError, match=r"6 of 6 layers: .* and 1 more\. The likely cause: no gradient reaches them"
    ):
        sp.prune(Residual(zero=False), batches(), loss=cut)


def warmed_up() -> nn.Module:
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        for x, target in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
    return model


@pytest.mark.parametrize("scope", ["layer", "erk"])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (warmed_up, {}),
        (lambda: Residual(zero=False), {}),
        (Residual, {"exclude": ["branches"]}),
        (Residual, {"keep": ["branches"]}),
        (Residual, {"zero_scores": "random"}),
        (Residual, {"method": "magnitude"}),
    ],
)
def test_the_remedies_work(make, options: dict, scope: str) -> None:
    masks = sp.prune(
        make(), batches(), sparsity=0.5 if "keep" not in options else 0.05, scope=scope, **options
    )
    for name, mask in masks.items():
        kept = mask.flatten(1).any(1)
        # By position whole rows would be full, and the others empty.
        assert int(kept.sum()) > 0.9 * len(kept), name


@pytest.mark.parametrize("method", ["snip", "iter_snip", "force", "grasp"])
def test_by_chance_layers_keep_the_share_of_the_others(method: str) -> None:
    options = {
        "method": method,
        "sparsity": 0.7,
        "zero_scores": "random",
        "rounds": 1 if method == "grasp" else None,
    }
    masks = sp.prune(Residual(), batches(), **options)
    others = [masks[name] for name in masks if name not in ZERO]
    share = sum(int(m.sum()) for m in others) / sum(m.numel() for m in others)
    for name in ZERO:
        # Quantiles: equal but for their steps, which later rounds add up.
        assert abs(float(masks[name].float().mean()) - share) < 0.05
    again, other = (
        sp.prune(Residual(), batches(), **options),
        sp.prune(Residual(), batches(), seed=1, **options),
    )
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    assert not any(torch.equal(masks[name], other[name]) for name in ZERO)


@pytest.mark.parametrize("block", [(1, 1), (4, 1), "channel"])
def test_chance_ranks_whole_blocks(block: object) -> None:
    masks = sp.prune(Residual(), batches(), sparsity=0.6, block=block, zero_scores="random", scope="layer")
    v = {(1, 1): 1, (4, 1): 4, "channel": None}[block]
    for name in ZERO:
        groups = masks[name].unflatten(0, (-1, v)) if v else masks[name].unsqueeze(0).transpose(1, 2)
        assert torch.equal(groups.any(1), groups.all(1))
        share = float(masks[name].float().mean())
        assert abs(share - 0.4) < 0.03


def test_scores_by_chance_are_those_of_the_others_in_another_order() -> None:
    scored = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.zeros(2, 6)}
    blocks = Blocks.unscored({name: score.shape for name, score in scored.items()}, {"a": 1, "b": 1})
    result = scored_by_chance(scored, ["b"], blocks, seed=0)
    assert result["a"] is scored["a"]
    # The quantiles (i + 1/2) / 12 of 0 ... 11.
    expected = (torch.arange(12) + 0.5) / 12 * 11
    assert torch.allclose(result["b"].flatten().sort().values, expected)
    assert not torch.equal(result["b"].flatten(), result["b"].flatten().sort().values)
    masks = {"a": torch.ones(3, 4).bool(), "b": torch.zeros(2, 6).bool()}
    masks["b"][0, :2] = True
    of_two = scored_by_chance(scored, ["b"], blocks, seed=0, masks=masks)["b"]
    assert torch.allclose(of_two[masks["b"]].sort().values, torch.tensor([2.75, 8.25]))


def test_where_all_scores_are_zero_chance_is_noise() -> None:
    model = Residual()
    nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        for name in ZERO:
            model.get_parameter(name).zero_()
    masks = sp.prune(model, batches(), sparsity=0.5, zero_scores="random")
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept == round(0.5 * sum(mask.numel() for mask in masks.values()))
    assert all(0.4 < float(mask.float().mean()) < 0.6 for mask in masks.values())


def test_scores_that_do_not_matter_may_be_zero() -> None:
    model = Residual()
    assert all(mask.all() for mask in sp.prune(model, batches(), sparsity=0.0).values())
    masks = sp.prune(model, batches(), sparsity=0.95, allow_empty=True)
    assert not any(masks[name].all() for name in masks)


@pytest.mark.parametrize("zero_scores", ["keep", None, True])
def test_zero_scores_is_one_of_two(zero_scores: object) -> None:
    with pytest.raises(ValueError, match='zero_scores: expected "refuse" or "random", got'):
        sp.prune(Residual(), batches(), zero_scores=zero_scores)


# ---- ties --------------------------------------------------------------------------------------------------


class Flat(nn.Module):
    """Weights of a few magnitudes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(20, 10), nn.Linear(10, 5)
        with torch.no_grad():
            self.a.weight.copy_(torch.arange(200).remainder(10).reshape(10, 20) + 1)
            self.b.weight.copy_(torch.arange(50).reshape(5, 10) + 100)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_ties_are_reported() -> None:
    # 50 of b and, of 20 equal ones of a, 15.
    message = (
        "prune: expected scores that tell weights apart, got 5 of 65 kept weights (8%) whose scores removed "
        "ones have, too, in 'a.weight': the earlier position was kept; score more batches"
    )
    with pytest.warns(RuntimeWarning, match=re.escape(message)) as warned:
        sp.prune(Flat(), method="magnitude", sparsity=1 - 65 / 250)
    assert warned[0].filename == __file__
    # All of the equal ones.
    sp.prune(Flat(), method="magnitude", sparsity=1 - 70 / 250)
    with pytest.warns(RuntimeWarning, match="got 10 of 125 kept weights"):
        sp.prune(Flat(), method="magnitude", scope={"a": 0.55, "b": 0.3})


def test_few_ties_are_not_reported() -> None:
    model = Flat()
    with torch.no_grad():
        model.a.weight.copy_(torch.arange(200).reshape(10, 20) + 1)
        model.a.weight[0, 10] = model.a.weight[0, 9]
    # One of two equal ones, of 190 + 50.
    masks = sp.prune(model, method="magnitude", sparsity=10 / 250)
    assert int(masks["a.weight"].sum()) == 190
