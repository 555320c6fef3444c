import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sparseprune.format import files

OLD, NEW = "old\n", "new ÷\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "file.txt"
    files.write(path, OLD)
    return path


def only(file: Path) -> str:
    """The content of a file that is alone in its folder."""
    assert list(file.parent.iterdir()) == [file]
    return file.read_text(encoding="utf-8")


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "c"
    files.write(file, NEW)
    assert only(file) == NEW
    files.write(str(file), b"\x00\xff")
    assert file.read_bytes() == b"\x00\xff"


def test_write_keeps_permissions_and_links(file: Path) -> None:
    fresh = file.parent / "fresh"
    fresh.touch()
    assert file.stat().st_mode == fresh.stat().st_mode
    fresh.unlink()
    file.chmod(0o640)
    link = file.parent.parent / "link"
    link.symlink_to(file)
    files.write(link, NEW)
    assert link.is_symlink()
    assert only(file) == NEW
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        """A stream that takes nothing."""

        def __init__(self, stream: Any) -> None:
            self.stream, self.fileno, self.write = stream, stream.fileno, full

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif call == "replace":
        monkeypatch.setattr(Path, "replace", full)
    else:
        opened = Path.open
        monkeypatch.setattr(Path, "open", full if call == "open" else lambda *given: Full(opened(*given)))
    message = (
        rf"^cannot write {file} \(No space left on device\); what was there is as it was; "
        "make room, or name a file that can be written$"
    )
    with pytest.raises(OSError, match=message):
        files.write(file, NEW)
    if call in ("open", "write"):
        with pytest.raises(OSError, match="No space left on device"):
            files.check(file)
    monkeypatch.undo()
    assert only(file) == OLD


def test_an_interrupt_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write(file, NEW)
    assert only(file) == OLD


@pytest.mark.parametrize("call", [files.check, lambda path: files.write(path, NEW)])
def test_what_cannot_be_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    taken, folder, fifo = tmp_path / "taken", tmp_path / "folder", tmp_path / "fifo"
    taken.write_text(OLD)
    folder.mkdir()
    os.mkfifo(fifo)
    for path, why in [
        (folder, "it is a folder"),
        (fifo, "it is no regular file"),
        (Path("/dev/null"), "it is no regular file"),
        (taken / "file", f"{taken} is no folder"),
        (taken / "folder" / "file", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
        (Path(""), "it is a folder"),
    ]:
        with pytest.raises(OSError, match=rf"^cannot write {path} \({why}\); .*name a file that can be"):
            call(path)
    # As for those who are not root.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OSError, match="it is read-only"):
        call(taken)
    assert taken.read_text() == OLD
    assert sorted(tmp_path.iterdir()) == [fifo, folder, taken]


def test_check_makes_the_folder_and_no_file(tmp_path: Path, file: Path) -> None:
    files.check(tmp_path / "new" / "file")
    assert list((tmp_path / "new").iterdir()) == []
    files.check(file)
    assert only(file) == OLD


def test_what_a_killed_process_left_is_deleted_later(file: Path) -> None:
    stale, fresh, other = (file.with_name(name) for name in (files.PART.format(1), files.PART.format(2), "a"))
    for path in (stale, fresh, other):
        path.write_text("half")
    before = time.time() - files.STALE_SECONDS - 1
    for path in (stale, other):
        os.utime(path, (before, before))
    files.write(file, NEW)
    assert sorted(file.parent.iterdir()) == sorted([file, fresh, other])


MOMENTS = int(os.environ.get("SPARSEPRUNE_KILLS", "5"))
LOOP = """
import itertools, sys
sys.path.insert(0, sys.argv[1])
import files

for number in itertools.count():
    files.write(sys.argv[2], bytes([number % 256]) * 1_000_003)
    if number == 0:
        print(flush=True)
"""


def test_kills_leave_a_whole_file(tmp_path: Path) -> None:
    """SIGKILL at moments of a process that does nothing but save; SPARSEPRUNE_KILLS says how many."""
    folder, file = tmp_path / "folder", tmp_path / "folder" / "file"
    for moment in range(MOMENTS):
        # Alone, without torch: the loop begins at once.
        command = [sys.executable, "-c", LOOP, str(Path(files.__file__).parent), str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            # Golden ratio: moments that lie evenly over the loop, whatever their number.
            time.sleep(0.05 * ((moment * 0.618034) % 1))
            process.kill()
        content = file.read_bytes()
        assert len(content) == 1_000_003
        assert len(set(content)) == 1
    left = [path for path in folder.iterdir() if path != file]
    assert len(left) <= MOMENTS
    for path in left:
        os.utime(path, (0, 0))
    files.write(file, NEW)
    assert only(file) == NEW
