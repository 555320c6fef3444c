"""A small GPT, as nanoGPT has it: pre-norm blocks of causal attention and a perceptron, without biases."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_WIDTH = 64  # features of an attention head, at most
# Standard deviation of initial weights, GPT-2's, at this width; in proportion to 1 / sqrt(width) at others.
INITIAL, INITIAL_WIDTH = 0.02, 384


class GPT(nn.Module):
    """Characters (batch, length) -> logits of the next one (batch, length, characters).

    Args:
        characters: number of characters.
        width: features of a token; there are as many heads as HEAD_WIDTH goes into it, or more to divide it.
        layers: number of blocks.
        context: longest length.
    """

    def __init__(self, characters: int, width: int = 384, layers: int = 6, context: int = 256) -> None:
        super().__init__()
        self.token = nn.Embedding(characters, width)
        self.position = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters, bias=False)
        self._initialise(layers)

    def forward(self, text: Tensor) -> Tensor:
        x = self.token(text) + self.position[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def _initialise(self, layers: int) -> None:
        """GPT-2's: normal, and smaller by sqrt(2 layers) where a branch joins the residual stream."""
        deviation = INITIAL * math.sqrt(INITIAL_WIDTH / self.norm.normalized_shape[0])
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                joins = name.endswith("out.weight")
                nn.init.normal_(weight, std=deviation / math.sqrt(2 * layers) if joins else deviation)


class Block(nn.Module):
    """A block of a transformer: x + attention(norm(x)), then x + perceptron(norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Attention(nn.Module):
    """Causal attention of several heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = next(n for n in range(math.ceil(width / HEAD_WIDTH), width + 1) if width % n == 0)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """A perceptron with four times as many hidden features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.hidden(x)))
