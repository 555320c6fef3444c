"""What ``Rewire`` moves: counts stay, places move, in layers of all kinds and of any shape."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_networks import KINDS, adam, masks_of, sample, sparse, train
from torch import Tensor, nn

import sparseprune as sp
from sparseprune._rewire import layers as moving
from sparseprune._rewire.schedule import Schedule

# Of torch's own layers: "same" padding of even kernels, which is more on one side.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layers", ["sparse", "dense"])
@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("kind", KINDS)
def test_counts_stay_and_places_move(kind: str, method: Any, layers: str, dtype: torch.dtype) -> None:
    model = sparse(kind, layers, dtype)
    before, parameters = masks_of(model), dict(model.named_parameters())
    addresses = {name: p.data_ptr() for name, p in parameters.items()}
    optimizer = adam(model)
    train(model, optimizer, sp.Rewire(model, optimizer, method, every=2, until=20), kind, range(6))
    for name, mask in masks_of(model).items():
        assert mask.sum() == before[name].sum()
        assert not torch.equal(mask, before[name])
        v = 4 if kind == "blocks" else 1
        blocks = mask.flatten(1).view(len(mask) // v, v, -1)
        assert torch.equal(blocks.any(1), blocks.all(1))
    for name, p in model.named_parameters():
        assert p is parameters[name]
        assert p.data_ptr() == addresses[name]


def test_the_part_that_moves_falls_to_nothing() -> None:
    schedule = Schedule(0.3, 10, 100, None)
    assert [step for step in range(1, 200) if schedule.moves_at(step)] == list(range(10, 100, 10))
    assert schedule.part(0) == 0.3
    assert schedule.part(50) == pytest.approx(0.15)
    assert schedule.part(100) == 0
    assert Schedule(0.3, 10, None, None).part(10**6) == 0.3


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("kind", KINDS)
def test_neither_threads_nor_parts_matter(
    kind: str, method: Any, monkeypatch: pytest.MonkeyPatch, restored_threads: None
) -> None:
    results = []
    for threads, at_once in ((1, 1 << 23), (2, 1 << 23), (2, 64)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(moving, "AT_ONCE", at_once)
        model = sparse(kind)
        optimizer = adam(model)
        train(model, optimizer, sp.Rewire(model, optimizer, method, every=2), kind, range(8))
        results.append(masks_of(model))
    for other in results[1:]:
        assert all(torch.equal(mask, other[name]) for name, mask in results[0].items())


@pytest.fixture
def restored_threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_other_seeds_are_other_masks() -> None:
    found = []
    for seed in (0, 0, 1):
        model = sparse("linear")
        optimizer = adam(model)
        train(model, optimizer, sp.Rewire(model, optimizer, "set", every=1, seed=seed), "linear", range(1))
        found.append(masks_of(model)["0"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("method", ["rigl", "set", lambda w, c, p: (w.abs().mean(1), c.gradient)])
@pytest.mark.parametrize("v", [1, 2])
def test_rows_with_as_many_weights_keep_as_many(method: Any, v: int) -> None:
    dense = nn.Sequential(nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 5))
    blocks = torch.rand(12 // v, 20).argsort(1) < 6
    model = sp.sparsify(dense, {"0.weight": blocks.repeat_interleave(v, 0)}, layers="sparse")
    before = masks_of(model)["0"]
    optimizer = adam(model)
    train(
        model.double(), optimizer, sp.Rewire(model, optimizer, method, every=1, until=10), "linear", range(9)
    )
    after = masks_of(model)["0"]
    assert torch.equal(after.sum(1), torch.full((12,), 6))
    assert not torch.equal(before, after)


@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_weights_go_until_half_of_the_steps_are_done(layers: str) -> None:
    model = sparse("linear", layers)
    sizes = {name: mask.numel() for name, mask in masks_of(model).items()}
    optimizer = adam(model)
    rewire = sp.Rewire(model, optimizer, every=2, until=20, sparsity=0.9)
    start = {name: int(mask.sum()) for name, mask in masks_of(model).items()}
    end = {name: round(n * 0.1 * sum(sizes.values()) / sum(start.values())) for name, n in start.items()}
    for step in range(1, 21):
        train(model, optimizer, rewire, "linear", range(step, step + 1))
        left = (1 - min(step - step % 2, 10) / 10) ** 3
        for name, mask in masks_of(model).items():
            assert int(mask.sum()) == end[name] + round((start[name] - end[name]) * left)


def test_a_rule_of_ones_own_chooses_both() -> None:
    called = []

    def last_come(weights: Tensor, candidates: sp.Candidates, pattern: Any) -> tuple[Tensor, Tensor]:
        n = len(weights)
        assert len(pattern[1]) == n
        assert torch.equal(candidates.positions[:n], candidates.positions[:n].sort().values)
        assert len(candidates.gradient) == len(candidates.positions) > n
        called.append(n)
        return torch.arange(n, dtype=torch.float64), candidates.positions.double()

    model = sparse("linear")
    layer, before = model[0], masks_of(model)["0"].flatten().nonzero()[:, 0]
    optimizer = adam(model)
    train(model, optimizer, sp.Rewire(model, optimizer, last_come, fraction=0.1, every=1), "linear", range(1))
    after = layer.mask.flatten().nonzero()[:, 0]
    moved = len(before) // 10
    # Those that went were the first.
    assert torch.equal(before[moved:], after[torch.isin(after, before[moved:])])
    assert called == [len(before), masks_of(sparse("linear"))["2"].sum()]


def test_layers_that_are_not_trained_stay() -> None:
    model = sparse("linear")
    model[0].values.requires_grad_(False)
    before = masks_of(model)
    optimizer = adam(model)
    train(model, optimizer, sp.Rewire(model, optimizer, every=1), "linear", range(2))
    assert torch.equal(masks_of(model)["0"], before["0"])
    assert not torch.equal(masks_of(model)["2"], before["2"])


def test_a_layer_that_was_not_called_stays(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleList([sparse("linear"), sparse("linear")])
    before = masks_of(model)
    optimizer = adam(model)
    rewire = sp.Rewire(model, optimizer, every=1)
    x, y = sample("linear", 0)
    nn.functional.cross_entropy(model[0](x), y).backward()
    optimizer.step()
    rewire.step()
    after = masks_of(model)
    assert "1.0.weight was not called" in caplog.text
    assert not torch.equal(after["0.0"], before["0.0"])
    assert torch.equal(after["1.0"], before["1.0"])


@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_modules_of_other_classes_move(layers: Any) -> None:
    model = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
    x = torch.randn(4, 5, 16)
    masks = sp.prune(
        model, [x], loss=lambda m, b: m(b).square().mean(), method="random", sparsity=0.7, scope="layer"
    )
    model = sp.sparsify(model, masks, layers=layers)
    before = masks_of(model)
    optimizer = adam(model)
    rewire = sp.Rewire(model, optimizer, every=1)
    model(x).square().mean().backward()
    optimizer.step()
    rewire.step()
    after = masks_of(model)
    assert before.keys() == after.keys()
    for name, mask in after.items():
        assert mask.sum() == before[name].sum()
        assert not torch.equal(mask, before[name])


@settings(max_examples=60)
@given(
    rows=st.integers(1, 9),
    inputs=st.integers(1, 40),
    v=st.sampled_from([1, 2, 4, 8, 16]),
    density=st.floats(0, 1),
    fraction=st.floats(0.01, 0.99),
    method=st.sampled_from(["rigl", "set", lambda w, c, p: (w.abs().mean(1), c.gradient)]),
    layers=st.sampled_from(["sparse", "dense"]),
    even=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_counts_of_any_shape(
    rows: int,
    inputs: int,
    v: int,
    density: float,
    fraction: float,
    method: Any,
    layers: Any,
    even: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    order = torch.rand(rows, inputs)
    blocks = order.argsort(1) < round(density * inputs) if even else order < density
    dense = nn.Linear(inputs, rows * v)
    model = sp.sparsify(nn.Sequential(dense), {"0.weight": blocks.repeat_interleave(v, 0)}, layers=layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rewire = sp.Rewire(model, optimizer, method, fraction=fraction, every=1)
    for _ in range(2):
        before, weight = masks_of(model)["0"], model[0].weight.detach()
        optimizer.zero_grad()
        model(torch.randn(3, inputs)).square().sum().backward()
        optimizer.step()
        trained = model[0].weight.detach()
        rewire.step()
        after = masks_of(model)["0"]
        assert after.sum() == before.sum()
        if even:
            assert torch.equal(after.sum(1), before.sum(1))
        # Those that stay keep their weights, those that come have none.
        kept = model[0].weight.detach() * after
        assert torch.equal(kept, trained * before * after)
        assert weight.shape == kept.shape
        if layers == "sparse":
            assert torch.equal(after.view(rows, v, -1).any(1), after.view(rows, v, -1).all(1))
