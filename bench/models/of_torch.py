"""Torch's own layers, and the networks of this project."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.model import CLASSES, VOCABULARY, Model, images, numbers, of_all_inputs, tokens
from sparseprune.experiments.models.registry import MODELS as OWN

WIDTH, LENGTH = 32, 12


class Recurrent(nn.Module):
    """Tokens (N, L) to classes (N, 10), by the last state of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(self.embedding(x))[0][:, -1])
        return y


class Attending(nn.Module):
    """Tokens (N, L) to classes (N, 10), by one attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        y: Tensor = self.head((x + self.attention(x, x, x)[0]).mean(1))
        return y


class Encoder(nn.Module):
    """Tokens (N, L) to classes (N, 10), by a stack of encoder layers; token 2 stands for padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.encoder(self.embedding(x), src_key_padding_mask=x == 2)
        y = self.head(y.mean(1))
        return y


class Translator(nn.Module):
    """Two texts of tokens (N, L) to the next tokens of the second, (N, L, 60)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.transformer = nn.Transformer(WIDTH, 4, 1, 2, 2 * WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1]).to(self.head.weight)
        y = self.transformer(self.embedding(source), self.embedding(target), tgt_mask=causal)
        y = self.head(y)
        return y


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True)


def _classifier(name: str, make: Callable[[], nn.Module]) -> Model:
    return Model(f"torch/{name}", make, (tokens(8, LENGTH), torch.arange(8)), F.cross_entropy)


def _own(name: str, size: int, channels: int) -> Model:
    def make() -> nn.Module:
        return OWN[name]((channels, size, size), CLASSES, 1.0)

    return Model(f"sparseprune/{name}", make, images(4, size, channels), F.cross_entropy)


MODELS = [
    _classifier("LSTM", Recurrent),
    _classifier("MultiheadAttention", Attending),
    Model(
        "torch/TransformerEncoderLayer",
        encoder_layer,
        (numbers(4, LENGTH, WIDTH), numbers(4, LENGTH, WIDTH, seed=1)),
        F.mse_loss,
    ),
    _classifier("TransformerEncoder", Encoder),
    Model(
        "torch/Transformer",
        Translator,
        (tokens(4, LENGTH), tokens(4, LENGTH, seed=1), tokens(4, LENGTH, seed=2)),
        of_all_inputs,
    ),
    _own("lenet_300_100", 28, 1),
    _own("lenet5_caffe", 28, 1),
    _own("small_conv", 28, 1),
    _own("resnet8", 32, 3),
]
