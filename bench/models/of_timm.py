"""Models of timm, as ``create_model`` makes them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from bench.models.libraries import load
from bench.models.model import CLASSES, Model, images


def _model(name: str, size: int = 32, **config: Any) -> Model:
    def make() -> nn.Module:
        model: nn.Module = load("timm").create_model(name, pretrained=False, num_classes=CLASSES, **config)
        return model

    return Model(f"timm/{name}", make, images(4, size), F.cross_entropy)


def mixer() -> nn.Module:
    """Narrower than create_model lets it be."""
    model: nn.Module = load("timm.models").MlpMixer(
        num_classes=CLASSES, img_size=32, patch_size=8, num_blocks=2, embed_dim=48
    )
    return model


MODELS = [
    _model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2),
    _model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(1, 2),
    ),
    Model("timm/MlpMixer", mixer, images(), F.cross_entropy),
    _model("convnext_atto", depths=(1, 1, 1, 1), dims=(16, 32, 48, 64)),
    _model("resnet18", channels=(16, 32, 48, 64)),
    _model("nf_resnet26", channels=(32, 64, 96, 128), depths=(1, 1, 1, 1)),
    _model("tf_efficientnet_lite0"),
]
