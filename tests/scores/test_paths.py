"""Paths through networks small enough to count them by hand, or one by one."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_networks import Residual, check_unchanged, network, state
from torch import Tensor, nn

from sparseprune.scores.paths import NoPathsError, dead_units, live, paths


def bools(*rows: list[int]) -> Tensor:
    return torch.tensor(rows).bool()


def test_paths_of_a_perceptron_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    # x0 and x1 -> h0 -> y0 and y1; x1 -> h1, from where nothing leads on.
    masks = {"0.weight": bools([1, 1], [0, 1]), "2.weight": bools([1, 0], [1, 0])}
    counts = paths(model, masks, (2,))
    assert counts["0.weight"].tolist() == [[2, 2], [0, 0]]
    assert counts["2.weight"].tolist() == [[2, 0], [2, 0]]
    assert counts["0.weight"].dtype == torch.float64
    alive = live(model, masks, (2,))
    assert alive["0.weight"].tolist() == [[True, True], [False, False]]
    assert alive["2.weight"].tolist() == [[True, False], [True, False]]
    assert dead_units(alive) == {"0.weight": 1, "2.weight": 0}


def test_live_is_nothing_where_the_network_is_cut() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 4))
    alive = live(model, {"1.weight": torch.zeros(2, 2).bool()}, (3,))
    assert not any(bool(of.any()) for of in alive.values())
    assert dead_units(alive) == {"0.weight": 2, "1.weight": 2, "2.weight": 4}


def test_paths_lead_around_a_cut_branch() -> None:
    model = Residual()
    alive = live(model, {"blocks.0.weight": torch.zeros(6, 6).bool()}, (6,))
    assert {name: bool(of.all()) for name, of in alive.items()} == {
        "inner.0.weight": True,
        "blocks.0.weight": False,
        "blocks.1.weight": True,
    }
    # (1 + 6)(1 + 6)(1 + 6) from an input to all outputs; through a weight, 1 before and 1 after, times 7.
    counts = paths(model, {}, (6,))
    assert counts["inner.0.weight"].unique().tolist() == [49]
    assert counts["blocks.1.weight"].unique().tolist() == [49]


def test_paths_through_a_convolution_pool_and_norm() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Dropout()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)),
    )
    masks = {"0.weight": torch.tensor([True, True]).reshape(2, 1, 1, 1), "6.weight": torch.zeros(3, 8).bool()}
    # One of the four windows of channel 0; nothing of channel 1.
    masks["6.weight"][1, 2] = True
    counts = paths(model, masks, (1, 4, 4))
    assert counts["0.weight"].flatten().tolist() == [4, 0]
    assert counts["6.weight"].nonzero().tolist() == [[1, 2]]
    assert counts["6.weight"].sum() == 4


def test_weights_that_see_padding_alone_are_dead() -> None:
    alive = live(nn.Conv2d(1, 1, 3, padding=1), {}, (1, 1, 1))["weight"]
    assert alive[0, 0].tolist() == [[False] * 3, [False, True, False], [False] * 3]


@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (nn.MaxPool1d(3, 2, padding=1), (2, 7)),
        (nn.AvgPool1d(2), (2, 7)),
        (nn.MaxPool2d(3, 2, ceil_mode=True), (2, 6, 7)),
        (nn.AvgPool2d((2, 1)), (2, 6, 7)),
        (nn.MaxPool3d(2), (2, 4, 5, 4)),
        (nn.AdaptiveMaxPool2d((2, 3)), (2, 5, 7)),
        (nn.AdaptiveAvgPool2d((None, 1)), (2, 5, 7)),
        (nn.AdaptiveAvgPool1d(4), (2, 7)),
    ],
    ids=repr,
)
def test_pools_lead_from_every_input_of_their_windows(pool: nn.Module, size: tuple[int, ...]) -> None:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 2](2, 2, 1)
    counts = paths(nn.Sequential(conv, pool), {}, size)["0.weight"]
    # A position is in as many windows as there are numbers that change with it.
    windows = 0
    for place in itertools.product(*map(range, size[1:])):
        x = torch.full((1, 1, *size[1:]), -1.0)
        y = pool(x)
        x[(0, 0, *place)] = 1.0
        windows += int((pool(x) != y).sum())
    assert counts.unique().tolist() == [windows]


class Forward(nn.Module):
    """One linear layer of two inputs and outputs, before a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.layer, self.after, self.function = nn.Linear(2, 2), nn.Linear(2, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.layer(x)))


IN_PLACE = [lambda x: x.relu_(), lambda x: x.add_(1), lambda x: x.sub_(x.clone()), lambda x: x.mul_(3)]


@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        F.gelu,
        torch.Tensor.tanh,
        nn.Softmax(-1),
        nn.Hardswish(inplace=True),
        nn.LeakyReLU(),
        nn.Softplus(),
        nn.Threshold(9.0, 0.0),
        nn.PReLU(),
        lambda x: F.layer_norm(x, (2,)),
        lambda x: F.glu(torch.cat([x, x], -1), -1),
        lambda x: 1 - x,
        lambda x: x - x.detach(),
        lambda x: -x + 5,
        lambda x: (x - 3.0) / 7,
        lambda x: x**2,
        lambda x: 2**x,
        lambda x: torch.maximum(x, 0 * x),
        *IN_PLACE,
    ],
)
def test_functions_lead_every_element_on(function) -> None:
    masks = {"layer.weight": bools([1, 0], [0, 0]), "after.weight": bools([1, 1])}
    alive = live(Forward(function), masks, (2,))
    assert alive["layer.weight"].tolist() == [[True, False], [False, False]]
    # What begins with a constant is no path.
    assert alive["after.weight"].tolist() == [[True, False]]


def test_frozen_parts_have_paths() -> None:
    def frozen(x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2

    assert bool(live(Forward(frozen), {}, (2,))["layer.weight"].all())


def test_attention_leads_from_queries_keys_and_values() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).unflatten(-1, (2, 2)).transpose(1, 2) for f in (self.q, self.k, self.v))
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    alive = live(Attention(), {"v.weight": torch.zeros(4, 4).bool()}, (3, 4))
    assert {name: bool(of.all()) for name, of in alive.items()} == {
        "q.weight": True,
        "k.weight": True,
        "v.weight": False,
        "out.weight": True,
    }
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    masks = {"linear1.weight": torch.zeros(16, 8).bool()}
    alive = live(encoder, masks, (3, 8))
    assert {name: bool(of.any()) for name, of in alive.items()} == {
        "self_attn.in_proj_weight": True,
        "self_attn.out_proj.weight": True,
        "linear1.weight": False,
        "linear2.weight": False,
    }


@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    seed=st.integers(0, 2**32),
    density=st.sampled_from([0.2, 0.5, 0.8]),
)
def test_paths_are_those_that_enumeration_finds(sizes: list[int], seed: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(i, o) for i, o in itertools.pairwise(sizes)]
    masks = {
        f"{2 * n}.weight": torch.rand(layer.weight.shape, generator=generator) < density
        for n, layer in enumerate(layers)
    }
    model = nn.Sequential(*itertools.chain(*((layer, nn.ReLU()) for layer in layers)))
    wanted = {name: torch.zeros(mask.shape, dtype=torch.float64) for name, mask in masks.items()}
    for units in itertools.product(*map(range, sizes)):
        steps = list(zip(masks, itertools.pairwise(units), strict=True))
        if all(masks[name][after, before] for name, (before, after) in steps):
            for name, (before, after) in steps:
                wanted[name][after, before] += 1
    counts, alive = paths(model, masks, (sizes[0],)), live(model, masks, (sizes[0],))
    for name, count in wanted.items():
        assert torch.equal(counts[name], count)
        assert torch.equal(alive[name], count > 0)


def test_live_has_no_limit_of_depth() -> None:
    deep = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(400)))
    narrow = {"7.weight": torch.zeros(16, 16).bool()}
    narrow["7.weight"][3, 4] = True
    alive = live(deep, narrow, (16,))
    assert alive["6.weight"].any(1).nonzero().tolist() == [[4]]
    assert alive["8.weight"].any(0).nonzero().tolist() == [[3]]
    assert bool(alive["399.weight"].all())
    with pytest.raises(NoPathsError, match=r"it has more than 1.8e308 paths; live\(\) has no such limit$"):
        paths(deep, {}, (16,))
    counts = paths(deep[:100], {}, (16,))
    assert math.log10(counts["50.weight"].sum()) == pytest.approx(101 * math.log10(16), rel=1e-12)


def test_shared_weights_count_every_use() -> None:
    shared = nn.Linear(2, 2)
    counts = paths(nn.Sequential(shared, shared), {}, (2,))
    # Eight paths, each through two of the four.
    assert counts["0.weight"].tolist() == [[4, 4], [4, 4]]
    assert list(counts) == ["0.weight"]


def test_paths_leave_the_model_as_it_is() -> None:
    model = network()
    model.train()
    model[0][1].eval()
    before, modes = state(model), [module.training for module in model.modules()]
    numbers = torch.get_rng_state()
    paths(model, {}, (2, 5, 5))
    live(model.half(), {}, (2, 5, 5))
    model.float()
    check_unchanged(
        model, {name: x.half().float() if x.is_floating_point() else x for name, x in before.items()}
    )
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(numbers, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with pytest.raises(NoPathsError):
        live(model, {}, (3, 5, 5))
    assert modes == [module.training for module in model.modules()]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.max(1, keepdim=True).values, "no paths can be counted through torch's max"),
        (lambda x: x / x.sum(), "no paths can be counted through a division by activations"),
        (lambda x: x @ -torch.eye(2, dtype=x.dtype), "it makes negative numbers of positive ones"),
        (lambda x: F.max_pool1d(x, 2, dilation=2), "no paths are counted through pools with dilation"),
        (lambda x: x.unflatten(1, (1, 3)), "unflatten: "),
    ],
)
def test_what_has_no_paths_is_refused(function, reason: str) -> None:
    with pytest.raises(NoPathsError) as caught:
        live(Forward(function), {}, (2,))
    message = str(caught.value)
    assert message.startswith("live: expected a model through which paths can be followed from one sample of")
    assert f"(2,), got Forward: {reason}" in message
    assert len(message.splitlines()) == 1


def test_a_gate_without_inputs_is_refused() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.gate = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.main(x) * self.gate(x).sigmoid()

    assert bool(live(Gated(), {}, (2,))["gate.weight"].all())
    with pytest.raises(NoPathsError, match="one factor of a product has no paths"):
        live(Gated(), {"gate.weight": torch.zeros(2, 2).bool()}, (2,))


def test_computed_weights_and_other_outputs_are_refused() -> None:
    class Standardised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight - self.weight.mean())

    with pytest.raises(NoPathsError, match=r"computes weights from those that have masks; densify\(\)"):
        live(Standardised(2, 2), {}, (2,))
    with pytest.raises(NoPathsError, match="its output is no tensor that depends on the input"):
        live(nn.LSTM(2, 2), {"weight_ih_l0": torch.ones(8, 2).bool()}, (2,))


def test_masks_of_another_model_are_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(
        ValueError, match="paths: expected names of the model's parameters, got 'x'; were the"
    ):
        paths(model, {"x": torch.ones(2, 2).bool()}, (2,))
    with pytest.raises(ValueError, match=r"live: 'weight': expected a mask of shape \[2, 2\]"):
        live(model, {"weight": torch.ones(2, 3).bool()}, (2,))
    with pytest.raises(TypeError, match="live: 'weight': expected the mask to be a bool tensor"):
        live(model, {"weight": torch.ones(2, 2)}, (2,))
    assert live(nn.ReLU(), {}, (2,)) == {}
