"""The C++ code compiled anew: between guard pages, and under sanitizers.

``native/kernels_test.cpp`` runs every kernel over sizes that leave every remainder. Sanitizers do not see
masked and gathering instructions; a page behind or before each buffer that must not be touched does.
"""

import os
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from compiling import cxx, run, skip_without_sanitizers
from torch.utils import cpp_extension

from sparseprune.build import jit

ROOT = Path(__file__).resolve().parents[2]
TEST_PROGRAM = ROOT / "tests" / "native" / "kernels_test.cpp"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Without optimisation nothing that is wrong is optimised away, and it compiles in half of the time of -O1.
SANITIZED = ["-O0", "-g1", *SANITIZERS]

TEST_FILES = (
    "tests/ops/test_linear_ops.py",
    "tests/ops/test_conv_ops.py",
    "tests/ops/test_batch_norm_ops.py",
    "tests/ops/test_sizes.py",
    "tests/nn/test_batch_norm.py",
    "tests/select/test_masks.py",
)
# The tests that vary sizes and layouts, and those of what has code of its own: ReLU, float64, strides, top-k.
OPERATOR_TESTS = (
    "over_shapes or over_batches or over_blocks or over_layouts or without_rows"
    " or relu or in_float64 or strided or misleading_sample or long_strides or any_geometry or many_samples"
)


def test_no_two_sources_have_one_name() -> None:
    """Torch's just-in-time build names objects after their sources, whatever folder those are in."""
    names = [Path(path).stem for path in jit.sources()]
    assert sorted(set(names)) == sorted(names)


@pytest.fixture
def compiler() -> list[str]:
    return cxx()


def compile_all(compiler: list[str], files: dict[Path, list[str]], folder: Path) -> dict[str, Path]:
    """Objects by the names of their sources, which have flags of their own; a process for each core."""

    def compile_one(source: Path) -> Path:
        result = folder / f"{source.stem}.o"
        flags = [*jit.CXX_FLAGS, *files[source], f"-I{jit.CSRC}"]
        run([*compiler, *flags, "-c", str(source), "-o", str(result)], folder)
        return result

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip([source.stem for source in files], pool.map(compile_one, files), strict=True))


KERNEL_SOURCES = sorted((jit.CSRC / "cpu" / "kernels").glob("*.cpp"))


@pytest.mark.slow
def test_kernels_stay_between_guard_pages(compiler: list[str], tmp_path: Path) -> None:
    files: dict[Path, list[str]] = {source: [] for source in KERNEL_SOURCES}
    objects = compile_all(compiler, {**files, TEST_PROGRAM: ["-O2"]}, tmp_path)
    program = str(tmp_path / "kernels_test")
    run([*compiler, *map(str, objects.values()), "-o", program], tmp_path)
    assert "buffers before_guard, after_guard: " in run([program, "before_guard", "after_guard"], tmp_path)


@pytest.mark.slow
def test_kernels_and_operators_under_sanitizers(compiler: list[str], tmp_path: Path) -> None:
    skip_without_sanitizers(compiler, SANITIZERS, tmp_path)

    # The program's own loops and the bindings, all templates, are not what is tested.
    headers = [*jit.include_dirs(), *cpp_extension.include_paths(), sysconfig.get_path("include")]
    of_torch = ["-fPIC", "-DTORCH_EXTENSION_NAME=_C", *(f"-isystem{path}" for path in headers)]
    extension_sources = [Path(path) for path in jit.sources()]
    files = {source: [*SANITIZED, *of_torch] for source in extension_sources}
    files |= {jit.CSRC / "bindings.cpp": ["-O0", *of_torch], TEST_PROGRAM: ["-O2"]}
    objects = compile_all(compiler, files, tmp_path)

    program = str(tmp_path / "kernels_test")
    parts = [str(objects[source.stem]) for source in [*KERNEL_SOURCES, TEST_PROGRAM]]
    run([*compiler, *SANITIZERS, *parts, "-o", program], tmp_path)
    assert "buffers heap: " in run([program, "heap"], tmp_path)

    # Another package beside other tests, so that the extension that is installed here is not found.
    shutil.copytree(
        ROOT / "sparseprune", tmp_path / "sparseprune", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    extension = tmp_path / "sparseprune" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    parts = [str(objects[source.stem]) for source in extension_sources]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-lc10", "-ltorch_cpu", "-ltorch"]
    run([*compiler, "-shared", *SANITIZERS, *parts, *libraries, "-o", str(extension)], tmp_path)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu\n    slow\n")
    # libstdc++ too: AddressSanitizer looks for its exceptions when it is loaded, before Python loads any C++.
    preload = [
        run([*compiler, f"-print-file-name={name}"], tmp_path).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    environment = {
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(tmp_path),
        "SPARSEPRUNE_FALLBACK": "0",
    }
    script = "from sparseprune.ops import extension as e; print(e.__file__, *e.available_isas())"
    loaded, _, *slower = run([sys.executable, "-c", script], tmp_path, **environment).split()
    assert loaded == str(extension)
    # The operators are the same code for every instruction set, and the kernels of all are tested above.
    tests = " and not ".join([f"({OPERATOR_TESTS})", *slower])
    # -s: a sanitizer ends the process, and with it what pytest has captured.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-k", tests]
    assert " passed" in run([*command, *TEST_FILES], tmp_path, **environment)
