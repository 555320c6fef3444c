import contextlib
import io
import itertools
import sys

import pytest

from sparseprune.cost.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def replaced(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal for standard error; not a fixture, after which pytest would put its own there."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "__stderr__", stream)
    return stream


def half_seconds() -> object:
    return itertools.count(0, 0.5).__next__


def test_progress_is_told_after_a_second_and_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = replaced(monkeypatch)
    seen = []
    for item in progress("timing layers", "abcd", clock=half_seconds()):
        seen.append((item, terminal.getvalue().rpartition("\r")[2]))
    assert seen == [
        ("a", ""),
        ("b", "sparseprune: timing layers, 2 of 4"),
        ("c", "sparseprune: timing layers, 3 of 4"),
        ("d", "sparseprune: timing layers, 4 of 4"),
    ]
    assert terminal.getvalue().endswith("\r" + " " * len("sparseprune: timing layers, 4 of 4") + "\r")


def test_an_error_leaves_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = replaced(monkeypatch)
    counted = progress("timing layers", "abcd", patience=0.0, clock=half_seconds())
    with contextlib.suppress(ZeroDivisionError):
        for _ in counted:
            raise ZeroDivisionError
    del counted
    assert terminal.getvalue().endswith(" \r")


def test_what_is_quick_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = replaced(monkeypatch)
    assert "".join(progress("timing layers", "abcd")) == "abcd"
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal(), None])
def test_only_a_terminal_is_written_to(stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch)
    # Neither is it sys.__stderr__: a bar has put itself in its place.
    monkeypatch.setattr(sys, "stderr", stream)
    assert "".join(progress("timing layers", "abcd", clock=half_seconds())) == "abcd"
    assert stream is None or stream.getvalue() == ""


def test_a_closed_terminal_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = replaced(monkeypatch)
    for _ in progress("timing layers", "abcd", clock=half_seconds()):
        terminal.close()
