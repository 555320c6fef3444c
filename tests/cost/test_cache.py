import errno
import json
import multiprocessing
import os
import re
import stat
import threading
from multiprocessing.synchronize import Barrier
from pathlib import Path

import filelock
import pytest
import torch
from torch import nn

import sparseprune as sp
from sparseprune.cost import cache, choice
from sparseprune.cost.cache import Choice

NOW = 1_800_000_000.0
DAY = 86400


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "choices.json"
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", str(path))
    return path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the layers that were measured: 1 s sparse, 2 s dense."""
    rows: list[int] = []
    monkeypatch.setattr(
        choice, "measure", lambda layer, *_: rows.append(layer.out_features) or Choice(1.0, 2.0)
    )
    return rows


def sparsify_three_layers() -> None:
    sizes = (4, 5, 6)
    model = nn.Sequential(*(nn.Linear(6, rows) for rows in sizes))
    model = nn.ModuleList(model)
    sp.sparsify(model, {f"{i}.weight": torch.eye(rows, 6, dtype=torch.bool) for i, rows in enumerate(sizes)})


# ---- where it is -------------------------------------------------------------------------------------------


def test_choices_file_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", "")
    assert cache.choices_file() is None
    assert cache.load(None) == {}
    monkeypatch.delenv("SPARSEPRUNE_CHOICES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.choices_file() == tmp_path / "sparseprune" / "choices.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.choices_file() == tmp_path / "home" / ".cache" / "sparseprune" / "choices.json"


def test_without_a_home_there_is_no_file(monkeypatch: pytest.MonkeyPatch, measured: list[int]) -> None:
    def nobody(uid: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("SPARSEPRUNE_CHOICES", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert cache.choices_file() is None
    sparsify_three_layers()
    assert measured == [4, 5, 6]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a pipe", "link to a device"])
def test_what_is_no_regular_file_is_no_file(kind: str, file: Path, measured: list[int]) -> None:
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "link to a pipe":
        os.mkfifo(file.with_name("pipe"))
        file.symlink_to("pipe")
    else:
        file.symlink_to(os.devnull)
    before, link = os.stat(file), os.lstat(file)
    assert cache.choices_file() is None
    sparsify_three_layers()
    assert cache.load(file) == {}
    cache.save(file, "here", "linear", Choice(1.0, 2.0))
    assert measured == [4, 5, 6]
    assert (os.stat(file).st_ino, os.lstat(file).st_ino) == (before.st_ino, link.st_ino)
    assert stat.S_IFMT(os.stat(file).st_mode) == stat.S_IFMT(before.st_mode)
    assert {path.name for path in file.parent.iterdir()} <= {"choices.json", "pipe"}


def test_a_link_to_a_file_stays_a_link(file: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "real.json"
    file.symlink_to(real)
    for layer in ("one", "two"):
        cache.save(file, "here", layer, Choice(1.0, 2.0))
    assert file.is_symlink()
    assert list(json.loads(real.read_text())["here"]) == ["one", "two"]


def test_a_link_to_itself_is_replaced(file: Path) -> None:
    file.symlink_to(file.name)
    cache.save(file, "here", "linear", Choice(1.0, 2.0))
    assert cache.load(file) == {"here": {"linear": Choice(1.0, 2.0)}}


# ---- what is in it -----------------------------------------------------------------------------------------

DAMAGED = {
    "empty": b"",
    "cut off": b"{",
    "no text": b"\xff\xfe\x00\x01",
    "zeros": bytes(1000),
    "a list": b"[]",
    "a number": b"3",
    "NaN": b"NaN",
    "a machine that is a number": b'{"here": 3}',
    "a layer that is a number": b'{"here": {"linear": 3}}',
    "a layer that is a list": b'{"here": {"linear": [1.0, 2.0]}}',
    "no dense": b'{"here": {"linear": {"sparse": 1.0}}}',
    "null": b'{"here": {"linear": {"sparse": 1.0, "dense": null}}}',
    "a string": b'{"here": {"linear": {"sparse": 1.0, "dense": "2"}}}',
    "seconds NaN": b'{"here": {"linear": {"sparse": 1.0, "dense": NaN}}}',
    "no seconds": b'{"here": {"linear": {"sparse": 1.0, "dense": 0}}}',
    "infinite": b'{"here": {"linear": {"sparse": 1.0, "dense": 1e999}}}',
    "beyond floats": b'{"here": {"linear": {"sparse": 1.0, "dense": 1' + b"0" * 400 + b"}}}",
    "beyond integers": b'{"here": {"linear": {"sparse": 1.0, "dense": 1' + b"0" * 5000 + b"}}}",
    "a date that is a list": b'{"here": {"linear": {"sparse": 1.0, "dense": 1.0, "when": []}}}',
    "nested": b"[" * 100_000,
    "deeper": b'{"here": ' * 100_000,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_begun_anew_with_one_warning(name: str, file: Path, measured: list[int]) -> None:
    file.write_bytes(DAMAGED[name])
    with pytest.warns(RuntimeWarning, match=f"sparseprune: {re.escape(str(file))} is ignored") as caught:
        sparsify_three_layers()
    assert len(caught) == 1
    sparsify_three_layers()
    assert measured == [4, 5, 6]


def test_a_damaged_file_that_stays_is_warned_about_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "measure", lambda *_: Choice(1.0, 2.0, "other processes kept 2 busy"))
    file.write_text("[]")
    with pytest.warns(RuntimeWarning, match=r"expected \{machine: \{layer: ") as caught:
        sparsify_three_layers()
    assert len(caught) == 1
    assert file.read_text() == "[]"


def test_a_huge_file_is_not_read(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(2**27)
    with pytest.warns(RuntimeWarning, match="is ignored .expected 67108864 bytes at most"):
        assert cache.load(file) == {}


def test_a_file_without_dates_is_too_old(file: Path, measured: list[int]) -> None:
    file.write_text('{"here": {"linear": {"sparse": 95.9, "dense": 1.0}}}')
    assert cache.load(file) == {}
    sparsify_three_layers()
    assert "95.9" not in file.read_text()


def test_no_figure_is_kept_for_ever(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = NOW
    monkeypatch.setattr(cache.time, "time", lambda: now)
    cache.save(file, "here", "off", Choice(95.9, 0.5))
    now += 6.9 * DAY
    cache.save(file, "here", "right", Choice(0.4, 0.5))
    assert list(cache.load(file)["here"]) == ["off", "right"]
    now += 0.2 * DAY
    assert list(cache.load(file)["here"]) == ["right"]
    cache.save(file, "there", "new", Choice(1.0, 2.0))
    assert "95.9" not in file.read_text()
    # From the future: somebody's clock was wrong.
    now -= 30 * DAY
    assert cache.load(file) == {}


# ---- writing it --------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_written_is_warned_about_once(
    tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", str(tmp_path / "a file" / "choices.json"))
    with pytest.warns(
        RuntimeWarning, match="cannot write .* measured anew each time; name another file"
    ) as all_:
        sparsify_three_layers()
    assert len(all_) == 1
    assert measured == [4, 5, 6]


def test_whoever_holds_the_lock_for_ever_is_waited_for_once(
    file: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.01)
    with filelock.FileLock(f"{file}.lock"), pytest.warns(RuntimeWarning, match="could not be acquired"):
        sparsify_three_layers()
    sparsify_three_layers()
    assert measured == [4, 5, 6] * 2
    assert not file.exists()


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_whole(
    fails: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache.save(file, "here", "one", Choice(1.0, 2.0))
    before = file.read_bytes()
    monkeypatch.setattr(*((os, "fsync") if fails == "fsync" else (Path, "replace")), full)
    with pytest.warns(RuntimeWarning, match=r"cannot write .*No space left on device"):
        cache.save(file, "here", "two", Choice(1.0, 2.0))
    assert file.read_bytes() == before
    assert {path.name for path in file.parent.iterdir()} == {"choices.json", "choices.json.lock"}


def test_a_file_that_cannot_be_read_is_not_written_over(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    cache.save(file, "here", "one", Choice(1.0, 2.0))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", exhausted)
        with pytest.warns(RuntimeWarning, match="Too many open files"):
            cache.save(file, "here", "two", Choice(1.0, 2.0))
    assert list(cache.load(file)["here"]) == ["one"]


def test_the_mode_of_the_file_is_that_of_any_new_file(file: Path, tmp_path: Path) -> None:
    cache.save(file, "here", "one", Choice(1.0, 2.0))
    (tmp_path / "other").touch()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode


PROCESSES, THREADS, ENTRIES = 2, 8, 5


def write_in_threads(file: Path, process: int, ready: Barrier | None = None) -> None:
    def write(thread: int) -> None:
        for i in range(ENTRIES):
            cache.save(file, "here", f"{process} {thread} {i}", Choice(1.0, 2.0))

    if ready is not None:
        ready.wait(60)
    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_lose_nothing(file: Path) -> None:
    write_in_threads(file, 0)
    assert len(cache.load(file)["here"]) == THREADS * ENTRIES
    assert {path.name for path in file.parent.iterdir()} <= {"choices.json", "choices.json.lock"}


def test_threads_of_several_processes_lose_nothing(file: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(PROCESSES)
    processes = [context.Process(target=write_in_threads, args=(file, i, ready)) for i in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(cache.load(file)["here"]) == PROCESSES * THREADS * ENTRIES
    assert {path.name for path in file.parent.iterdir()} <= {"choices.json", "choices.json.lock"}
