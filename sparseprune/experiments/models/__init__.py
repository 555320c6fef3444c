"""The networks of pruning papers and the user's own, as plain torch modules, and a registry by name."""

from sparseprune.experiments.models.lenet import lenet5_caffe
from sparseprune.experiments.models.mlp import article_mlp, lenet_300_100, mlp, wide_mlp
from sparseprune.experiments.models.registry import (
    MODELS,
    Network,
    build,
    check,
    narrowed,
    outline,
    seeded,
    small_dense,
    weight_count,
)
from sparseprune.experiments.models.resnet import resnet, resnet8, resnet18, resnet20, resnet32, resnet50
from sparseprune.experiments.models.small_conv import small_conv
from sparseprune.experiments.models.vgg import vgg16_bn, vgg_like
from sparseprune.experiments.models.wide_resnet import wrn, wrn_16_4, wrn_16_8, wrn_22_8

__all__ = [
    "MODELS",
    "Network",
    "article_mlp",
    "build",
    "check",
    "lenet5_caffe",
    "lenet_300_100",
    "mlp",
    "narrowed",
    "outline",
    "resnet",
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet50",
    "seeded",
    "small_conv",
    "small_dense",
    "vgg16_bn",
    "vgg_like",
    "weight_count",
    "wide_mlp",
    "wrn",
    "wrn_16_4",
    "wrn_16_8",
    "wrn_22_8",
]
