"""Typed access to ``torch.ops.sparseprune``: wrapper, shapes (fake kernel) and gradient, a file a family."""

from __future__ import annotations

from typing import Any

from sparseprune.ops import batch_norm as batch_norm
from sparseprune.ops import convolution as convolution
from sparseprune.ops import library as library
from sparseprune.ops.batch_norm import batch_norm_act as batch_norm_act
from sparseprune.ops.batch_norm import batch_norm_act_backward as batch_norm_act_backward
from sparseprune.ops.batch_norm import batch_norm_act_eval as batch_norm_act_eval
from sparseprune.ops.convolution import ConvPattern as ConvPattern
from sparseprune.ops.convolution import Geometry as Geometry
from sparseprune.ops.convolution import conv2d as conv2d
from sparseprune.ops.convolution import conv2d_backward as conv2d_backward
from sparseprune.ops.convolution import conv2d_sddmm as conv2d_sddmm
from sparseprune.ops.convolution import conv2d_t as conv2d_t
from sparseprune.ops.convolution import conv_pattern as conv_pattern
from sparseprune.ops.library import has_kernels as has_kernels
from sparseprune.ops.library import info as info
from sparseprune.ops.library import replaced_library as replaced_library
from sparseprune.ops.products import Pattern as Pattern
from sparseprune.ops.products import linear as linear
from sparseprune.ops.products import plans as plans
from sparseprune.ops.products import sddmm as sddmm
from sparseprune.ops.products import spmm as spmm
from sparseprune.ops.products import spmm_backward as spmm_backward
from sparseprune.ops.products import spmm_t as spmm_t
from sparseprune.ops.topk import topk_masks as topk_masks


def __getattr__(name: str) -> Any:
    if name == "extension":  # the compiled module behind the operators, or None; another after jit.load()
        return library.extension
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
