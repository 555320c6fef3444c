"""Scores and masks of a data-parallel job: every process scores its own batches, and all get the same masks.

Every rank must call what is called on one, as with all of torch.distributed.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

T = TypeVar("T")


def several_ranks() -> bool:
    """Whether this process is one of several of torch.distributed."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Add up contiguous tensors over all ranks, in place."""
    if several_ranks():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def same_on_all_ranks(masks: Mapping[str, Tensor]) -> None:
    """Overwrite bool masks by those of rank 0: the same bits everywhere, whatever the ranks' weights are."""
    if several_ranks():
        for mask in masks.values():
            bits = mask.to(torch.uint8).contiguous()
            torch.distributed.broadcast(bits, src=0)
            mask.copy_(bits)


def of_rank_0(value: T) -> T:
    """What rank 0 has in its place; anything that can be pickled."""
    if several_ranks():
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        (value,) = values
    return value
