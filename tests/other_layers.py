"""Layers like those of other libraries, which need not be installed."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.libraries import name_operators_of_torchvision as name_operators_of_torchvision


class Conv1D(nn.Module):
    """As transformers has it: a linear layer with the weight (in_features, out_features)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) / nx**0.5)
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)


class Experts(nn.Module):
    """As transformers' Mixtral has them: all experts' weights in one tensor; each sample has its expert."""

    def __init__(self, experts: int, hidden: int, features: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(experts, hidden, features))
        self.down = nn.Parameter(torch.randn(experts, features, hidden))
        self.scale = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.up))
        hidden = [F.linear(part, up).relu() for part, up in zip(parts, self.up, strict=True)]
        return self.scale * torch.cat([F.linear(h, down) for h, down in zip(hidden, self.down, strict=True)])


for _kind in (Conv1D, Experts):
    _kind.__module__ = "transformers.somewhere"
