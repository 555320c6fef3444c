"""Compile the CUDA part of the extension, ``csrc/cuda/**/*.cu``, with nvcc where there is one.

``USE_CUDA`` says whether: ``auto`` (the default: where nvcc is found), ``1`` or ``0``.
``TORCH_CUDA_ARCH_LIST`` says for which GPUs, like ``"8.0;9.0+PTX"``. Neither a GPU nor a CUDA build of torch
is needed: CUDA's runtime is linked in, and the kernels reach torch through its stable ABI.

This module imports nothing of the package (``setup.py`` runs it alone).
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).resolve().parents[2] / "csrc"

# Ampere, Hopper, and Blackwell in data centres and elsewhere; GPUs between them run the one before. The last
# one's PTX is for GPUs to come.
ARCHITECTURES = ("8.0", "9.0", "10.0", "12.0+PTX")
LOWEST = (8, 0)  # cp.async, and mma of bfloat16

FLAGS = [
    "-O3",
    "-std=c++20",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-Xfatbin=-compress-all",  # a quarter smaller
    "-DUSE_CUDA",  # what torch's stable headers want for their CUDA part
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]
LIBRARIES = ["-lcudart_static", "-ldl", "-lpthread", "-lrt", "-Wl,--exclude-libs,libcudart_static.a"]


class CudaPart(NamedTuple):
    """What a build of the extension adds for CUDA: nothing where it is without."""

    objects: list[str]
    link_flags: list[str]
    cxx_flags: list[str]  # for the C++ part

    @property
    def digest(self) -> str:
        """Of the objects' content."""
        return hashlib.sha256(b"".join(Path(path).read_bytes() for path in self.objects)).hexdigest()[:12]


def sources() -> list[str]:
    """Paths of all CUDA files, sorted."""
    return sorted(str(path) for path in (CSRC / "cuda").rglob("*.cu"))


def find() -> str | None:
    """The command of nvcc: of the toolkit in CUDA_HOME or CUDA_PATH, on the PATH, or at the usual place."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            return shutil.which(str(Path(os.environ[name], "bin", "nvcc")))
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def wanted() -> str | None:
    """The nvcc to compile with, or None for a build without CUDA, as ``USE_CUDA`` says.

    Raises:
        ValueError: USE_CUDA is none of auto, 0 and 1.
        FileNotFoundError: it is 1, and there is no nvcc.
    """
    use = os.environ.get("USE_CUDA", "auto").lower()
    if use not in ("auto", "0", "1"):
        raise ValueError(f"USE_CUDA: expected auto, 0 or 1, got {use!r}")
    found = find() if use != "0" else None
    if use == "1" and found is None:
        raise FileNotFoundError(
            "USE_CUDA=1: expected nvcc, of the toolkit that CUDA_HOME names or on the PATH, found none; "
            "install the CUDA toolkit, or build without CUDA (USE_CUDA=0)"
        )
    return found


def targets(nvcc: str) -> list[str]:
    """nvcc's flags for the GPUs in ``TORCH_CUDA_ARCH_LIST``, or those in ``ARCHITECTURES``.

    Raises:
        ValueError: one that is not written like 9.0, too old for the kernels, or not known to this nvcc.
    """
    named = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    known = set(_output([nvcc, "--list-gpu-arch"]).split())
    flags = []
    for name in named or ARCHITECTURES:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if match is None:
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST: expected compute capabilities like 8.0 or 9.0+PTX, got {name!r}"
            )
        major, minor, suffix, ptx = match.groups()
        if (int(major), int(minor)) < LOWEST:
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST: expected compute capabilities of 8.0 (Ampere) or higher, got {name}: "
                "the kernels need its asynchronous copies and tensor cores"
            )
        if f"compute_{major}{minor}" not in known:
            if not named:
                continue
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST: {nvcc} does not know {name}; it knows {', '.join(sorted(known))}"
            )
        number = f"{major}{minor}{suffix}"
        code = f"[sm_{number},compute_{number}]" if ptx else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    return flags


def compile(folder: str | os.PathLike[str], verbose: bool = False) -> CudaPart:
    """The CUDA part of the extension; only what has changed since the last call is compiled anew.

    Args:
        folder: folder that objects go to.
        verbose: print nvcc's commands.
    Raises:
        ValueError, FileNotFoundError: see :func:`wanted` and :func:`targets`.
        RuntimeError: nvcc failed.
    """
    nvcc = wanted()
    if nvcc is None or not sources():
        return CudaPart([], [], [])
    from torch.utils import cpp_extension

    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{CSRC}", *(f"-isystem={path}" for path in cpp_extension.include_paths())]
    command = shlex.join([nvcc, *FLAGS, *targets(nvcc), *includes])
    # As the sources lie in their folders: files of one name do not meet.
    root = CSRC / "cuda"
    objects = {
        source: str(folder / Path(source).relative_to(root).with_suffix(".cuda.o")) for source in sources()
    }
    rules = [
        f"rule nvcc\n  command = {command} -MD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc\n"
    ]
    rules += [f"build {_escaped(to)}: nvcc {_escaped(source)}\n" for source, to in objects.items()]
    (folder / "build.ninja").write_text("\n".join(rules))
    jobs = [f"-j{os.environ['MAX_JOBS']}"] if os.environ.get("MAX_JOBS") else []
    ninja = shutil.which("ninja")
    said = _output(
        [*([ninja] if ninja else [sys.executable, "-m", "ninja"]), *jobs, *(["-v"] if verbose else [])],
        folder,
    )
    if verbose:
        print(said)
    return CudaPart([*objects.values()], [*_library_folders(nvcc), *LIBRARIES], ["-DSPARSEPRUNE_CUDA"])


def _library_folders(nvcc: str) -> list[str]:
    """Where nvcc itself looks for libraries."""
    line = next(line for line in _output([nvcc, "--dryrun", "x.cu"]).splitlines() if "LIBRARIES=" in line)
    return shlex.split(line.partition("LIBRARIES=")[2])


def _escaped(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _output(command: list[str], folder: Path | None = None) -> str:
    result = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise RuntimeError(
            f"{shlex.join(command)} failed:\n{result.stdout[-4000:]}\n"
            "Build without CUDA with USE_CUDA=0, or see the error above"
        )
    return result.stdout
