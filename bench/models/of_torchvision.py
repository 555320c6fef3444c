"""Models of torchvision: classification, segmentation, video."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.libraries import load
from bench.models.model import CLASSES, Model, images, labels, numbers
from sparseprune.scores.losses import Loss

REGIONS = 5


def _models() -> Any:
    return load("torchvision.models")


def _model(
    name: str, make: Callable[[], nn.Module], batch: Any = None, loss: Loss = F.cross_entropy
) -> Model:
    return Model(f"torchvision/{name}", make, images() if batch is None else batch, loss)


def _named(name: str, size: int = 32, **config: Any) -> Model:
    return _model(name, lambda: getattr(_models(), name)(num_classes=CLASSES, **config), images(4, size))


def vgg() -> nn.Module:
    """A narrow VGG with one linear layer in place of its three, which have 119 million weights."""
    module = load("torchvision.models.vgg")
    features = module.make_layers([16, "M", 32, "M", 48, 48, "M", 64, 64, "M"], batch_norm=True)
    model: Any = module.VGG(features, num_classes=CLASSES, init_weights=False)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(64, CLASSES)
    return model


def convnext() -> nn.Module:
    block = load("torchvision.models.convnext").CNBlockConfig
    settings = [block(16, 32, 1), block(32, 48, 1), block(48, None, 1)]
    model: nn.Module = _models().ConvNeXt(settings, num_classes=CLASSES)
    return model


def swin() -> nn.Module:
    model: nn.Module = _models().SwinTransformer(
        patch_size=[4, 4],
        embed_dim=16,
        depths=[2, 2],
        num_heads=[1, 2],
        window_size=[4, 4],
        num_classes=CLASSES,
    )
    return model


def vit() -> nn.Module:
    model: nn.Module = _models().VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=CLASSES
    )
    return model


def densenet() -> nn.Module:
    model: nn.Module = _models().DenseNet(8, (2, 2, 2, 2), 16, num_classes=CLASSES)
    return model


def video_resnet() -> nn.Module:
    video = load("torchvision.models.video.resnet")
    convolutions = [video.Conv3DSimple, *3 * [video.Conv3DNoTemporal]]
    model: nn.Module = video.VideoResNet(video.BasicBlock, convolutions, [1] * 4, video.BasicStem, CLASSES)
    return model


def of_googlenet(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Three heads while training, one afterwards."""
    found = model(batch[0])
    if isinstance(found, Tensor):
        return F.cross_entropy(found, batch[1])
    weighted = zip((1.0, 0.3, 0.3), found, strict=True)
    return torch.stack([weight * F.cross_entropy(y, batch[1]) for weight, y in weighted]).sum()


def of_segmentation(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0])["out"], batch[1])


_regions = (images(2, 64)[0], labels(2 * 64 * 64, REGIONS).view(2, 64, 64))

MODELS = [
    _named("resnet18"),
    _model("VGG", vgg),
    _named("squeezenet1_1"),
    _model("DenseNet", densenet),
    _model(
        "googlenet",
        lambda: _models().googlenet(num_classes=CLASSES, init_weights=False),
        images(4, 64),
        of_googlenet,
    ),
    _named("mobilenet_v2", width_mult=0.35),
    _model("ConvNeXt", convnext),
    _model("SwinTransformer", swin),
    _model("VisionTransformer", vit),
    _model(
        "lraspp_mobilenet_v3_large",
        lambda: _models().segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=REGIONS
        ),
        _regions,
        of_segmentation,
    ),
    _model("VideoResNet", video_resnet, (numbers(2, 3, 4, 32, 32), labels(2))),
]
