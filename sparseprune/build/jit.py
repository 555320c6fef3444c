"""Build the extension: the list of C++ sources and flags, and a just-in-time build for a source tree.

``setup.py`` reads sources and flags from here: both builds compile the same files the same way.
The CUDA part is in :mod:`sparseprune.build.nvcc`.
This module imports nothing of the package (``setup.py`` runs it alone).
"""

import contextlib
import logging
import os
import shlex
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "sparseprune_jit"
CSRC = Path(__file__).resolve().parents[2] / "csrc"

log = logging.getLogger(__name__)

# No -march=native and no -ffast-math: each instruction set has a file of its own, chosen at run time, and
# results must not depend on the machine that compiled them. TORCH_TARGET_VERSION: stable ABI of torch 2.10.
# Python brings flags of its own to setup.py, and none to a just-in-time build: those that matter are named.
CXX_FLAGS = [
    "-O3",
    "-fwrapv",
    "-DNDEBUG",
    "-g0",
    "-std=c++20",
    "-fvisibility=hidden",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]
# Who installs the library cannot do anything about a warning; in the tests' builds it is an error.
NO_WARNINGS = ["-w"]
WARNINGS = [
    "-Wall",
    "-Werror",
    "-Wno-unknown-warning-option",
    "-Wno-uninitialized",  # false alarms inside gcc's own AVX-512 headers (gcc bug 105593)
    "-Wno-maybe-uninitialized",
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
    compiled file in the cache and only loads it, and one that comes while another builds waits. Call it
    before making sparse layers: those made in plain torch lack what the kernels need, and only a deepcopy
    gets it.

    Args:
        build_directory: cache folder; torch's own cache (``TORCH_EXTENSIONS_DIR``) when None.
        verbose: print the compiler's commands.
    Returns:
        the extension module, as ``sparseprune._C``.
    Raises:
        FileNotFoundError: the C++ sources are not beside the package (it was installed from a wheel), or
            USE_CUDA=1 and there is no nvcc.
        RuntimeError: there is no compiler, or it failed, or the cache folder cannot be written to.
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
    if not _is_command(compiler):
        raise RuntimeError(
            f"jit.load: expected a C++ compiler, found no {compiler!r}; install one (such as g++), or "
            "name one with the environment variable CXX"
        )
    # Installed beside a python whose folder is not on the PATH.
    if shutil.which("ninja") is None:
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    if build_directory is None:
        root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
        folder = Path(root) / NAME
    else:
        folder = Path(build_directory)
    with _alone(folder), library.replaced_library():
        module = _built(folder.resolve(), verbose)
    library.extension = module
    return module


def _is_command(text: str) -> bool:
    """Whether it is a program, with arguments or without."""
    try:
        first = shlex.split(text)[:1]
    except ValueError:
        first = []
    return any(shutil.which(program) is not None for program in [text, *first])


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder, and wait until no other process builds in it; one that was killed does not."""
    # setup.py runs this file where filelock need not be installed.
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / "sparseprune.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            log.warning("jit.load: another process builds in %s; waiting for it", folder)
            lock.acquire(timeout=-1)
    except OSError as error:
        raise RuntimeError(
            f"jit.load: cannot write to the build folder {folder} ({error.strerror or error}); "
            "name another one as build_directory, or in TORCH_EXTENSIONS_DIR"
        ) from error
    try:
        # Torch's own lock, left by a build that was killed: it would be waited for for ever.
        (folder / "lock").unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _built(folder: Path, verbose: bool) -> Any:
    """Compile what has changed, and load it; RuntimeError or ValueError where that fails."""
    from torch.utils import cpp_extension

    from sparseprune.build import nvcc

    cuda = nvcc.compile(folder / "cuda", verbose)
    # Torch looks for changes of C++ sources and of flags only.
    cuda_flags = [f"{flag}={cuda.digest}" for flag in cuda.cxx_flags]
    try:
        return cpp_extension.load(
            NAME,
            sources(),
            extra_cflags=[*CXX_FLAGS, *NO_WARNINGS, *cuda_flags],
            # A shell reads them; torch quotes the others.
            extra_ldflags=[*map(shlex.quote, cuda.objects), *cuda.link_flags],
            extra_include_paths=include_dirs(),
            build_directory=str(folder),
            verbose=verbose,
        )
    except BaseException as error:
        # Torch takes it for built now: the next call would load what is not there.
        cpp_extension.JIT_EXTENSION_VERSIONER.entries.pop(NAME, None)
        if isinstance(error, RuntimeError) or not isinstance(error, Exception):
            raise
        if isinstance(error, ImportError):
            # So that the next call compiles all of it anew.
            (folder / ".ninja_log").unlink(missing_ok=True)
        raise RuntimeError(
            f"jit.load: {cpp_extension.get_cxx_compiler()} built nothing in {folder} that can be loaded "
            f"({type(error).__name__}: {error}); name another compiler with the environment variable CXX"
        ) from error
