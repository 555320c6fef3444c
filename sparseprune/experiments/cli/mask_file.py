"""The file that ``prune --out`` writes, ``train --masks`` and ``show`` read: masks, and their network.

Safetensors: a bool tensor by parameter name, and as metadata, in JSON, "network", "seed", "method",
"sparsity" and "block". Files of torch.save, as they were written before, are read too; neither can run code.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from sparseprune.experiments import models
from sparseprune.experiments.models import Network
from sparseprune.experiments.networks import Block
from sparseprune.format import files
from sparseprune.format.bsr import BLOCK_ROWS
from sparseprune.scores import prunable

FACTS = ("network", "seed", "method", "sparsity", "block")
ZIP = b"PK\x03\x04"  # what files of torch.save begin with
REMEDY = "make it anew with `sparseprune prune --out`"


def save(
    path: Path,
    masks: Mapping[str, Tensor],
    *,
    network: Network,
    seed: int,
    method: str,
    sparsity: float,
    block: Block,
) -> None:
    """Write a mask file; its folder is made if need be.

    Args:
        path: file to write.
        masks: bool tensors by parameter name, True = keep.
        network: the network that was pruned.
        seed: seed of its initial weights.
        method: how the masks were made.
        sparsity: fraction of the weights that they remove.
        block: rows and columns that were kept or removed together; "auto" if each layer has its own,
            "channel" if they were whole rows.
    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    facts = zip(FACTS, (network.to_dict(), seed, method, sparsity, block), strict=True)
    # Safetensors takes no views of one storage.
    own = {name: mask.clone(memory_format=torch.contiguous_format) for name, mask in masks.items()}
    files.write(path, safetensors.torch.save(own, {name: json.dumps(fact) for name, fact in facts}))


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
        ValueError: it is no mask file, or damaged, or its masks were made for another network or other
            initial weights.
    """
    content = _content(path, "--masks")
    wanted = json.loads(json.dumps(network.to_dict()))
    if content["network"] != wanted or content["seed"] != seed:
        raise ValueError(
            f"--masks: {path} was made for {_text(content['network'])} with seed {content['seed']}, "
            f"but the network to train is {_text(wanted)} with seed {seed}; "
            "give the same --model, --model-args, --data and --seed"
        )
    shapes = {name: weight.shape for name, weight in prunable(models.outline(network)).items()}
    _check_masks(path, content["masks"], shapes, "--masks")
    return content


def read(path: Path, own: str | None = None) -> dict[str, Any]:
    """Read a mask file for whatever network it says.

    Args:
        path: file to read.
        own: the function ``package.module:function`` that the user allows to be called, if the file's network
            is made by it: a file must not choose what code runs.
    Returns:
        what `save` was given, with the masks in the order of the layers. "network" is a `Network`, or None if
        it is made by a function that is not ``own``, and the masks are then checked by themselves. Besides
        "sample", the shape of its samples, and "text", which says what network it is.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no mask file, or damaged, or its masks are not those of its network.
    """
    content = _content(path, "show")
    fields = content["network"]
    content["network"] = None
    if fields["name"] in models.MODELS or fields["name"] == own:
        try:
            content["network"] = Network(**{**fields, "sample": tuple(fields["sample"])})
            outline = models.outline(content["network"])
        # Files may hold any numbers.
        except (ValueError, RuntimeError, TypeError, OverflowError, MemoryError) as error:
            raise ValueError(f"show: cannot make the network of {path}: {_text(fields)} ({error})") from error
        shapes = {name: weight.shape for name, weight in prunable(outline).items()}
    elif ":" in fields["name"]:
        # As people count: 2.weight before 10.weight.
        names = sorted(content["masks"], key=_counted)
        shapes = {name: content["masks"][name].shape for name in names}
    else:
        raise ValueError(f"show: {path} is of an unknown network: {_text(fields)}; {REMEDY}")
    _check_masks(path, content["masks"], shapes, "show")
    content["masks"] = {name: content["masks"][name] for name in shapes}
    return {**content, "sample": tuple(fields["sample"]), "text": _text(fields)}


def _counted(name: str) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _content(path: Path, asked: str) -> dict[str, Any]:
    """What is in a file; one line that begins with who asked where there is none, or another."""
    if not path.is_file():
        raise FileNotFoundError(f"{asked}: there is no file {path}; make it with `sparseprune prune --out`")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(path)
    # What is damaged may make safetensors, torch and json raise anything.
    except Exception as error:
        raise ValueError(
            f"{asked}: expected a file that `sparseprune prune --out` wrote, got {path}, which is another or "
            f"damaged; {REMEDY}"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    """What is in a file; any exception where it is no mask file."""
    with path.open("rb") as stream:
        head = stream.read(len(ZIP))
    if head == ZIP:
        content = torch.load(path, map_location="cpu", weights_only=True)
        masks, facts = content["masks"], json.loads(json.dumps({name: content[name] for name in FACTS}))
    else:
        with safetensors.safe_open(path, framework="pt") as stored:
            masks = {name: _copied(stored.get_tensor(name)) for name in stored.keys()}  # noqa: SIM118
            facts = {name: json.loads(stored.metadata()[name]) for name in FACTS}
    network, block = facts["network"], facts["block"]
    fields = {"name": str, "sample": list, "classes": int, "width": float, "args": dict}
    right = (
        all(type(network[name]) is fields[name] for name in network)
        and network.keys() | {"args"} == fields.keys()
        and all(type(size) is int for size in network["sample"])
        and type(facts["seed"]) is int
        and type(facts["method"]) is str
        # They are printed.
        and (network["name"] + facts["method"]).isprintable()
        and type(facts["sparsity"]) is float
        and 0 <= facts["sparsity"] <= 1
        and (block in ("auto", "channel") or block in [[rows, 1] for rows in BLOCK_ROWS])
        and all(type(name) is str and type(mask) is Tensor for name, mask in masks.items())
    )
    if not right:
        raise ValueError(f"not as `save` was given it: {facts}")
    return {**facts, "masks": dict(masks), "block": block if isinstance(block, str) else tuple(block)}


def _copied(mask: Tensor) -> Tensor:
    """The same bytes, which no longer follow the file; what is not bool stays as it is, to be refused."""
    return mask.view(torch.uint8).clone().view(torch.bool) if mask.dtype == torch.bool else mask


def _check_masks(
    path: Path, masks: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], asked: str
) -> None:
    """Raise ValueError unless there is a mask of its shape, of 0 and 1, for each weight of a network."""
    for name in {**shapes, **masks}:
        wanted = f"a bool mask of shape {tuple(shapes[name])}" if name in shapes else "none"
        found = "none"
        if (mask := masks.get(name)) is not None:
            found = f"{str(mask.dtype).removeprefix('torch.')} of shape {tuple(mask.shape)}"
            if mask.layout == torch.strided and mask.dtype == torch.bool and mask.shape == shapes.get(name):
                mask = mask.contiguous()
                if mask.numel() == 0 or mask.view(torch.uint8).max() <= 1:
                    continue
                found = "other bytes than 0 and 1"
        raise ValueError(f"{asked}: expected {wanted} for {name!r} in {path}, got {found}; {REMEDY}")


def _text(network: Mapping[str, Any]) -> str:
    sample = "x".join(map(str, network["sample"]))
    args = f" with {json.dumps(network['args'])}" if network.get("args") else ""
    return f"{network['name']}{args} of {sample} inputs and {network['classes']} classes"
