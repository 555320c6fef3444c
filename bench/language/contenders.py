"""The language models that are compared, untrained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparseprune as sp
from bench.language.gpt import GPT
from sparseprune.experiments.models import seeded

Batches = Sequence[tuple[Tensor, Tensor]]
PRECISIONS = ("float32", "bfloat16")
HEAD = "head.weight"  # it gives the logits of some ninety characters; never pruned


@dataclass(frozen=True)
class Contender:
    """A language model that can be made from any seed.

    Attributes:
        name: name in tables.
        kind: "dense", "small dense" or "sparse".
        width: features of a token.
        method, sparsity, scope, block_rows: how the matrices of its blocks are pruned; None in dense ones.
        precision: "float32" or "bfloat16", by autocast; None for the one in which its step is faster.
    """

    name: str
    kind: str
    width: int
    precision: str | None = None
    method: str | None = None
    sparsity: float = 0.0
    scope: str = "layer"
    block_rows: int = 1

    def make(self, characters: int, layers: int, scored: Batches, seed: int) -> nn.Module:
        """The untrained model, pruned if it is sparse.

        Weights that stay are scaled to the norm that all had, layer by layer: a layer's outputs are then as
        large as a dense one's.

        Args:
            characters: number of characters.
            layers: number of blocks.
            scored: batches for methods that look at data: characters (batch, length), and those that follow.
            seed: seed of the initial weights and of random masks.
        """
        length = scored[0][0].shape[1]
        with seeded(seed):
            model = GPT(characters, self.width, layers, length)
        if self.method is None:
            return model
        masks = sp.prune(
            model,
            scored,
            method=self.method,
            sparsity=self.sparsity,
            scope=self.scope,
            block=(self.block_rows, 1),
            loss=cross_entropy,
            exclude=[HEAD],
            seed=seed,
            min_per_layer=1,
        )
        sp.rescale_weights(model, masks)
        return sp.sparsify(model, masks, layers="sparse")


def cross_entropy(logits: Tensor, following: Tensor) -> Tensor:
    """Mean cross-entropy in nats a character, of logits (batch, length, characters)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), following.flatten())


def contenders(width: int = 384) -> list[Contender]:
    """What is compared: the model of a width, narrower ones, and sparse ones of that width and of twice."""
    narrower = [width // 3, width // 2, 2 * width // 3]
    return [
        Contender("dense", "dense", width),
        Contender("dense, float32", "dense", width, "float32"),
        *(Contender(f"small dense, width {narrow}", "small dense", narrow) for narrow in narrower),
        Contender("random 80 %", "sparse", width, method="random", sparsity=0.8),
        Contender("random 90 %", "sparse", width, method="random", sparsity=0.9),
        Contender("random 90 % 4x1", "sparse", width, method="random", sparsity=0.9, block_rows=4),
        Contender("SNIP 90 %", "sparse", width, method="snip", sparsity=0.9),
        Contender("random 95 %, twice as wide", "sparse", 2 * width, method="random", sparsity=0.95),
    ]


def autocast(precision: str) -> torch.autocast:
    """Within it products are made in this precision, one of `PRECISIONS`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
