"""The C++ code compiled anew: between guard pages, and under sanitizers.

``native/kernels_test.cpp`` runs every kernel over sizes that leave every remainder. Sanitizers do not see
masked and gathering instructions; a page behind or before each buffer that must not be touched does.
"""

import shutil
import sys
from pathlib import Path

import pytest
from compiling import cxx, run, skip_without_sanitizers
from sanitized import ROOT, SANITIZERS, build, compile_all, flags_of_torch

from sparseprune.build import jit

TEST_PROGRAM = ROOT / "tests" / "native" / "kernels_test.cpp"
TEST_FILES = (
    "tests/ops/test_linear_ops.py",
    "tests/ops/test_conv_ops.py",
    "tests/ops/test_batch_norm_ops.py",
    "tests/ops/test_plans.py",
    "tests/ops/test_sizes.py",
    "tests/nn/test_batch_norm.py",
    "tests/select/test_masks.py",
)
# The tests that vary sizes and layouts, and those of what has code of its own: ReLU, float64, strides, top-k.
OPERATOR_TESTS = (
    "over_shapes or over_batches or over_blocks or over_layouts or without_rows"
    " or relu or in_float64 or strided or misleading_sample or forged or long_strides or any_geometry"
    " or many_samples"
)


def test_no_two_sources_have_one_name() -> None:
    """Torch's just-in-time build names objects after their sources, whatever folder those are in."""
    names = [Path(path).stem for path in jit.sources()]
    assert sorted(set(names)) == sorted(names)


@pytest.fixture
def compiler() -> list[str]:
    return cxx()


KERNEL_SOURCES = sorted((jit.CSRC / "cpu" / "kernels").glob("*.cpp"))


def between_guard_pages(compiler: list[str], folder: Path, emulator: str | None = None) -> str:
    """What the test program says, whose buffers lie before and behind pages that must not be touched."""
    files: dict[Path, list[str]] = {source: [] for source in KERNEL_SOURCES}
    objects = compile_all(compiler, {**files, TEST_PROGRAM: ["-O2"]}, folder)
    program = str(folder / "kernels_test")
    # Of another processor there are no libraries here; and it takes longer, so buffers lie before pages only.
    link = ["-static"] if emulator else []
    run([*compiler, *map(str, objects.values()), *link, "-o", program], folder)
    if emulator:
        return run([emulator, program, "before_guard"], folder)
    return run([program, "before_guard", "after_guard"], folder)


@pytest.mark.slow
def test_kernels_stay_between_guard_pages(compiler: list[str], tmp_path: Path) -> None:
    assert "buffers before_guard, after_guard: " in between_guard_pages(compiler, tmp_path)


@pytest.mark.slow
def test_clang_compiles_all_without_warnings(compiler: list[str], tmp_path: Path) -> None:
    """And its kernels are right. The other tests take the default compiler, which is gcc on most machines."""
    clang = shutil.which("clang++")
    if clang is None:
        pytest.skip("there is no clang++")
    assert "buffers before_guard, after_guard: " in between_guard_pages([clang], tmp_path)
    rest = {Path(path): [*flags_of_torch(), "-fsyntax-only"] for path in jit.sources()}
    compile_all(
        [clang], {path: flags for path, flags in rest.items() if path not in KERNEL_SOURCES}, tmp_path
    )


@pytest.mark.slow
def test_kernels_of_aarch64_stay_between_guard_pages(tmp_path: Path) -> None:
    """Cross-compiled, as ``make wheels`` does, and emulated. The operators: see ``emulated.py``."""
    cross, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    for command, package in ((cross, "g++-aarch64-linux-gnu"), (emulator, "qemu-user")):
        if shutil.which(command) is None:
            pytest.skip(f"there is no {command}; install Debian's {package}")
    said = between_guard_pages([cross], tmp_path, emulator)
    assert said.startswith("kernels_test: neon, scalar; buffers before_guard: ")


@pytest.mark.slow
def test_kernels_and_operators_under_sanitizers(compiler: list[str], tmp_path: Path) -> None:
    skip_without_sanitizers(compiler, SANITIZERS, tmp_path)

    objects, environment = build(compiler, tmp_path)
    objects |= compile_all(
        compiler, {TEST_PROGRAM: ["-O2"]}, tmp_path
    )  # its own loops are not what is tested
    program = str(tmp_path / "kernels_test")
    parts = [str(objects[source.stem]) for source in [*KERNEL_SOURCES, TEST_PROGRAM]]
    run([*compiler, *SANITIZERS, *parts, "-o", program], tmp_path)
    assert "buffers heap: " in run([program, "heap"], tmp_path)

    script = "from sparseprune.ops import extension as e; print(*e.available_isas())"
    _, *slower = run([sys.executable, "-c", script], tmp_path, **environment).split()
    # The operators are the same code for every instruction set, and the kernels of all are tested above.
    tests = " and not ".join([f"({OPERATOR_TESTS})", *slower])
    # -s: a sanitizer ends the process, and with it what pytest has captured.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-k", tests]
    assert " passed" in run([*command, *TEST_FILES], tmp_path, **environment)
