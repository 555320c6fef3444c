"""Blocks of BERT, ViT and GPT-2 in plain torch, as a network that classifies sequences of vectors.

Without dropout, which would make answers random. ViT and GPT-2 normalise before each branch and get queries,
keys and values from one layer; BERT normalises after it, and has three layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_WIDTH = 64  # features of an attention head, at most


class Attention(nn.Module):
    """Self-attention of several heads.

    Args:
        width: features of a token.
        layers: layers that give queries, keys and values: three, or one for all.
        causal: whether a token sees those before it alone.
    """

    def __init__(self, width: int, layers: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = max(width // HEAD_WIDTH, 1), causal
        self.projections = nn.ModuleList(nn.Linear(width, 3 * width // layers) for _ in range(layers))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(x) for layer in self.projections]
        parts = parts[0].split(x.shape[-1], dim=-1) if len(parts) == 1 else parts
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """A perceptron with four times as many hidden features.

    Args:
        width: features of a token.
        approximate: GELU's: "none" or "tanh".
    """

    def __init__(self, width: int, approximate: str) -> None:
        super().__init__()
        self.approximate = approximate
        self.hidden = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.hidden(x), approximate=self.approximate))


class Block(nn.Module):
    """Attention and a perceptron, each added to what it gets and normalised: before it, or after the sum."""

    def __init__(self, width: int, *, norm_first: bool, layers: int, causal: bool, approximate: str) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = Attention(width, layers, causal)
        self.attention_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, approximate)
        self.mlp_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x))
            return x + self.mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x))
        return self.mlp_norm(x + self.mlp(x))


BLOCKS: dict[str, Callable[[int], Block]] = {
    "bert": functools.partial(Block, norm_first=False, layers=3, causal=False, approximate="none"),
    "vit": functools.partial(Block, norm_first=True, layers=1, causal=False, approximate="none"),
    "gpt2": functools.partial(Block, norm_first=True, layers=1, causal=True, approximate="tanh"),
}


class Transformer(nn.Module):
    """Vectors (batch, tokens, width) -> logits (batch, classes), of the mean over the tokens.

    Positions are learned, so that the first block computes the gradient of its input, as after an embedding.

    Args:
        model: a key of ``BLOCKS``.
        blocks: how many.
        tokens: vectors of a sequence.
        width: numbers of a vector.
        classes: number of classes.
    """

    def __init__(self, model: str, blocks: int, tokens: int, width: int, classes: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(tokens, width))
        self.blocks = nn.Sequential(*(BLOCKS[model](width) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x + self.position).mean(1))
