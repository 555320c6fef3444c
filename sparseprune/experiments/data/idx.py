"""The IDX file format of MNIST and its successors: a big-endian header, then unsigned bytes."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import torch
from torch import Tensor

UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Read an IDX file of unsigned bytes, compressed with gzip or not (its first bytes tell, not its name).

    Args:
        path: the file.
    Returns:
        a uint8 tensor of the shape that the header states.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not IDX, holds another type than unsigned bytes, or is longer or shorter than
            its header says.
    """
    raw = Path(path).read_bytes()
    if raw.startswith(GZIP_MAGIC):
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"read_idx: {path} is a damaged or truncated gzip file ({error})") from error
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise ValueError(
            f"read_idx: expected {path} to start with the IDX magic number 00 00 08 0N, "
            f"got {raw[:4].hex(' ')!r}"
        )
    kind, dimensions = raw[2], raw[3]
    if kind != UNSIGNED_BYTE:
        raise ValueError(f"read_idx: expected unsigned bytes (type 0x08) in {path}, got type 0x{kind:02x}")
    header = 4 + 4 * dimensions
    if dimensions == 0 or len(raw) < header:
        raise ValueError(
            f"read_idx: expected a header of {header} bytes for {dimensions} dimensions in {path}, "
            f"got {len(raw)} bytes"
        )
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    expected, actual = math.prod(shape), len(raw) - header
    if actual != expected:
        raise ValueError(
            f"read_idx: expected {expected} bytes of data for shape {tuple(shape)} in {path}, got {actual}; "
            "the file is truncated or damaged"
        )
    if expected == 0:
        return torch.empty(shape, dtype=torch.uint8)
    # bytearray: torch warns about memory that it must not write to.
    return torch.frombuffer(bytearray(raw[header:]), dtype=torch.uint8).reshape(shape)
