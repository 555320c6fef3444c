import io
import os
import pickle

import numpy as np
import pytest
import torch
from bounds import gamma

from sparseprune.experiments.data import load
from sparseprune.experiments.data.cifar import CIFAR10, CIFAR100, read_binary, read_cifar, read_pickle

VARIANTS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
# (protocol, keys): as Python 2 wrote the published files, as Python 3 writes bytes for it, and newer ones.
PICKLES = [(2, bytes), (3, bytes), (4, bytes), (4, str)]


def numbers(variant, count, seed):
    """Images (N, 3072), labels and coarse labels."""
    noise = np.random.default_rng(seed)
    images = noise.integers(0, 256, (count, 3072), dtype=np.uint8)
    return images, noise.integers(0, variant.classes, count), noise.integers(0, 20, count)


def binary(variant, images, labels, coarse):
    head = [labels] if variant.label_bytes == 1 else [coarse, labels]
    return np.column_stack([*head, images]).astype(np.uint8).tobytes()


def pickled(variant, images, labels, coarse, protocol=2, keys=bytes):
    content = {
        b"batch_label": b"batch 1 of 5",
        variant.label_key: [int(label) for label in labels],
        b"coarse_labels": [int(label) for label in coarse],
        b"data": images,
        b"filenames": [b"image.png"] * len(images),
    }
    if keys is str:
        content = {key.decode(): value for key, value in content.items()}
    return pickle.dumps(content, protocol)


def write(folder, variant, form):
    """All files of a data set: 3 images in each file for training, 2 for testing."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [numbers(variant, 3, seed) for seed in range(len(variant.train))] + [numbers(variant, 2, 99)]
    for stem, part in zip((*variant.train, variant.test), parts, strict=True):
        if form == "binary":
            (folder / f"{stem}.bin").write_bytes(binary(variant, *part))
        else:
            (folder / stem).write_bytes(pickled(variant, *part))
    return parts


@pytest.mark.parametrize("within", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize("form", ["binary", "pickle"])
@pytest.mark.parametrize("name", VARIANTS)
def test_cifar_reads_both_formats_in_a_folder_or_below_it(tmp_path, name, form, within):
    variant = VARIANTS[name]
    folder = tmp_path / (variant.binary_folder if form == "binary" else variant.pickle_folder)
    parts = write(folder, variant, form)
    data = load(name, tmp_path if within else folder)
    assert (data.name, data.source) == (name, str(folder))
    assert (data.sample, data.train_x.dtype, data.train_y.dtype) == ((3, 32, 32), torch.float32, torch.int64)
    assert data.train_y.tolist() == [label for _, labels, _ in parts[:-1] for label in labels]
    assert data.test_y.tolist() == list(parts[-1][1])
    # 1024 bytes of each colour, row by row.
    last, row, column = parts[-1][0][1], 5, 7
    pixel = last[1024 + 32 * row + column] / 255
    mean, deviation = ((0.4822, 0.2435), (0.4866, 0.2564))[name == "cifar100"]
    # Three operations in float32, with constants that are rounded to it.
    roundings = float(gamma(5, torch.float32)) * (pixel + mean) / deviation
    green = float(data.test_x[1, 1, row, column])
    assert green == pytest.approx((pixel - mean) / deviation, rel=0, abs=roundings)
    assert data.train_x.shape == (3 * len(variant.train), 3, 32, 32)


@pytest.mark.parametrize(("protocol", "keys"), PICKLES)
@pytest.mark.parametrize("variant", [CIFAR10, CIFAR100])
def test_read_pickle_knows_the_protocols(tmp_path, variant, protocol, keys):
    images, labels, coarse = numbers(variant, 4, 0)
    (tmp_path / "file").write_bytes(pickled(variant, images, labels, coarse, protocol, keys))
    read, targets = read_pickle(tmp_path / "file", variant)
    assert (read.numpy().reshape(4, -1) == images).all()
    assert (targets.numpy() == labels).all()


def test_read_pickle_knows_the_old_names_of_numpy(tmp_path):
    images, labels, coarse = numbers(CIFAR10, 2, 0)
    new = pickled(CIFAR10, images, labels, coarse)
    old = new.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    for raw in (old, old.replace(b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n")):
        (tmp_path / "file").write_bytes(raw)
        assert (read_pickle(tmp_path / "file", CIFAR10)[0].numpy().reshape(2, -1) == images).all()


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(os.mkdir, ("made-by-a-pickle",)), r"asks for (posix|nt)\.mkdir, which no CIFAR file needs"),
        (Evil(eval, ("1 + 1",)), r"asks for (builtins|__builtin__)\.eval"),
        ({b"data": io.BytesIO()}, r"asks for _io\.BytesIO"),
        ({b"data": np.array([print], dtype=object)}, "asks for .*print"),
    ],
    ids=["mkdir", "eval", "object", "within an array"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_read_pickle_makes_nothing_but_numbers(tmp_path, monkeypatch, content, message, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ValueError, match=message):
        read_pickle(tmp_path / "file", CIFAR10)
    assert not (tmp_path / "made-by-a-pickle").exists()


def test_read_pickle_uses_no_other_codecs(tmp_path):
    raw = b"c_codecs\nencode\n(Vabc\nVrot13\ntR."
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(ValueError, match="asks for the encoding 'rot13'"):
        read_pickle(tmp_path / "file", CIFAR10)


IMAGES = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "no pickle, or damaged"),
        (b"\x89PNG\r\n", "cannot read|no pickle, or damaged"),
        (pickle.dumps({b"data": IMAGES, b"labels": [1, 2]}, 2)[:-50], "cannot read|no pickle, or damaged"),
        (pickle.dumps([1, 2]), "a dict with an array b'data' and a list b'labels', got list"),
        (pickle.dumps({b"data": IMAGES, b"fine_labels": [1, 2]}, 2), r"got .*b'data'.*b'fine_labels'"),
        (pickle.dumps({b"data": IMAGES[:, 1:], b"labels": [1, 2]}, 2), r"got \(2, 3071\) and uint8"),
        (pickle.dumps({b"data": IMAGES + 0.5, b"labels": [1, 2]}, 2), r"got \(2, 3072\) and float64"),
        (pickle.dumps({b"data": IMAGES[:0], b"labels": []}, 4), r"got \(0, 3072\)"),
        (pickle.dumps({b"data": IMAGES, b"labels": [1]}, 2), "as many labels as images in .*, got 1 and 2"),
        (pickle.dumps({b"data": IMAGES, b"labels": [1, 10]}, 2), "labels 0 to 9 in .*, got 1 to 10"),
        (pickle.dumps({b"data": IMAGES, b"labels": [1, -1]}, 2), "labels 0 to 9 in .*, got -1 to 1"),
        (pickle.dumps({b"data": IMAGES, b"labels": ["a", "b"]}, 2), "whole numbers as labels"),
    ],
)
def test_read_pickle_refuses_other_contents(tmp_path, raw, message):
    (tmp_path / "broken-file").write_bytes(raw)
    with pytest.raises(ValueError, match=message) as caught:
        read_pickle(tmp_path / "broken-file", CIFAR10)
    assert "broken-file" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "one or more records of 3073 bytes, got 0 bytes"),
        (bytes(2 * 3073 - 1), "got 6145 bytes; the file is truncated"),
        (bytes([10]) + bytes(3072), "labels 0 to 9 in .*, got 10 to 10"),
    ],
)
def test_read_binary_refuses_damaged_files(tmp_path, raw, message):
    (tmp_path / "broken-file").write_bytes(raw)
    with pytest.raises(ValueError, match=message) as caught:
        read_binary(tmp_path / "broken-file", CIFAR10)
    assert "broken-file" in str(caught.value)


def test_read_cifar_says_what_is_missing(tmp_path):
    write(tmp_path, CIFAR10, "pickle")
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} lacks data_batch_3; give the folder") as caught:
        read_cifar(tmp_path, CIFAR10)
    assert "cifar-10-batches-bin or cifar-10-batches-py" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        read_cifar(tmp_path / "nowhere", CIFAR100)


def test_cifar_needs_a_folder():
    with pytest.raises(ValueError, match=r"cifar10: expected a folder with its files, .*; give --data-dir"):
        load("cifar10")
