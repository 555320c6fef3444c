"""Build the extension: the list of C++ sources and flags, and a just-in-time build for a source tree.

``setup.py`` reads ``sources`` and ``CXX_FLAGS`` from here: both builds compile the same files the same way.
The CUDA part is in :mod:`sparseprune.build.nvcc`.
This module imports nothing of the package (``setup.py`` runs it alone).
"""

import os
import shlex
import shutil
import sysconfig
from pathlib import Path
from typing import Any

CSRC = Path(__file__).resolve().parents[2] / "csrc"

# No -march=native and no -ffast-math: each instruction set has a file of its own, chosen at run time, and
# results must not depend on the machine that compiled them. TORCH_TARGET_VERSION: stable ABI of torch 2.10.
CXX_FLAGS = [
    "-O3",
    "-std=c++20",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-maybe-uninitialized",  # false alarms inside gcc's own AVX-512 headers (gcc bug 105593)
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]


def sources() -> list[str]:
    """Paths of all C++ files of the extension, sorted; no two have one name, since torch names objects so."""
    return sorted(str(path) for path in CSRC.rglob("*.cpp"))


def include_dirs() -> list[str]:
    """Header folders: pybind11's own come before the copy that torch ships."""
    import pybind11

    return [pybind11.get_include(), str(CSRC)]


def load(build_directory: str | os.PathLike[str] | None = None, verbose: bool = False) -> Any:
    """Compile ``csrc/`` with :func:`torch.utils.cpp_extension.load` and use it for ``torch.ops.sparseprune``.

    For a source tree that was never installed; with CUDA where nvcc is found (:mod:`sparseprune.build.nvcc`).
    Where an extension is loaded already, built or just in time, it is returned; a later process finds the
    compiled file in the cache and only loads it. Call it before making sparse layers: those made in plain
    torch lack what the kernels need, and only a deepcopy gets it.

    Args:
        build_directory: cache folder; torch's own cache (``TORCH_EXTENSIONS_DIR``) when None.
        verbose: print the compiler's commands.
    Returns:
        the extension module, as ``sparseprune._C``.
    Raises:
        FileNotFoundError: the C++ sources are not beside the package (it was installed from a wheel).
        RuntimeError: there is no compiler, or it failed, or a stale lock file is in the cache folder.
        ValueError: an environment variable of :mod:`sparseprune.build.nvcc` has another value than expected.
    """
    from sparseprune.ops import library

    if library.extension is not None:
        return library.extension
    if not sources():
        raise FileNotFoundError(
            f"jit.load: expected C++ sources in {CSRC}, found none; "
            "clone the repository, or install a wheel that holds the compiled extension"
        )
    from torch.utils import cpp_extension

    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(shlex.split(compiler)[0]) is None:
        raise RuntimeError(
            f"jit.load: expected a C++ compiler, found no {compiler!r}; install one (such as g++), or "
            "name one with the environment variable CXX"
        )
    # Installed beside a python whose folder is not on the PATH.
    if shutil.which("ninja") is None:
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    name = "sparseprune_jit"
    folder = (
        Path(build_directory) if build_directory is not None else Path(cpp_extension.get_default_build_root())
    )
    folder = folder / name if build_directory is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / "lock"
    if lock.exists():
        raise RuntimeError(
            f"jit.load: {lock} exists: another build is running, or one was killed; "
            "wait for the other build, or delete that file and call again"
        )
    from sparseprune.build import nvcc

    cuda = nvcc.compile(folder / "cuda", verbose)
    # Torch looks for changes of C++ sources and of flags only.
    cuda_flags = [f"{flag}={cuda.digest}" for flag in cuda.cxx_flags]
    with library.replaced_library():
        module = cpp_extension.load(
            name,
            sources(),
            extra_cflags=[*CXX_FLAGS, *cuda_flags],
            extra_ldflags=[*cuda.objects, *cuda.link_flags],
            extra_include_paths=include_dirs(),
            build_directory=str(folder),
            verbose=verbose,
        )
    library.extension = module
    return module
