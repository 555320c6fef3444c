"""Small networks with masks, and their batches."""

import torch
from torch import Tensor, nn

import sparseprune as sp

KINDS = ("linear", "conv", "blocks", "conv1d")


def network(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, dict[str, Tensor]]:
    """A dense network and masks of its two hidden layers; those of "blocks" are made of 4 x 1 blocks."""
    torch.manual_seed(0)
    if kind == "conv":
        model = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding="same"),
            nn.Tanh(),
            nn.Conv2d(12, 8, 3, stride=2, groups=2, bias=False),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(72, 5),
        )
    elif kind == "conv1d":
        model = nn.Sequential(nn.Conv1d(3, 12, 4, padding="same"), nn.Tanh(), nn.Flatten(), nn.Linear(96, 5))
    else:
        model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 5))
    model = model.to(dtype)
    block_rows = 4 if kind == "blocks" else 1
    generator = torch.Generator().manual_seed(1)
    masks = {}
    for name, weight in list(model.named_parameters()):
        if weight.dim() > 1 and len(weight) != 5:
            blocks = torch.rand(len(weight) // block_rows, weight[0].numel(), generator=generator) < 0.3
            masks[name] = blocks.repeat_interleave(block_rows, 0).view_as(weight)
    return model, masks


def sample(
    kind: str, seed: int, dtype: torch.dtype = torch.float64, samples: int = 16
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = {"conv": (3, 8, 8), "conv1d": (3, 8)}.get(kind, (20,))
    x = torch.randn(samples, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(5, (samples,), generator=generator)


def sparse(kind: str, layers: str = "sparse", dtype: torch.dtype = torch.float64) -> nn.Module:
    model, masks = network(kind, dtype)
    return sp.sparsify(model, masks, layers=layers)  # type: ignore[arg-type]


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, rewire: sp.Rewire, kind: str, steps: range
) -> None:
    dtype = next(model.parameters()).dtype
    for step in steps:
        x, y = sample(kind, step, dtype)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x).double(), y).backward()
        optimizer.step()
        rewire.step()


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: m.mask.clone() for name, m in model.named_modules() if hasattr(m, "mask")}


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, p), (_, q) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(p, q), name
