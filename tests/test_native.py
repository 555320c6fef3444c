"""The kernels without torch: all tails, in buffers that end where memory ends, and under sanitizers."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from sparseprune import jit

NATIVE = Path(__file__).parent / "native"
CPU = jit.CSRC / "cpu"
FLAGS = ["-std=c++20", "-Wall", "-Wno-maybe-uninitialized", f"-I{jit.CSRC}", f"-I{NATIVE}"]
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compiler() -> list[str]:
    command = shlex.split(cpp_extension.get_cxx_compiler())
    if not jit.sources() or shutil.which(command[0]) is None:
        pytest.skip("needs the C++ sources and a compiler")
    return command


def build(folder: Path, flags: list[str]) -> Path:
    """The test program; each file is compiled by a process of its own."""
    command = compiler()
    sources = [*sorted(CPU.glob("kernels_*.cpp")), CPU / "isa.cpp", NATIVE / "kernels_test.cpp"]
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compile_file(source: Path, to: Path) -> None:
        run([*command, *FLAGS, *flags, "-c", str(source), "-o", str(to)])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_file, sources, objects))
    program = folder / "kernels_test"
    run([*command, *flags, *map(str, objects), "-o", str(program)])
    return program


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_kernels_stay_within_buffers_between_guard_pages(tmp_path: Path) -> None:
    # Sanitizers do not see masked and gathering instructions; a page that may not be touched does.
    output = run([str(build(tmp_path, ["-O2"])), "before_guard", "after_guard"])
    assert output.rstrip().endswith("0 failures")


def test_kernels_pass_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}\n")
    linked = subprocess.run([*compiler(), *SANITIZED, str(probe), "-o", str(tmp_path / "probe")])
    if linked.returncode != 0:
        pytest.skip("the compiler has no sanitizer libraries")
    output = run([str(build(tmp_path, SANITIZED)), "heap"])
    assert output.rstrip().endswith("0 failures")
