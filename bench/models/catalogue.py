"""All models that are tried, library by library."""

from __future__ import annotations

from bench.models import of_timm, of_torch, of_torchvision, of_transformers
from bench.models.model import Model

MODELS: list[Model] = [*of_transformers.MODELS, *of_timm.MODELS, *of_torchvision.MODELS, *of_torch.MODELS]
