"""Small networks, masks for them, and the dense networks that compute the same."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import sparseprune as sp


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.blocks = nn.ModuleList([nn.Linear(6, 6, bias=False) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.inner(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return x


def network() -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(conv, nn.Flatten(), nn.Linear(4 * 25, 6), Residual(), nn.Linear(6, 3))


WEIGHTS = ["0.0.weight", "2.weight", "3.inner.0.weight", "3.blocks.0.weight", "3.blocks.1.weight", "4.weight"]


def masks_of(
    model: nn.Module, density: float = 0.3, only: Callable[[str], bool] | None = None
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(p.shape, generator=generator) < density
        for name, p in model.named_parameters()
        if p.dim() > 1 and (only is None or only(name))
    }


def masked(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """The reference: a dense copy with zeros in place."""
    model = copy.deepcopy(model)
    sp.apply_masks(model, masks)
    return model


def layer_of(model: nn.Module, weight: str) -> nn.Module:
    return model.get_submodule(weight.rpartition(".")[0])


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def check_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
