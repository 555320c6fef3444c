"""The k largest of many scores: wrapper and fake kernel of the operator."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def topk_masks(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Exactly ``k`` True over all masks together: the ``k`` largest scores, ties to the earlier position."""
    return torch.ops.sparseprune.topk_masks.default(list(scores), k)


def _fake_topk_masks(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    return [torch.empty_like(s, dtype=torch.bool, memory_format=torch.contiguous_format) for s in scores]


FAKES: dict[str, Callable[..., Any]] = {"topk_masks": _fake_topk_masks}
