"""Hidden units in an order in which blocks lose less."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_half_the_digits
from torch import Tensor, nn

import sparseprune as sp
from sparseprune._group import group_rows
from sparseprune.experiments.models import resnet8
from sparseprune.select.grouping import captured


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU()), *(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    )


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 9, 4)),
    )


MODELS = {
    "perceptron": (perceptron, (12,), {"0", "3"}),
    "convolutional": (convolutional, (1, 9, 9), {"0", "4"}),
    "resnet8": (lambda: resnet8((1, 9, 9), 4, width=0.25), (1, 9, 9), {"3.conv1", "4.conv1", "5.conv1"}),
}


def batches(sample: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, *sample, generator=generator), torch.randint(4, (16,), generator=generator))
        for _ in range(2)
    ]


def snip(model: nn.Module, sample: tuple[int, ...]) -> dict[str, Tensor]:
    return sp.scores.snip(model, batches(sample), F.cross_entropy)


@pytest.mark.parametrize("name", MODELS)
def test_a_grouped_model_is_the_same_function(name: str) -> None:
    make, sample, hidden = MODELS[name]
    model = make()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                    tensor.uniform_(0.5, 1.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    grouped = group_rows(model, snip(model, sample), block=(4, 1))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    rows = {key for key in hidden if not torch.equal(*(of(key, m) for m in (model, grouped)))}
    assert rows  # at least one layer is in another order
    x = batches(sample)[0][0].double()
    for training in (False, True):
        outputs = [m.double().train(training)(x) for m in (model, grouped)]
        assert_half_the_digits(outputs[1], outputs[0])


def of(name: str, model: nn.Module) -> Tensor:
    return model.get_submodule(name).weight.detach().flatten(1).abs().sum(1)


def captured_by(scores: Mapping[str, Tensor], best: Mapping[str, Tensor]) -> dict[str, float]:
    return {
        name: captured(score.flatten(1), 4, max(int(best[name].sum()), 4))
        for name, score in scores.items()
        if len(score) % 4 == 0
    }


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
@pytest.mark.parametrize("name", MODELS)
def test_no_layer_captures_less(name: str, sparsity: float) -> None:
    make, sample, hidden = MODELS[name]
    model = make().double()
    given = [(x.double(), y) for x, y in batches(sample)]
    scores = sp.scores.snip(model, given, F.cross_entropy)
    grouped = group_rows(model, scores, block=(4, 1), sparsity=sparsity)
    after = sp.scores.snip(grouped, given, F.cross_entropy)
    k = round(sum(score.numel() for score in scores.values()) * (1 - sparsity))
    best = dict(zip(scores, sp.topk_masks(list(scores.values()), k), strict=True))
    old, new = captured_by(scores, best), captured_by(after, best)
    # float32 scores of float64 gradients, added up in another order.
    assert all(new[layer] >= old[layer] * (1 - 1e-5) for layer in old)
    assert any(new[f"{layer}.weight"] > 1.001 * old[f"{layer}.weight"] for layer in hidden)


def test_masks_of_blocks_keep_more_of_the_score() -> None:
    model = perceptron()
    scores = snip(model, (12,))
    grouped = group_rows(model, scores)
    kept = []
    for of_model in (model, grouped):
        masks = sp.prune(of_model, batches((12,)), block=(4, 1), sparsity=0.9, min_per_layer=1)
        scored = snip(of_model, (12,))
        kept.append(sum(float(scored[name][mask].sum()) for name, mask in masks.items()))
    assert kept[1] > 1.1 * kept[0]


def test_a_layer_without_a_score_or_without_whole_blocks_stays() -> None:
    model = perceptron()
    scores = snip(model, (12,))
    del scores["0.weight"]
    grouped = group_rows(model, scores)
    assert torch.equal(grouped[0].weight, model[0].weight)
    assert not torch.equal(grouped[3].weight, model[3].weight)
    uneven = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    grouped = group_rows(
        uneven, {name: p.detach().abs() for name, p in uneven.named_parameters() if p.dim() > 1}
    )
    assert all(torch.equal(a, b) for a, b in zip(grouped.parameters(), uneven.parameters(), strict=True))


def test_a_model_without_hidden_units_is_said_to_stay() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Softmax(1))
    scores = {"0.weight": torch.rand(8, 8)}
    with pytest.warns(
        RuntimeWarning, match=r"group_rows: expected hidden units .*; the model is returned as"
    ):
        grouped = group_rows(model, scores)
    assert torch.equal(grouped[0].weight, model[0].weight)
    assert grouped[0].weight is not model[0].weight


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"scores": {"head.weight": torch.ones(2, 2)}},
            ValueError,
            "group_rows: expected scores of prunable weights ('0.weight', '3.weight', '5.weight'), got "
            "'head.weight'; were they made for another model?",
        ),
        (
            {"scores": {"0.weight": torch.ones(4, 12)}},
            ValueError,
            "group_rows: expected a score of shape [32, 12] (the weight's) for '0.weight', got [4, 12]; were",
        ),
        (
            {"scores": {"0.weight": torch.ones(32, 12, dtype=torch.bool)}},
            TypeError,
            "group_rows: expected a floating-point score of '0.weight', got torch.bool",
        ),
        ({"scores": {"0.weight": [1.0]}}, TypeError, "floating-point score of '0.weight', got list"),
        (
            {"scores": {"0.weight": torch.full((32, 12), torch.nan)}},
            ValueError,
            "expected finite scores, got nan in '0.weight'",
        ),
        (
            {"block": (1, 1)},
            ValueError,
            "group_rows: expected block == (V, 1) with V in 2, 4, 8, 16, got (1, 1); single weights need no",
        ),
        ({"block": (3, 1)}, ValueError, "group_rows: expected block == (V, 1), rows x columns, with V in"),
        ({"block": "auto"}, ValueError, "got 'auto'"),
        ({"sparsity": 1.0}, ValueError, "group_rows: expected the fraction removed, in [0, 1), got 1.0"),
        ({"sparsity": "0.9"}, TypeError, "group_rows: expected a number in [0, 1) as sparsity, got str"),
        ({"model": nn.Linear}, TypeError, "expected model to be a torch.nn.Module, got type"),
    ],
)
def test_what_cannot_be_grouped_is_refused(changes: dict, error: type[Exception], message: str) -> None:
    model = perceptron()
    arguments = {"model": model, "scores": {"0.weight": torch.rand(32, 12)}, **changes}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with warnings.catch_warnings(), pytest.raises(error, match=re.escape(message)):
        group_rows(**arguments)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
