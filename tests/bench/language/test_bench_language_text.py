"""Text for the language model: read from R's data base, split, and cut into pieces."""

import struct
import zlib

import numpy as np
import pytest
import rdata
import torch

from bench.language import text


def database(*vectors):
    """The content of an .rdb file, written by rdata."""
    objects = []
    for lines in vectors:
        r_data = rdata.conversion.convert_python_to_r_data(np.array(lines))
        serialised = rdata.unparser.unparse_data(r_data)
        objects.append(struct.pack(">I", len(serialised)) + zlib.compress(serialised))
    return b"".join(objects)


def test_novels_joins_the_lines_of_each_object():
    content = database(["EMMA", "", "By Jane Austen"], ["Persuasion"])
    assert text.novels(content) == ["EMMA\n\nBy Jane Austen", "Persuasion"]


def test_split_holds_back_the_end_of_each_text():
    found = text.split(["a" * 18 + "bc", "d" * 38 + "bc"])
    assert found.characters == "abcd"
    assert found.train.tolist() == 18 * [0] + 36 * [3]
    assert found.validation.tolist() == [1, 3, 3]
    assert found.test.tolist() == [2, 1, 2]


def test_sample_pairs_characters_with_those_that_follow():
    numbers = torch.arange(50)
    x, y = text.sample(numbers, 4, 7, torch.Generator().manual_seed(0))
    assert x.shape == y.shape == (4, 7)
    assert torch.equal(y, x + 1)
    assert torch.equal(x[:, 1:], x[:, :-1] + 1)
    again, _ = text.sample(numbers, 4, 7, torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


def test_pieces_reach_from_the_first_character_to_the_last():
    x, y = text.pieces(torch.arange(100), 10, 3)
    assert x[:, 0].tolist() == [0, 44, 89]
    assert y[-1, -1] == 99


def test_load_tells_how_to_get_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "INSIDE", tmp_path / "nothing.rdb")
    with pytest.raises(FileNotFoundError, match=r"python -m bench\.language prepare, or apt-get install"):
        text.load(tmp_path)
