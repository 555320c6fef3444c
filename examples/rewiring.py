"""A sparse network that rewires itself in a plain training loop; stopped halfway, saved, and resumed.

python examples/rewiring.py

Ten of 784 inputs say the label. The network is not told which, and starts with random connections.
"""

import tempfile
from typing import Any

import torch
from torch import nn

import sparseprune as sp

STEPS = 300


def start() -> tuple[Any, torch.optim.Optimizer, sp.Rewire]:
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    masks = sp.prune(model, method="random", sparsity=0.95, scope="erk")
    model = sp.sparsify(model, masks, layers="sparse")  # without it layers are timed, which may end otherwise
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    return model, optimizer, sp.Rewire(model, optimizer, "rigl", every=10, until=3 * STEPS // 4)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rewire: sp.Rewire, steps: range) -> None:
    for step in steps:
        x = torch.randn(64, 784, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x[:, :10].argmax(1)).backward()
        optimizer.step()
        rewire.step()


def main() -> None:
    model, optimizer, rewire = start()
    before = model[0].mask
    with tempfile.TemporaryDirectory() as folder:
        train(model, optimizer, rewire, range(STEPS // 2))
        sp.save(model, f"{folder}/half.safetensors", optimizer, rewire=rewire.state_dict())
        train(model, optimizer, rewire, range(STEPS // 2, STEPS))
        # As a new process would.
        resumed, optimizer, rewire = start()
        facts = sp.load(f"{folder}/half.safetensors", resumed, optimizer)
    rewire.load_state_dict(facts["rewire"])
    train(resumed, optimizer, rewire, range(STEPS // 2, STEPS))
    states = zip(model.state_dict().values(), resumed.state_dict().values(), strict=True)
    same = all(torch.equal(one, other) for one, other in states)
    kept, its, then = (int(mask.sum()) for mask in (before, before[:, :10], model[0].mask[:, :10]))
    print(f"{kept:,} weights in the first layer; of the ten inputs that matter {its}, then {then};")
    print(f"resumed halfway, the same network: {same}")


if __name__ == "__main__":
    main()
