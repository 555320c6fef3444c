"""``Rewire`` and checkpoints, copies and averages."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from moving_networks import adam, assert_same, sample, sparse, train
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparseprune as sp

# Of torch's own layers: "same" padding of even kernels, which is more on one side.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


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
