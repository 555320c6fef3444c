"""What Debian's package tools give: descriptions of all packages, and the files of one.

All goes to a folder of its own: nothing is installed, and the lists of the system stay as they are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

HELPER = Path("/usr/lib/apt/apt-helper")
RELEASE_FIELDS = ("Origin", "Codename", "Version", "Date")


def update(folder: Path) -> None:
    """Read the lists of packages, with English descriptions, into a folder.

    Args:
        folder: made if missing.
    Raises:
        FileNotFoundError: there is no apt.
        OSError: apt-get fails.
    """
    (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    _output(["apt-get", "update", "-qq", "-o", "Acquire::Languages=en", *_options(folder)])


def records(folder: Path, kind: str) -> str:
    """The text of all lists of one kind.

    Args:
        folder: what `update` filled.
        kind: "Packages" or "Translation-en".
    Raises:
        FileNotFoundError: there are none, or no apt.
        OSError: apt-helper fails.
    """
    pattern = "*_main_binary-*_Packages*" if kind == "Packages" else f"*_main_i18n_{kind}*"
    if not (found := _of_release(folder, pattern)):
        raise FileNotFoundError(
            f"prepare: expected lists {pattern} in {folder / 'lists'}, found none; "
            "does the system's apt know a Debian or Ubuntu archive?"
        )
    return _output([shutil.which("apt-helper") or str(HELPER), "cat-file", *map(str, found)])


def release(folder: Path) -> list[str]:
    """Which releases the lists are of, one line each: "Debian bookworm 12.11, Sat, 17 May 2025 ..."."""
    lines = []
    for file in _of_release(folder, "*_InRelease"):
        if any(file.parent.glob(f"{file.name.removesuffix('InRelease')}main_binary-*_Packages*")):
            head = next(fields(file.read_text(encoding="utf-8").partition("\n\n")[2]))
            lines.append(" ".join(head[name] for name in RELEASE_FIELDS if name in head))
    return lines


def unpack(folder: Path, package: str) -> tuple[Path, str]:
    """Get one package and unpack it, uninstalled, unless that was done before.

    Args:
        folder: the files go to a folder of the package's name in it.
        package: its name.
    Returns:
        the folder that stands for the root of the file system, and the package's file name, which has its
        version.
    Raises:
        FileNotFoundError: there is no apt.
        OSError: the package cannot be had.
    """
    place = folder / package
    place.mkdir(parents=True, exist_ok=True)
    if not any(place.glob("*.deb")):
        update(folder)
        _output(["apt-get", "download", "-qq", *_options(folder), package], cwd=place)
    archive = max(place.glob("*.deb"))
    _output(["dpkg-deb", "-x", str(archive.resolve()), str(place.resolve() / "root")])
    return place / "root", archive.name


def fields(text: str) -> Iterator[dict[str, str]]:
    """The records of a control file: "Name: value" a line, further lines indented, an empty line between.

    Args:
        text: as in lists of packages.
    Returns:
        an iterator of {name: value}; further lines of a value follow after newlines, without their indent.
    """
    for record in text.split("\n\n"):
        found: dict[str, str] = {}
        name = None
        for line in record.splitlines():
            if line[:1] in (" ", "\t") and name is not None:
                found[name] += f"\n{line[1:]}"
            elif ":" in line:
                name, _, value = line.partition(":")
                found[name] = value.strip()
        if found:
            yield found


def _of_release(folder: Path, pattern: str) -> list[Path]:
    """Lists of the release itself: what updates and security add changes every week."""
    found = (folder / "lists").glob(pattern)
    return sorted(file for file in found if not re.search("-(security|updates|backports)_", file.name))


def _options(folder: Path) -> list[str]:
    settings = {"Dir::State::Lists": folder.resolve() / "lists", "Dir::Cache::pkgcache": ""}
    settings["Dir::Cache::srcpkgcache"] = ""
    return [text for name, value in settings.items() for text in ("-o", f"{name}={value}")]


def _output(command: Sequence[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", check=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"prepare: expected {Path(command[0]).name} of Debian or Ubuntu, which is not there; prepare the "
            "data on such a system or in a container of one, and copy the file"
        ) from error
    except subprocess.CalledProcessError as error:
        told = error.stderr.strip().splitlines()[-3:] or ["no message"]
        raise OSError(f"prepare: {' '.join(command[:2])} failed: {' '.join(told)}") from error
    return done.stdout
