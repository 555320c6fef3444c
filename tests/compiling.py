"""Running compilers and what they made, for the tests of C++ and CUDA sources."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from sparseprune.build import jit


def cxx() -> list[str]:
    """The C++ compiler's command; skips the test where there is none, or no sources."""
    if not jit.sources():
        pytest.skip("the sources are not beside the package")
    command = shlex.split(cpp_extension.get_cxx_compiler())
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no C++ compiler {command[0]!r}; install one, or name one in CXX")
    return command


def run(command: list[str], cwd: Path, **environment: str) -> str:
    """What the command prints; fails with it where the command fails."""
    result = attempt(command, cwd, **environment)
    assert result.returncode == 0, (
        f"{shlex.join(command)}: exit code {result.returncode}\n{result.stdout[-20000:]}"
    )
    return result.stdout


def attempt(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command, whatever comes of it; its errors are in stdout too."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def skip_without_sanitizers(compiler: list[str], flags: list[str], folder: Path) -> None:
    empty = folder / "empty.cpp"
    empty.write_text("int main() {}\n")
    if attempt([*compiler, *flags, str(empty), "-o", str(folder / "empty")], folder).returncode != 0:
        pytest.skip(f"this compiler cannot link {' '.join(flags)}; install its sanitizers' libraries")
