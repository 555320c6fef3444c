"""The file that ``prune --out`` writes and ``train --masks`` reads: masks, and the network they belong to."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sparseprune.experiments.models import Network

KEYS = {"masks", "network", "seed", "method", "sparsity", "block"}


def save(
    path: Path,
    masks: Mapping[str, Tensor],
    *,
    network: Network,
    seed: int,
    method: str,
    sparsity: float,
    block: tuple[int, int] | Literal["auto"],
) -> None:
    """Write a mask file; its folder is made if need be.

    Args:
        path: file to write.
        masks: bool tensors by parameter name, True = keep.
        network: the network that was pruned.
        seed: seed of its initial weights.
        method: how the masks were made.
        sparsity: fraction of the weights that they remove.
        block: rows and columns that were kept or removed together; "auto" if each layer has its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "masks": dict(masks),
        "network": network.to_dict(),
        "seed": seed,
        "method": method,
        "sparsity": sparsity,
        "block": block,
    }
    torch.save(content, path)


def load(path: Path, network: Network, seed: int) -> dict[str, Any]:
    """Read a mask file for a network that is to be trained.

    Args:
        path: file to read.
        network: the network to be trained.
        seed: seed of its initial weights.
    Returns:
        what `save` was given: "masks", "network" (its fields), "seed", "method", "sparsity" and "block".
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
    wanted = network.to_dict()
    if content["network"] != wanted or content["seed"] != seed:
        raise ValueError(
            f"--masks: {path} was made for {_text(content['network'])} with seed {content['seed']}, "
            f"but the network to train is {_text(wanted)} with seed {seed}; "
            "give the same --model, --model-args, --data and --seed"
        )
    return content


def _text(network: Mapping[str, Any]) -> str:
    sample = "x".join(map(str, network["sample"]))
    args = f" with {json.dumps(network['args'])}" if network.get("args") else ""
    return f"{network['name']}{args} of {sample} inputs and {network['classes']} classes"
