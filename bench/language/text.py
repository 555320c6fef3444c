"""Characters of six novels by Jane Austen, which the Debian package r-cran-janeaustenr ships."""

from __future__ import annotations

import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

PACKAGE = "r-cran-janeaustenr"  # MIT; the novels are in the public domain
INSIDE = Path("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
FOLDER = Path("data/janeaustenr")  # where `prepare` puts it; git ignores data/
HELD_OUT = 20  # of each novel the last twentieth is the test part, the one before it for validation


@dataclass(frozen=True)
class Text:
    """Text as numbers of characters, int64, one after the other.

    Attributes:
        characters: what the numbers stand for, sorted.
        train, validation, test: the parts of all novels.
    """

    characters: str
    train: Tensor
    validation: Tensor
    test: Tensor


def load(folder: Path = FOLDER) -> Text:
    """Read the novels from the folder that `prepare` made, or from where the package manager puts them.

    Raises:
        FileNotFoundError: they are in neither place.
        ModuleNotFoundError: rdata is not installed.
    """
    places = (folder / INSIDE, Path("/") / INSIDE)
    for place in places:
        if place.is_file():
            return split(novels(place.read_bytes()))
    raise FileNotFoundError(
        f"novels: looked for {' and '.join(map(str, places))}; "
        f"get them with python -m bench.language prepare, or apt-get install {PACKAGE}"
    )


def prepare(folder: Path = FOLDER) -> None:
    """Fetch the Debian package and unpack it in a folder; nothing is installed.

    Raises:
        OSError: apt or dpkg is not there.
        subprocess.CalledProcessError: apt cannot fetch it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True)
    (archive,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)


def novels(content: bytes) -> list[str]:
    """The character vectors of an R data base (.rdb), each with its elements as lines.

    The file is a row of objects: 4 bytes that say how long one is, and the object, serialised by R and
    compressed by zlib.

    Raises:
        ModuleNotFoundError: rdata is not installed.
    """
    try:
        import rdata
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("novels: module rdata is not installed; pip install rdata") from error
    return [
        "\n".join(rdata.conversion.convert(rdata.parser.parse_data(serialised, extension=".rds")))
        for serialised in _objects(content)
    ]


def split(texts: list[str]) -> Text:
    """Number the characters, and hold back the end of each text."""
    characters = "".join(sorted(set("".join(texts))))
    number = {character: i for i, character in enumerate(characters)}
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for text in texts:
        numbers = torch.tensor([number[character] for character in text])
        held = len(numbers) // HELD_OUT
        for part, piece in zip(parts, numbers.split([len(numbers) - 2 * held, held, held]), strict=True):
            part.append(piece)
    return Text(characters, *(torch.cat(part) for part in parts))


def sample(text: Tensor, batch_size: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pieces from random places: characters (batch, length), and those that follow each of them."""
    starts = torch.randint(len(text) - length, (batch_size, 1), generator=generator)
    index = starts + torch.arange(length + 1)
    pieces = text[index]
    return pieces[:, :-1], pieces[:, 1:]


def pieces(text: Tensor, length: int, count: int) -> tuple[Tensor, Tensor]:
    """Pieces at equal distances, the same at each call: characters (count, length), and those that follow."""
    starts = torch.linspace(0, len(text) - length - 1, count).long().unsqueeze(1)
    found = text[starts + torch.arange(length + 1)]
    return found[:, :-1], found[:, 1:]


def _objects(content: bytes) -> Iterator[bytes]:
    while content:
        reader = zlib.decompressobj()
        yield reader.decompress(content[4:])
        content = reader.unused_data
