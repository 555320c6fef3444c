"""Tiny networks of ``transformers``, at their own initialisations, and what they are trained on.

They need the package ``transformers``; nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDTH, LAYERS, HEADS = 32, 2, 4
KEYS, VALUES, PAIRS = 8, 8, 6
SAMPLES, TEST_SAMPLES = 8_000, 1_000
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * WIDTH,
}


class Classifier(nn.Module):
    """A body of ``transformers`` with a linear head on one of its positions.

    Attributes:
        argument: name of the body's input; token ids where it is "input_ids".
        position: that of the hidden state that the head reads.
    """

    def __init__(self, body: nn.Module, argument: str, position: int, classes: int) -> None:
        super().__init__()
        self.body, self.argument, self.position = body, argument, position
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        # Steps are timed on a ramp from -1 to 1.
        x = x.abs().long() if self.argument == "input_ids" else x
        hidden = self.body(**{self.argument: x}).last_hidden_state
        return self.head(hidden[:, self.position])


def llama() -> nn.Module:
    """A Llama that answers at the last token."""
    given = {**SIZES, "vocab_size": KEYS * VALUES + KEYS}
    return Classifier(_body("Llama", given), "input_ids", -1, VALUES)


def vit() -> nn.Module:
    """A vision transformer for 8 x 8 grey images in 16 patches."""
    given = {**SIZES, "image_size": 8, "patch_size": 2, "num_channels": 1}
    return Classifier(_body("ViT", given), "pixel_values", 0, 10)


def _body(kind: str, given: dict[str, Any]) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**given)
    more = {} if kind == "Llama" else {"add_pooling_layer": False}
    body: nn.Module = getattr(transformers, f"{kind}Model")(config, **more)
    return body


def recall() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Associative recall: tokens that are pairs of a key and a value, then a key; the answer is its value.

    No position tells the answer: it takes attention, and so queries and keys.

    Returns:
        (x, y, x_test, y_test): tokens (samples, PAIRS + 1) and labels 0 to VALUES - 1.
    """
    generator = torch.Generator().manual_seed(0)
    samples = SAMPLES + TEST_SAMPLES
    keys = torch.rand(samples, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    values = torch.randint(VALUES, (samples, PAIRS), generator=generator)
    asked = torch.randint(PAIRS, (samples, 1), generator=generator)
    question = KEYS * VALUES + keys.gather(1, asked)
    x = torch.cat([keys * VALUES + values, question], 1).float()
    y = values.gather(1, asked)[:, 0]
    return x[:SAMPLES], y[:SAMPLES], x[SAMPLES:], y[SAMPLES:]
