"""The two file formats of CIFAR-10 and CIFAR-100: binary records, and Python pickles.

Pickles are read without trusting them: nothing but numbers, bytes, lists, dicts and numpy arrays is made.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3 * 32 * 32


class Variant(NamedTuple):
    """Where one of the data sets keeps its files and its labels.

    Attributes:
        classes: number of labels.
        binary_folder, pickle_folder: names of the folders in the published archives.
        train, test: file names, in the binary format with ".bin" after them.
        label_bytes: number of label bytes of a binary record; the last one is the label.
        label_key: key of the labels in a pickled dict.
    """

    classes: int
    binary_folder: str
    pickle_folder: str
    train: tuple[str, ...]
    test: str
    label_bytes: int
    label_key: bytes


CIFAR10 = Variant(
    classes=10,
    binary_folder="cifar-10-batches-bin",
    pickle_folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    label_bytes=1,
    label_key=b"labels",
)
CIFAR100 = Variant(
    classes=100,
    binary_folder="cifar-100-binary",
    pickle_folder="cifar-100-python",
    train=("train",),
    test="test",
    # The coarse one of 20, then the fine one of 100.
    label_bytes=2,
    label_key=b"fine_labels",
)


def read_cifar(folder: Path, variant: Variant) -> tuple[Path, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Find and read the files of CIFAR-10 or CIFAR-100.

    Args:
        folder: folder that holds the files, or the folder of the published archive that does.
        variant: `CIFAR10` or `CIFAR100`.
    Returns:
        the folder in which they were found; training images, training labels, test images, test labels.
        Images are uint8 (N, 3, 32, 32), red, green, blue; labels are int64 (N,).
    Raises:
        FileNotFoundError: there is no complete set of files; the message says what was looked for.
        ValueError: a file is damaged or no CIFAR file.
    """
    tried = []
    for suffix, subfolder, read in (
        (".bin", variant.binary_folder, read_binary),
        ("", variant.pickle_folder, read_pickle),
    ):
        for place in (folder, folder / subfolder):
            files = [place / f"{stem}{suffix}" for stem in (*variant.train, variant.test)]
            missing = [file.name for file in files if not file.is_file()]
            if not missing:
                return place, _joined(files, variant, read)
            tried.append((len(missing), f"{place} lacks {', '.join(missing)}"))
    nearest = min(tried, key=lambda attempt: attempt[0])[1]
    wanted = ", ".join((*variant.train, variant.test))
    raise FileNotFoundError(
        f"read_cifar: expected {wanted}, all with .bin (binary format) or all without (Python format), in "
        f"{folder} or in {variant.binary_folder} or {variant.pickle_folder} within it; "
        + (nearest if folder.is_dir() else "there is no such folder")
        + "; give the folder in which the published archive was unpacked"
    )


def read_binary(file: Path, variant: Variant) -> tuple[Tensor, Tensor]:
    """Read one file of records: one or two bytes of labels, then 3072 bytes of pixels.

    Args:
        file: which.
        variant: says how many label bytes there are; the last one counts.
    Returns:
        images, uint8 (N, 3, 32, 32), and labels, int64 (N,).
    Raises:
        ValueError: the file does not consist of whole records.
    """
    raw = np.fromfile(file, dtype=np.uint8)
    record = variant.label_bytes + IMAGE_BYTES
    if len(raw) == 0 or len(raw) % record != 0:
        raise ValueError(
            f"read_cifar: expected {file} to hold one or more records of {record} bytes, got {len(raw)} "
            "bytes; the file is truncated, damaged or of another data set"
        )
    records = torch.from_numpy(raw).view(-1, record)
    images = records[:, variant.label_bytes :].reshape(-1, *IMAGE_SHAPE)
    return images, _checked(records[:, variant.label_bytes - 1].long(), len(images), file, variant)


def read_pickle(file: Path, variant: Variant) -> tuple[Tensor, Tensor]:
    """Read one pickled dict: b"data", uint8 (N, 3072), and a list of N labels.

    Args:
        file: which.
        variant: names the key of the labels.
    Returns:
        images, uint8 (N, 3, 32, 32), and labels, int64 (N,).
    Raises:
        ValueError: the file is no pickle, is damaged, would make objects that CIFAR files do not contain, or
            has other contents.
    """
    with file.open("rb") as stream:
        try:
            content: Any = _Unpickler(stream, encoding="bytes").load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"read_cifar: cannot read {file}: {error}") from error
        except Exception as error:
            # What damaged bytes raise is anybody's guess.
            raise ValueError(f"read_cifar: {file} is no pickle, or damaged ({error!r})") from error
    # A file that Python 3 made has text as keys.
    parts = (
        {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}
        if isinstance(content, dict)
        else {}
    )
    images, labels = parts.get(b"data"), parts.get(variant.label_key)
    if not isinstance(images, np.ndarray) or not isinstance(labels, (list, np.ndarray)):
        raise ValueError(
            f"read_cifar: expected {file} to hold a dict with an array b'data' and a list "
            f"{variant.label_key!r}, got {sorted(map(repr, parts)) or type(content).__name__}"
        )
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != IMAGE_BYTES or len(images) == 0:
        raise ValueError(
            f"read_cifar: expected images of shape (N, {IMAGE_BYTES}) and type uint8 in {file}, "
            f"got {images.shape} and {images.dtype}"
        )
    numbers = np.asarray(labels)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ValueError(f"read_cifar: expected whole numbers as labels in {file}, got {numbers.dtype}")
    pixels = torch.from_numpy(np.array(images)).view(-1, *IMAGE_SHAPE)
    return pixels, _checked(torch.from_numpy(numbers.astype(np.int64)), len(pixels), file, variant)


class _Unpickler(pickle.Unpickler):
    """Makes arrays and plain Python values, and refuses whatever else a pickle may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return ADMITTED[module, name]


def _latin1(text: str, encoding: str) -> bytes:
    """How a pickle of protocol 2 writes bytes, without the other codecs."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}, which no CIFAR file needs")
    return text.encode("latin1")


# numpy moved its functions: the published files have the old names.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


def _checked(labels: Tensor, images: int, file: Path, variant: Variant) -> Tensor:
    if len(labels) != images:
        raise ValueError(
            f"read_cifar: expected as many labels as images in {file}, got {len(labels)} and {images}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= variant.classes:
        raise ValueError(
            f"read_cifar: expected labels 0 to {variant.classes - 1} in {file}, got {low} to {high}; "
            "the file is damaged or of another data set"
        )
    return labels


def _joined(
    files: Sequence[Path], variant: Variant, read: Callable[[Path, Variant], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *train, test = (read(file, variant) for file in files)
    return torch.cat([x for x, _ in train]), torch.cat([y for _, y in train]), *test
