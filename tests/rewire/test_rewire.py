"""What a user does with ``Rewire``: training loops of all kinds, checkpoints, copies, and mistakes."""

import copy
import gc
import io
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_networks import KINDS, masks_of, network, sample, sparse, train
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparseprune as sp
from sparseprune._rewire import layers as moving
from sparseprune._rewire.schedule import Schedule

# Of torch's own layers: "same" padding of even kernels, which is more on one side.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, p), (_, q) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(p, q), name


# ---- what moves --------------------------------------------------------------------------------------------


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


# ---- training loops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["sparse", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_gradients_are_those_of_one_batch(kind: str, layers: str) -> None:
    found = []
    for parts in (1, 4):
        model = sparse(kind, layers)
        optimizer = adam(model)
        rewire = sp.Rewire(model, optimizer, every=1)
        x, y = sample(kind, 0)
        for its_x, its_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (nn.functional.cross_entropy(model(its_x), its_y) / parts).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        rewire.step()
        found.append(masks_of(model))
    assert all(torch.equal(mask, found[1][name]) for name, mask in found[0].items())


@pytest.mark.parametrize("layers", ["sparse", "dense"])
def test_a_move_waits_while_gradients_are_not_finite(layers: str) -> None:
    model = sparse("linear", layers, torch.float32)
    optimizer = adam(model)
    rewire = sp.Rewire(model, optimizer, every=2, until=20)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    moves = []
    for step, factor in enumerate((1.0, math.inf, math.inf, 1.0, 1.0, 1.0)):
        before = masks_of(model)
        x, y = sample("linear", step, torch.float32)
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x), y) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        rewire.step()
        moves.append(not torch.equal(masks_of(model)["0"], before["0"]))
    # Due after the second, the fourth and the sixth; the second's waited.
    assert moves == [False, False, False, True, False, True]


def test_recomputed_activations_are_seen_once() -> None:
    found = []
    for checkpointed in (False, True):
        model = sparse("linear")
        optimizer = adam(model)
        rewire = sp.Rewire(model, optimizer, every=1)
        x, y = sample("linear", 0)
        logits = (
            torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)
        )
        nn.functional.cross_entropy(logits, y).backward()
        optimizer.step()
        rewire.step()
        found.append(masks_of(model))
    assert all(torch.equal(mask, found[1][name]) for name, mask in found[0].items())


def test_autocast_moves_as_well() -> None:
    model = sparse("linear", dtype=torch.float32)
    before = masks_of(model)
    optimizer = adam(model)
    rewire = sp.Rewire(model, optimizer, every=1)
    x, y = sample("linear", 0, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    rewire.step()
    assert not torch.equal(masks_of(model)["0"], before["0"])


def test_relus_in_layers_count() -> None:
    found = []
    for fuse in (True, False):
        dense = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5)).double()
        torch.manual_seed(0)
        for p in dense.parameters():
            nn.init.normal_(p, std=0.3)
        mask = torch.rand(32, 20, generator=torch.Generator().manual_seed(0)) < 0.3
        model = sp.sparsify(dense, {"0.weight": mask}, layers="sparse", fuse=fuse)
        assert model[0].relu == fuse
        optimizer = adam(model)
        train(model, optimizer, sp.Rewire(model, optimizer, every=1), "linear", range(3))
        found.append(model[0].mask)
    assert torch.equal(*found)


def test_compiled_models_go_on_and_are_compiled_once(needs_extension: None) -> None:
    torch._dynamo.reset()
    model, plain = sparse("linear", dtype=torch.float32), sparse("linear", dtype=torch.float32)
    compiles = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=compiles)
    for network_, called in ((model, compiled), (plain, plain)):
        optimizer = adam(network_)
        rewire = sp.Rewire(network_, optimizer, every=3, until=12)
        train(called, optimizer, rewire, "linear", range(14))
    assert compiles.frame_count == 1
    assert all(torch.equal(mask, masks_of(plain)[name]) for name, mask in masks_of(model).items())


def test_compiled_models_compile_again_when_it_is_gone(needs_extension: None) -> None:
    # What earlier tests have left in tracebacks.
    gc.collect()
    model = sparse("linear")
    optimizer = adam(model)
    first = sp.Rewire(model, optimizer, every=1)
    second = sp.Rewire(model, optimizer, every=1)
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    del first
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    del second
    assert torch._dynamo.eval_frame._stance.stance == "default"


# ---- checkpoints and copies --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("layers", ["sparse", "dense"])
@pytest.mark.parametrize("at", [5, 6, 7])
def test_a_resumed_run_is_the_same(layers: str, method: Any, at: int) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, sp.Rewire]:
        model = sparse("conv", layers)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True)
        return model, optimizer, sp.Rewire(model, optimizer, method, every=3, until=15, sparsity=0.8)

    model, optimizer, rewire = start()
    train(model, optimizer, rewire, "conv", range(at))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), rewire.state_dict()], file)
    train(model, optimizer, rewire, "conv", range(at, 20))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, its_optimizer, its_rewire = start()
    for part, state in zip((resumed, its_optimizer, its_rewire), saved, strict=True):
        part.load_state_dict(state)
    train(resumed, its_optimizer, its_rewire, "conv", range(at, 20))
    assert_same(model, resumed)
    assert its_rewire.state_dict() == rewire.state_dict()


def test_copies_may_be_made_at_any_time() -> None:
    model = sparse("conv")
    optimizer = adam(model)
    rewire = sp.Rewire(model, optimizer, every=2)
    x, _ = sample("conv", 0)
    for step in range(4):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), model(x))
            other(x).sum().backward()
        copy.deepcopy(optimizer)
        train(model, optimizer, rewire, "conv", range(step, step + 1))


def test_averages_follow() -> None:
    model = sparse("linear")
    optimizer = adam(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    rewire = sp.Rewire(model, optimizer, every=2, copies=[average])
    dense = {name: m.weight.detach().clone() for name, m in model.named_modules() if hasattr(m, "mask")}
    for step in range(6):
        train(model, optimizer, rewire, "linear", range(step, step + 1))
        average.update_parameters(model)
        for name, expected in dense.items():
            layer = model.get_submodule(name)
            # The first update copies, as torch's does.
            decay = 0.9 if step else 0.0
            dense[name] = (expected * decay + layer.weight.detach() * (1 - decay)) * layer.mask
            assert torch.equal(average.module.get_submodule(name).mask, layer.mask)
            torch.testing.assert_close(average.module.get_submodule(name).weight.detach(), dense[name])


# ---- mistakes ----------------------------------------------------------------------------------------------


def made(**options: Any) -> sp.Rewire:
    model = sparse("linear")
    return sp.Rewire(model, adam(model), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "expected 0 < fraction < 1"),
        ({"fraction": 1.0}, "expected 0 < fraction < 1"),
        ({"fraction": math.nan}, "expected 0 < fraction < 1"),
        ({"every": 0}, "expected every >= 1"),
        ({"until": -1}, "expected until >= 1"),
        ({"seed": -1}, "expected seed >= 0"),
        ({"method": "grow"}, 'expected method "rigl", "set" or a function'),
        ({"sparsity": 1.0, "until": 10}, "expected 0 <= sparsity < 1"),
        ({"sparsity": 0.9}, "expected until with sparsity"),
    ],
)
def test_numbers_out_of_range(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_steps_that_are_no_integers() -> None:
    with pytest.raises(TypeError, match="expected every to be a number of steps"):
        made(every=0.5)


def test_a_model_without_sparse_layers() -> None:
    model, _ = network("linear")
    with pytest.raises(ValueError, match="expected a model with sparse or masked layers"):
        sp.Rewire(model, adam(model))


def test_an_optimizer_of_something_else() -> None:
    model, dense = sparse("linear"), network("linear")[0]
    with pytest.raises(ValueError, match=r"got one without 2 of 2, such as '0\.weight'"):
        sp.Rewire(model, adam(dense))
    with pytest.raises(TypeError, match="expected an optimizer of torch"):
        sp.Rewire(model, [3])  # type: ignore[list-item]


def test_a_copy_of_something_else() -> None:
    model, other = sparse("linear"), sparse("blocks")
    with pytest.raises(ValueError, match="expected copies with the layers and patterns of the model"):
        sp.Rewire(model, adam(model), copies=[other])


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_a_step_before_a_backward_pass(method: Any) -> None:
    model = sparse("linear")
    before = copy.deepcopy(model)
    rewire = sp.Rewire(model, adam(model), method, every=1)
    with pytest.raises(RuntimeError, match=r"expected a backward pass and a step of the optimizer before"):
        rewire.step()
    assert_same(model, before)
    assert rewire.state_dict()["steps"] == 0


def test_a_second_step_without_a_backward_pass() -> None:
    model = sparse("linear")
    optimizer = adam(model)
    rewire = sp.Rewire(model, optimizer, every=1)
    train(model, optimizer, rewire, "linear", range(1))
    before = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="expected a backward pass through the sparse layers"):
        rewire.step()
    assert_same(model, before)


def test_rules_that_give_something_else() -> None:
    for rule, error, message in (
        (lambda w, c, p: w, TypeError, "expected method to give two tensors"),
        (lambda w, c, p: (w, c.gradient), ValueError, "expected method to give 190 numbers for '0.weight'"),
        (lambda w, c, p: (w[:, 0] * math.nan, c.gradient), ValueError, "expected method to give finite"),
    ):
        model = sparse("linear")
        before, optimizer = masks_of(model), adam(model)
        with pytest.raises(error, match=message):
            train(model, optimizer, sp.Rewire(model, optimizer, rule, every=1), "linear", range(1))
        assert all(torch.equal(mask, before[name]) for name, mask in masks_of(model).items())


def test_states_of_something_else() -> None:
    rewire = made(every=3)
    before = rewire.state_dict()
    for state, message in (
        ({}, "expected what state_dict"),
        ({**before, "method": "set"}, "expected the state of method 'rigl', got that of 'set'"),
        ({**before, "layers": {}}, "expected the layers of this model"),
        ({**before, "fraction": 3.0}, "expected 0 < fraction < 1"),
    ):
        with pytest.raises(ValueError, match=message):
            rewire.load_state_dict(state)
        assert rewire.state_dict() == before


# ---- any shape ---------------------------------------------------------------------------------------------


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
