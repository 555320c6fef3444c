"""One way to write a file: whole, or not at all.

The content goes to a file of another name in the same folder, is synced to the disk, and takes the place of
the old file at once. A full disk, a kill or a folder that cannot be written to leaves the old file as it was.
"""

import contextlib
import os
import secrets
import time
from pathlib import Path

# Names of files that are not whole yet. What a killed process left is deleted by a later write in the folder.
PART = ".sparseprune-{}.part"
STALE_SECONDS = 600.0  # since its last byte: nobody is writing any more


def write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Make the content (text as UTF-8) that of a file; a new one, or one whose permissions stay.

    Args:
        path: a regular file, a link to one, or nothing yet; its folder is made if need be.
        content: all of it.
    Raises:
        OSError: it cannot be written; whatever was there is as it was.
    """
    file = _target(path)
    part = file.with_name(PART.format(secrets.token_hex(8)))
    try:
        _delete_stale(file.parent)
        with part.open("xb") as stream:
            if file.exists():
                # Not every file system has permissions.
                with contextlib.suppress(OSError):
                    os.chmod(stream.fileno(), file.stat().st_mode & 0o777)
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
        _sync_folder(file.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise _refused(path, error, "what was there is as it was; ") from error
        raise


def add_line(file: Path, line: str) -> None:
    """Add a line that is on the disk when this returns, in place of a last line that was cut off.

    A kill or a full disk leaves all lines before it, and at worst one more that is cut off.

    Args:
        file: text of lines; made if missing. Its folder must exist, and no other process write to it.
        line: what to add, without a line break.
    Raises:
        OSError: it cannot be written.
    """
    with file.open("ab") as stream:
        stream.truncate(file.read_bytes().rfind(b"\n") + 1)
        stream.write(line.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def check(path: str | os.PathLike[str]) -> None:
    """Raise OSError now, rather than after hours of work, where `write` would; makes the folder.

    Args:
        path: see `write`. Nothing is written to it.
    """
    file = _target(path)
    part = file.with_name(PART.format(secrets.token_hex(8)))
    try:
        with part.open("xb") as stream:
            stream.write(b"?")
        part.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise _refused(path, error) from error


def _target(path: str | os.PathLike[str]) -> Path:
    """The file itself where the path is a link to it; makes its folder."""
    file = Path(os.path.realpath(path))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        if file.exists() and not file.is_file():
            raise OSError(0, "it is no regular file")
        if file.exists() and not os.access(file, os.W_OK):
            raise PermissionError(0, "it is read-only")
    except FileExistsError as error:
        raise _refused(path, OSError(0, f"{file.parent} is no folder")) from error
    except OSError as error:
        raise _refused(path, error) from error
    return file


def _refused(path: str | os.PathLike[str], error: OSError, state: str = "") -> OSError:
    return OSError(
        f"cannot write {os.fspath(path)} ({error.strerror or error}); {state}"
        "make room, or name a file that can be written"
    )


def _delete_stale(folder: Path) -> None:
    for part in folder.glob(PART.format("*")):
        # Another process may delete it first.
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > STALE_SECONDS:
                part.unlink()


def _sync_folder(folder: Path) -> None:
    """Sync the new name; some file systems cannot, and the content is safe anyway."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
