"""The file that ``prune --out`` writes and ``train --masks`` reads: masks, and the network they belong to."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KEYS = {"masks", "sizes", "seed", "method", "sparsity", "block"}


def save(
    path: Path,
    masks: Mapping[str, Tensor],
    *,
    sizes: Sequence[int],
    seed: int,
    method: str,
    sparsity: float,
    block: tuple[int, int],
) -> None:
    """Write a mask file; its folder is made if need be.

    Args:
        path: where to.
        masks: bool tensors by parameter name, True = keep.
        sizes: layer sizes of the network that was pruned.
        seed: of its initial weights.
        method: how the masks were made.
        sparsity: fraction of the weights that they remove.
        block: rows and columns that were kept or removed together.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "masks": dict(masks),
        "sizes": list(sizes),
        "seed": seed,
        "method": method,
        "sparsity": sparsity,
        "block": block,
    }
    torch.save(content, path)


def load(path: Path, sizes: Sequence[int], seed: int) -> dict[str, Any]:
    """Read a mask file for a network that is to be trained.

    Args:
        path: the file.
        sizes: layer sizes of the network.
        seed: of its initial weights.
    Returns:
        what `save` was given: "masks", "sizes", "seed", "method", "sparsity" and "block".
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no mask file, or its masks were made for another network or other initial weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--masks: there is no file {path}; make it with `sparseprune prune --out`")
    try:
        content = torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"--masks: expected a file that `sparseprune prune --out` wrote, got {path}"
        ) from error
    if not isinstance(content, dict) or content.keys() != KEYS:
        raise ValueError(f"--masks: expected a file that `sparseprune prune --out` wrote, got {path}")
    if content["sizes"] != list(sizes) or content["seed"] != seed:
        raise ValueError(
            f"--masks: {path} was made for layers {content['sizes']} with seed {content['seed']}, "
            f"but the network to train has layers {list(sizes)} with seed {seed}; "
            "give the same --model, --data and --seed"
        )
    return content
