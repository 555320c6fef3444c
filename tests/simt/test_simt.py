"""CUDA kernels without a GPU: run on the CPU by ``simt/simt.h``, and compiled by nvcc where there is one."""

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from compiling import attempt, cxx, run, skip_without_sanitizers
from torch.utils import cpp_extension

from sparseprune.build import jit, nvcc

ROOT = Path(__file__).resolve().parents[2]
SIMT = ROOT / "tests" / "simt"
# What the CUDA operators use of the C++ part.
SHARED = [jit.CSRC / "ops.cpp", *sorted((jit.CSRC / "common").glob("*.cpp"))]
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


TESTS = sorted(path.stem for path in SIMT.glob("*_test.cpp"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTS)
def test_kernels_against_double_precision_under_address_sanitizer(name: str, tmp_path: Path) -> None:
    program = build(name, ADDRESS, tmp_path)
    assert " numbers checked" in run([program, "0", "1"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTS)
def test_kernels_have_no_races(name: str, tmp_path: Path) -> None:
    program = build(name, THREAD, tmp_path)
    assert " numbers checked" in run([program, "brief", "0"], tmp_path)


@pytest.mark.slow
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


@pytest.mark.slow
def test_operators_on_the_emulator(tmp_path: Path) -> None:
    """What runs on a GPU, ops/test_gpu.py, over the CUDA operators compiled as C++ for the CPU."""
    compiler = cxx()
    headers = [f"-I{jit.CSRC}", f"-I{SIMT}", *(f"-isystem{path}" for path in cpp_extension.include_paths())]
    options = [*jit.CXX_FLAGS, "-O1", "-fPIC", *headers]
    sources = [*SHARED, *map(Path, nvcc.sources())]
    sources = [source for source in sources if source.stem != "build_info"]

    def compile_one(source: Path) -> str:
        result = str(tmp_path / f"{source.stem}.o")
        run([*compiler, *options, "-x", "c++", "-c", str(source), "-o", result], tmp_path)
        return result

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    library = str(tmp_path / "emulated.so")
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-lc10", "-ltorch_cpu", "-ltorch"]
    run([*compiler, "-shared", *objects, *libraries, "-o", library], tmp_path)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(ROOT / "tests" / "ops" / "test_gpu.py"),
    ]
    said = run(command, ROOT, SPARSEPRUNE_FALLBACK="1", SPARSEPRUNE_EMULATED=library)
    assert " passed" in said
    assert not re.search("error|failed", said.splitlines()[-1])


# ---- what nvcc says ----

ARCHITECTURES = {"80", "90", "100", "120"}
# Of a block of threads: what leaves room for four of them and more on a multiprocessor. Tiles of tensor cores
# are staged twice over.
MOST_REGISTERS, MOST_SHARED, MOST_SHARED_BY_TENSOR_CORES = 128, 18 * 1024, 26 * 1024


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("USE_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    path = nvcc.find()
    if path is None:
        pytest.skip("there is no nvcc")
    return path


def compile_with_nvcc(found: str, source: str, *flags: str, folder: Path) -> str:
    headers = [f"-I{jit.CSRC}", *(f"-isystem={path}" for path in cpp_extension.include_paths())]
    return run([found, *nvcc.FLAGS, *headers, *flags, source], folder)


@pytest.mark.slow
@pytest.mark.parametrize("source", nvcc.sources(), ids=lambda source: Path(source).stem)
def test_kernels_stay_within_their_budgets(found: str, source: str, tmp_path: Path) -> None:
    flags = [*nvcc.targets(found), "-Xptxas=-v", "-c", "-o", str(tmp_path / "object.o")]
    said = compile_with_nvcc(found, source, *flags, folder=tmp_path)
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)\w*'", said)
    assert not kernels or {architecture for _, architecture in kernels} == ARCHITECTURES
    assert bool(kernels) == (Path(source).stem in KERNEL_FILES)
    for kernel in said.split("Compiling entry function ")[1:]:
        name = kernel.split("'")[1]
        used = re.search(r"Used (\d+) registers", kernel)
        shared = re.search(r"(\d+) bytes smem", kernel)
        most_shared = MOST_SHARED_BY_TENSOR_CORES if "tensor_cores" in name else MOST_SHARED
        assert ", 0 bytes spill stores, 0 bytes spill loads" in kernel, f"{name} spills"
        assert used is not None, name
        assert int(used[1]) <= MOST_REGISTERS, f"{name}: {used[1]} registers"
        assert shared is None or int(shared[1]) <= most_shared, f"{name}: {shared[1] if shared else 0} bytes"


KERNEL_FILES = {"batch_norm", "conv", "products", "topk"}


def entries(found: str, source: str, folder: Path) -> dict[str, str]:
    """PTX of every kernel of a file, by name. Names hold the template's arguments."""
    ptx = folder / "kernels.ptx"
    path = str(next((jit.CSRC / "cuda").rglob(f"{source}.cu")))
    compile_with_nvcc(found, path, "-arch=compute_80", "-ptx", "-o", str(ptx), folder=folder)
    parts = ptx.read_text().split(".entry ")[1:]
    return {part.split("(")[0].strip(): part for part in parts}


@pytest.mark.slow
def test_wide_loads_are_in_the_ptx(found: str, tmp_path: Path) -> None:
    """Where the template says that N > 1 numbers are loaded and stored at once, they are."""
    checked = 0
    for source in ("products", "conv"):
        for name, code in entries(found, source, tmp_path).items():
            kernel = re.search(r"(spmm_kernel|sddmm_kernel|conv\w*_kernel)I(.*?)Li\d+ELi(\d+)E", name)
            words = int(kernel[3]) * (4 if kernel[2] == "f" else 2) // 4 if kernel is not None else 0
            if words > 1:
                checked += 1
                assert f"ld.global.v{words}." in code or f"ld.global.nc.v{words}." in code, (
                    f"{name} loads no {words} words at once"
                )
                stores = f"st.global.v{words}." in code
                assert stores or "sddmm" in name, f"{name} stores no {words} words at once"
    assert checked > 60


@pytest.mark.slow
def test_tensor_cores_and_asynchronous_copies_are_in_the_ptx(found: str, tmp_path: Path) -> None:
    kernels = {n: code for n, code in entries(found, "products", tmp_path).items() if "tensor_cores" in n}
    assert len(kernels) == 2 * 2 * 2  # SpMM and SDDMM, V = 8 and 16, float16 and bfloat16
    for name, code in kernels.items():
        number = "bf16" if "bfloat16" in name else "f16"
        assert f"mma.sync.aligned.m16n8k16.row.col.f32.{number}.{number}.f32" in code, name
        assert "ldmatrix.sync.aligned.m8n8.x4" in code, name
        assert "cp.async.cg.shared.global" in code, name
