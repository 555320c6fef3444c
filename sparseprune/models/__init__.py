"""Small models for the demos and tests, as plain torch modules, and a registry by name."""

from sparseprune.models.mlp import (
    MODELS,
    article_mlp,
    build,
    layer_sizes,
    lenet_300_100,
    mlp,
    small_dense,
    weight_count,
    wide_mlp,
)

__all__ = [
    "MODELS",
    "article_mlp",
    "build",
    "layer_sizes",
    "lenet_300_100",
    "mlp",
    "small_dense",
    "weight_count",
    "wide_mlp",
]
