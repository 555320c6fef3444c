"""``Rewire`` in training loops: accumulation, scaling, autocast, fused and compiled layers."""

import gc
import math

import pytest
import torch
from moving_networks import KINDS, adam, masks_of, sample, sparse, train
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import sparseprune as sp

# Of torch's own layers: "same" padding of even kernels, which is more on one side.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


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
