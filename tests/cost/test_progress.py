import contextlib
import io
import itertools
import re
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


@pytest.fixture(autouse=True)
def xterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tests run in."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


def test_a_bar_is_drawn_after_a_second_and_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    terminal = replaced(monkeypatch)
    seen = []
    for item in progress("timing layers", "abcd", clock=half_seconds()):
        line = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()).rpartition("\r")[2]
        seen.append((item, re.findall(r"sparseprune: timing layers .* (\d/4) left", line)))
    assert seen == [("a", []), ("b", ["1/4"]), ("c", ["2/4"]), ("d", ["3/4"])]
    assert terminal.getvalue().endswith("\x1b[1A\x1b[2K")  # the line is erased


def test_an_error_leaves_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    terminal = replaced(monkeypatch)
    counted = progress("timing layers", "abcd", patience=0.0, clock=half_seconds())
    with contextlib.suppress(ZeroDivisionError):
        for _ in counted:
            raise ZeroDivisionError
    del counted
    assert "timing layers" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[1A\x1b[2K")


def test_a_bar_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    terminal = replaced(monkeypatch)
    for _ in progress("timing the network", range(2), patience=0.0):
        assert list(progress("replacing layers", range(2), patience=0.0)) == [0, 1]
    assert "replacing layers" not in terminal.getvalue()


def test_without_rich_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = replaced(monkeypatch)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert "".join(progress("timing layers", "abcd", patience=0.0)) == "abcd"
    assert terminal.getvalue() == ""


def test_logging_gets_lines_in_its_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = replaced(monkeypatch)
    with caplog.at_level("INFO", "sparseprune"):
        assert "".join(progress("timing layers", "ab", patience=0.0)) == "ab"
    assert caplog.messages == ["timing layers, 1 of 2", "timing layers, 2 of 2"]
    assert terminal.getvalue() == ""


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
