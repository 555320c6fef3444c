"""Which instruction set the operators use."""

import os
import re
import subprocess
import sys

import pytest

from sparseprune import ops


def test_set_isa_refuses_unknown_names(needs_extension: None) -> None:
    before = ops.extension.isa()
    available = ", ".join(ops.extension.available_isas())
    message = (
        f'set_isa: expected one of {available} (what this processor and this build support), got "bogus"'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        ops.extension.set_isa("bogus")
    assert ops.extension.isa() == before


def test_isa_fixture_selects(isa: str) -> None:
    assert ops.info()["isa"] == (None if ops.extension is None else isa)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_isa_from_the_environment(needs_extension: None) -> None:
    result = run_python("from sparseprune import ops; print(ops.info()['isa'])", SPARSEPRUNE_ISA="scalar")
    assert (result.stdout, result.stderr) == ("scalar\n", "")


def test_isa_from_the_environment_refuses_unknown_names(needs_extension: None) -> None:
    result = run_python("import sparseprune", SPARSEPRUNE_ISA="bogus")
    available = ", ".join(ops.extension.available_isas())
    message = f"SPARSEPRUNE_ISA: expected one of {available} (what this processor and this build support), "
    assert result.stderr.splitlines()[-1] == f'ValueError: {message}got "bogus"'
