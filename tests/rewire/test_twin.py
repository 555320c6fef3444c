"""Rewired layers, step by step beside a dense twin with masks: the same masks, weights and states."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from moving_networks import network, sample
from torch import nn
from twin import Twin

import sparseprune as sp

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
}
STEPS, EVERY, UNTIL = 1000, 10, 900

# Of torch's own layers: "same" padding of even kernels, which is more on one side.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize(("kind", "layers"), [("linear", "sparse"), ("conv", "sparse"), ("blocks", "dense")])
def test_a_thousand_steps_are_those_of_the_twin(kind: str, layers: str, method: str, optimizer: str) -> None:
    compare(kind, layers, method, optimizer, STEPS)


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize(
    ("kind", "layers"), [("blocks", "sparse"), ("conv1d", "sparse"), ("linear", "dense"), ("conv", "dense")]
)
def test_a_hundred_steps_are_those_of_the_twin(kind: str, layers: str, method: str) -> None:
    compare(kind, layers, method, "adam", 100)


def compare(kind: str, layers: Any, method: Any, optimizer: str, steps: int) -> None:
    model, masks = network(kind)
    made = sp.sparsify(model, masks, layers=layers, fuse=False)
    twin = Twin(model, masks, dict.fromkeys(masks, 4 if kind == "blocks" else 1))
    ours, theirs = OPTIMIZERS[optimizer](made.parameters()), OPTIMIZERS[optimizer](model.parameters())
    rewire = sp.Rewire(made, ours, method=method, every=EVERY, until=UNTIL)
    moved = 0
    for step in range(1, steps + 1):
        x, y = sample(kind, step % 50)
        for network_, its in ((made, ours), (twin, theirs)):
            its.zero_grad()
            nn.functional.cross_entropy(network_(x), y).backward()
            its.step()
        rewire.step()
        if step % EVERY == 0 and step < UNTIL:
            before = {name: mask.clone() for name, mask in twin.masks.items()}
            twin.move(theirs, method, step, UNTIL)
            moved += sum(int((mask & ~before[name]).sum()) for name, mask in twin.masks.items())
            assert_same(made, ours, twin, theirs)
    assert_same(made, ours, twin, theirs)
    # Something has moved at all, and more than once.
    assert moved > 2 * sum(int(mask.sum()) for mask in masks.values()) * (steps >= STEPS)
    assert moved > 0


def assert_same(made: Any, ours: Any, twin: Twin, theirs: Any) -> None:
    for name, mask in twin.masks.items():
        layer = made.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(layer.mask, mask)
        weight, own = twin.model.get_parameter(name), getattr(layer, "values", None)
        own = layer.weight if own is None else own
        pairs = [(layer.weight * mask if own is layer.weight else layer.weight, weight * mask)]
        for key, state in theirs.state[weight].items():
            if state.shape == weight.shape:
                found = ours.state[own][key]
                if found.shape != weight.shape:
                    dense = torch.zeros_like(weight).flatten(1)
                    blocks = dense.view(-1, layer.block[0], dense.shape[1])
                    rows = torch.repeat_interleave(
                        torch.arange(len(blocks)), layer.crow.long().diff(), output_size=len(layer.col)
                    )
                    blocks[rows, :, layer.col.long()] = found
                    found = dense.view_as(weight)
                pairs.append((found * mask, state * mask))
        for mine, expected in pairs:
            # Sums in another order, a thousand steps long.
            torch.testing.assert_close(mine.detach(), expected.detach(), rtol=1e-7, atol=1e-9)
