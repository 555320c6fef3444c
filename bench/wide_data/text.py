"""Descriptions of packages as tf-idf of their words; the label is the section that a package is filed in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.wide_data import apt
from bench.wide_data.prepared import Prepared, split

# The ten largest that say what a package is about, and not which language it is written in.
SECTIONS = ("devel", "utils", "net", "science", "admin", "games", "x11", "text", "sound", "graphics")


@dataclass(frozen=True)
class Description:
    """What is known of a package: its name, its source package, its section and its description."""

    package: str
    source: str
    section: str
    text: str


def descriptions(packages: str, translations: str) -> list[Description]:
    """The English descriptions of packages in `SECTIONS`, sorted by package; of equal texts the first alone.

    Args:
        packages: text of lists of packages.
        translations: text of lists of descriptions.
    """
    texts = {
        (found["Package"], found["Description-md5"]): found["Description-en"]
        for found in apt.fields(translations)
        if {"Package", "Description-md5", "Description-en"} <= found.keys()
    }
    named: dict[str, Description] = {}
    for found in apt.fields(packages):
        name, section = found.get("Package", ""), found.get("Section", "").rpartition("/")[2]
        text = texts.get((name, found.get("Description-md5", "")))
        if section in SECTIONS and text is not None and name not in named:
            # "Source: name (version)", where it differs from the package.
            source = found.get("Source", name).split(" ")[0]
            named[name] = Description(name, source, section, text)
    first = {named[name].text: named[name] for name in sorted(named, reverse=True)}
    return sorted(first.values(), key=lambda found: found.package)


def prepare(folder: Path, seed: int) -> Prepared:
    """Read the descriptions, split them by source package, and count words.

    Words and their frequencies are those of the training texts, so that other words of test texts are lost.

    Args:
        folder: where lists of packages may lie.
        seed: seed of the split.
    Raises:
        FileNotFoundError, OSError: see apt.py.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    apt.update(folder)
    packages, translations = apt.records(folder, "Packages"), apt.records(folder, "Translation-en")
    found = descriptions(packages, translations)
    labels = np.array([SECTIONS.index(one.section) for one in found])
    parts = split(labels, np.array([one.source for one in found]), seed)
    words = TfidfVectorizer(dtype=np.float32)
    train_x = words.fit_transform([found[i].text for i in parts.train])
    return Prepared(
        train_x,
        labels[parts.train],
        words.transform([found[i].text for i in parts.test]),
        labels[parts.test],
        parts.validation,
        list(words.get_feature_names_out()),
        list(SECTIONS),
        {
            "what": "package descriptions as tf-idf of words, labelled by section; split by source package",
            "taken from": apt.release(folder),
            "records": sum(1 for _ in apt.fields(packages)),
            "distinct descriptions": len(found),
            "source packages": len({one.source for one in found}),
        },
    )
