"""Files of named tensors and a JSON text: safetensors, written whole or not at all; reading runs no code."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseprune.format import files

KEY = "sparseprune"  # of our text among the file's metadata
DIGEST = "sha256"


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a file; its folder is made if need be.

    Args:
        path: file to write.
        tensors: tensors by name, of any device and memory layout.
        facts: what JSON can hold.
    Raises:
        TypeError: ``facts`` holds something else.
        OSError: it cannot be written; what was there is as it was.
    """
    import safetensors.torch

    text = json.dumps(facts)
    # Safetensors takes no views, and no two of one storage.
    own = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    metadata = {KEY: text, DIGEST: _digest(own, text)}
    files.write(path, safetensors.torch.save(own, metadata))


def load(path: str | os.PathLike[str], op: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save` wrote: the tensors, which do not follow the file, and the facts.

    Args:
        path: file to read.
        op: name that errors begin with.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file, cut off or changed.
    """
    tensors, metadata = read(path, op)
    if KEY not in metadata or DIGEST not in metadata:
        raise ValueError(
            f"{op}: expected a file that sparseprune.save wrote, got {os.fspath(path)}, other safetensors; "
            "load those with model.load_state_dict(sparseprune.convert_state_dict(tensors, model))"
        )
    if _digest(tensors, metadata[KEY]) != metadata[DIGEST]:
        raise ValueError(
            f"{op}: expected {os.fspath(path)} to be as it was written, got other numbers than its checksum "
            "says: it was changed or damaged; take another copy"
        )
    facts = json.loads(metadata[KEY])
    if not isinstance(facts, dict):
        raise ValueError(f"{op}: expected facts in {os.fspath(path)}, got {type(facts).__name__}")
    return tensors, facts


def read(path: str | os.PathLike[str], op: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, which do not follow the file, and metadata of any file of safetensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file, or cut off.
    """
    import safetensors

    if not Path(path).is_file():
        raise FileNotFoundError(f"{op}: expected a file, got {os.fspath(path)}, where there is none")
    try:
        with safetensors.safe_open(path, framework="pt") as stored:
            tensors = {name: _copied(stored.get_tensor(name)) for name in stored.keys()}  # noqa: SIM118
            return tensors, dict(stored.metadata() or {})
    # What is damaged may make safetensors and torch raise anything.
    except Exception as error:
        raise ValueError(
            f"{op}: expected a file of safetensors, got {os.fspath(path)}, which is another, cut off or "
            f"damaged ({error})"
        ) from error


def _copied(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.dtype != torch.bool else tensor.view(torch.uint8).clone().view(torch.bool)


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of everything in a file."""
    result = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        result.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            result.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()
