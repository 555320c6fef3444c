import sys
import sysconfig
from pathlib import Path

import pytest

from sparseprune.build import wheels


def test_ask_takes_a_python_with_headers_only(tmp_path: Path) -> None:
    """What is not there, and what is there only to say that it is not installed, is left out."""
    assert wheels.ask("a-python-that-is-not-there") is None
    not_installed = tmp_path / "python"
    not_installed.write_text("#!/bin/sh\necho 'python: command not found' >&2\nexit 127\n")
    not_installed.chmod(0o755)
    assert wheels.ask(str(not_installed)) is None
    without_headers = tmp_path / "python-without-headers"
    without_headers.write_text(f'#!/bin/sh\necho \'["3.12", "{tmp_path}"]\'\n')
    without_headers.chmod(0o755)
    assert wheels.ask(str(without_headers)) is None

    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        pytest.skip("this Python has no headers")
    python = wheels.ask(sys.executable)
    assert python is not None
    assert python.tag == f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert sysconfig.get_config_var("EXT_SUFFIX").startswith(f".{python.known_as}-")


def test_main_tests_only_pythons_that_wheels_are_built_for() -> None:
    with pytest.raises(SystemExit, match="python9: expected one of the Pythons"):
        wheels.main(["--out", "nowhere", "--test", "python9", "--", "python8"])
