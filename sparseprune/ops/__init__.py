"""Typed access to ``torch.ops.sparseprune``: wrapper, shapes (fake kernel) and gradient, a file a family."""

from typing import Any

from sparseprune.ops import batch_norm, convolution, library
from sparseprune.ops.batch_norm import batch_norm_act, batch_norm_act_backward, batch_norm_act_eval
from sparseprune.ops.convolution import (
    ConvPattern,
    Geometry,
    conv2d,
    conv2d_act,
    conv2d_backward,
    conv2d_sddmm,
    conv2d_t,
    conv_pattern,
)
from sparseprune.ops.library import forget_with, has_kernels, info, replaced_library
from sparseprune.ops.products import Pattern, linear, plans, sddmm, spmm, spmm_backward, spmm_t
from sparseprune.ops.topk import topk_masks, topk_outside


def __getattr__(name: str) -> Any:
    # The compiled module behind the operators, or None; another after jit.load().
    if name == "extension":
        return library.extension
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
