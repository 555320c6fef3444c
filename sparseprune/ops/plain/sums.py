"""In which precision plain torch adds up."""

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """bfloat16 and float16 as float32: sums are made in that and rounded once."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
