"""CUDA kernels without a GPU: run on the CPU by ``simt/simt.h``, and compiled by nvcc where there is one."""

import re
import shutil
from pathlib import Path

import pytest
from compiling import attempt, cxx, run, skip_without_sanitizers
from torch.utils import cpp_extension

from sparseprune import jit

SIMT = Path(__file__).resolve().parent / "simt"
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREAD = ["-fsanitize=thread"]

# What is planted, and what must be said of it: by the address and undefined-behaviour sanitizers, and by the
# thread sanitizer. None: it cannot see that.
BUGS = {
    "no_barrier": ("wrong result", "data race"),
    "no_warp_barrier": ("wrong result", "data race"),
    "between_blocks": (None, "data race"),
    "beyond": ("out of bounds", "wrong result"),
    "unset": ("wrong result", "wrong result"),
    "misaligned": ("misaligned address", None),
    "divergent": ("threads wait for others", "threads wait for others"),
    "left_early": ("threads wait for others", "threads wait for others"),
    "not_waited": ("wrong result", "data race"),
}


def build(name: str, flags: list[str], folder: Path) -> str:
    compiler = cxx()
    skip_without_sanitizers(compiler, flags, folder)
    headers = [f"-I{jit.CSRC}", f"-I{SIMT}", *(f"-isystem{path}" for path in cpp_extension.include_paths())]
    program = str(folder / name)
    options = [
        "-std=c++20",
        "-O1",
        "-g1",
        "-Wall",
        "-Wno-unknown-pragmas",
        "-Wno-maybe-uninitialized",
        *flags,
        *headers,
    ]
    run([*compiler, *options, str(SIMT / f"{name}.cpp"), "-o", program], folder)
    return program


@pytest.mark.slow
def test_kernels_against_double_precision_under_address_sanitizer(tmp_path: Path) -> None:
    program = build("kernels_test", ADDRESS, tmp_path)
    assert " numbers checked" in run([program, "0", "1"], tmp_path)


@pytest.mark.slow
def test_kernels_have_no_races(tmp_path: Path) -> None:
    program = build("kernels_test", THREAD, tmp_path)
    assert " numbers checked" in run([program, "brief", "0"], tmp_path)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_planted_bugs_are_found(sanitizer: str, tmp_path: Path) -> None:
    program = build("planted", ADDRESS if sanitizer == "address" else THREAD, tmp_path)
    run([program, "none"], tmp_path)
    for bug, expected in BUGS.items():
        words = expected[sanitizer == "thread"]
        if words is None:
            continue
        result = attempt([program, bug], tmp_path)
        assert result.returncode != 0, bug
        assert words in result.stdout, f"{bug}: expected {words!r} in\n{result.stdout[-4000:]}"


# ---- what nvcc says ----

ARCHITECTURES = ("80", "90", "100", "120")
# Of a block of 128 or 256 threads: what leaves room for four of them and more on a multiprocessor.
MOST_REGISTERS, MOST_SHARED = 128, 18 * 1024


@pytest.fixture
def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("there is no nvcc on the PATH")
    return found


@pytest.mark.slow
def test_kernels_compile_within_their_budgets(nvcc: str, tmp_path: Path) -> None:
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    command = [nvcc, "-std=c++17", "-O3", f"-I{jit.CSRC}", *targets, "--threads=2", "-Xptxas=-v", "-c"]
    said = run([*command, str(SIMT / "instances.cu"), "-o", str(tmp_path / "instances.o")], tmp_path)
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)\w*'", said)
    assert {architecture for _, architecture in kernels} == set(ARCHITECTURES)
    for kernel in said.split("Compiling entry function ")[1:]:
        name = kernel.split("'")[1]
        used = re.search(r"Used (\d+) registers", kernel)
        shared = re.search(r"(\d+) bytes smem", kernel)
        assert ", 0 bytes spill stores, 0 bytes spill loads" in kernel, f"{name} spills"
        assert used is not None, name
        assert int(used[1]) <= MOST_REGISTERS, f"{name}: {used[1]} registers"
        assert shared is None or int(shared[1]) <= MOST_SHARED, f"{name}: {shared[1] if shared else 0} bytes"


@pytest.mark.slow
def test_wide_loads_are_in_the_ptx(nvcc: str, tmp_path: Path) -> None:
    ptx = tmp_path / "instances.ptx"
    command = [nvcc, "-std=c++17", "-O3", f"-I{jit.CSRC}", "-arch=compute_80", "-ptx"]
    run([*command, str(SIMT / "instances.cu"), "-o", str(ptx)], tmp_path)
    found = 0
    for entry in ptx.read_text().split(".entry ")[1:]:
        name = entry.split("(")[0].strip()
        # Names hold the template's arguments: the type, V, and how many numbers are loaded at once.
        kernel = re.search(r"(?:spmm_kernel|sddmm_kernel)I(.*?)Li\d+ELi(\d+)E", name)
        if kernel is not None and kernel[2] != "1":
            found += 1
            words = int(kernel[2]) * (4 if kernel[1] == "f" else 2) // 4
            assert f"ld.global.v{words}." in entry, f"{name} loads no {words} words at once"
    assert found > 40
