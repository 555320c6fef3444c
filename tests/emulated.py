"""The operators' tests on an emulated aarch64 processor: ``make test-aarch64``.

The extension is cross-compiled as for the wheels, Debian's packages bring a Python for arm64, PyPI torch and
numpy for it, and QEMU runs them. Nothing is installed outside ``build/aarch64``. Importing torch alone takes
half a minute there, so all tests run in one process. Other arguments than these go to pytest:

    python tests/emulated.py tests/nn/test_batch_norm.py -k neon
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sparseprune.build import wheels

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "aarch64"
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
COMMANDS = {
    "qemu-aarch64": "qemu-user",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "apt-get": "apt",
    "dpkg": "dpkg",
}
# The oldest one that is supported: its wheel for aarch64 is without CUDA, that of 2.13 is not.
TORCH = "torch==2.10.0"
NEEDED_BY_TORCH = ("typing-extensions", "sympy", "networkx", "jinja2", "fsspec")
PINNED = ("numpy", "filelock", "safetensors", "pytest", "hypothesis", "expecttest")
# A processor without SVE: torch then computes with NEON too, which takes half of the time.
EMULATOR = ("qemu-aarch64", "-cpu", "neoverse-n1")
# 12 minutes. Left out are the scalar kernels, the same text for every processor, and what takes minutes for a
# test: layers of millions of weights, torch's own checks.
TESTS = (
    "tests/ops/test_linear_ops.py",
    "tests/ops/test_linear_autograd.py",
    "tests/ops/test_conv_ops.py",
    "tests/ops/test_conv_autograd.py",
    "tests/ops/test_batch_norm_ops.py",
    "tests/ops/test_topk_outside.py",
    "tests/select/test_masks.py",
    "-k=(neon or topk) and not 2100 and not 2600 and not opcheck",
)


def run(*command: object, **environment: str) -> None:
    words = [str(word) for word in command]
    if subprocess.run(words, env={**os.environ, **environment}).returncode != 0:
        sys.exit(f"{shlex.join(words)} failed")


def unpack_debian(folder: Path) -> None:
    """A Python for arm64 and its libraries. Apt gets folders of its own, since dpkg must not know of them."""
    state, cache = folder.with_name("apt") / "state", folder.with_name("apt") / "cache"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    configuration = state / "apt.conf"
    configuration.write_text(
        f'Dir::State "{state}";\nDir::State::status "{state / "status"}";\nDir::Cache "{cache}";\n'
        'APT::Architecture "arm64";\nAPT::Architectures {"arm64";};\nAPT::Sandbox::User "";\n'
    )
    apt = ("apt-get", "-qq")
    run(*apt, "update", APT_CONFIG=str(configuration))
    packages = (PYTHON, "libstdc++6", "libgomp1", "zlib1g")
    run(
        *(*apt, "install", "--yes", "--no-install-recommends", "--download-only", *packages),
        APT_CONFIG=str(configuration),
    )
    for package in sorted((cache / "archives").glob("*.deb")):
        run("dpkg", "-x", package, folder)


def install(folder: Path) -> None:
    """Torch, and what it and the tests need, from PyPI's wheels for aarch64."""
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", folder)
    tags = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
    platforms = [word for tag in tags for word in ("--platform", f"{tag}_aarch64")]
    only = (*pip, *platforms, "--only-binary=:all:", "--python-version", PYTHON.removeprefix("python"))
    # Markers of what torch requires would be those of this processor.
    run(*only, "--no-deps", TORCH)
    lines = [
        line
        for name in ("requirements-demo.txt", "requirements-dev.txt")
        for line in (ROOT / name).read_text().splitlines()
    ]
    run(*only, *NEEDED_BY_TORCH, *(line for line in lines if line.partition("==")[0] in PINNED))


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made where it is not yet, or not to the end."""
    done = folder.with_name(f"{folder.name}-is-there")
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        make(folder)
        done.touch()
    return folder


def compile_package(folder: Path) -> None:
    """The package with an extension for aarch64, and the tests beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        ROOT / "sparseprune", folder / "sparseprune", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    python = wheels.ask(sys.executable)
    if python is None:
        sys.exit(f"{sys.executable}: expected the headers of this Python; install Debian's {PYTHON}-dev")
    compiler = wheels.Compiler("aarch64", folder / "objects")
    compiler.compile_all()
    compiler.extension(python, folder / "sparseprune")


def main() -> None:
    for command, package in COMMANDS.items():
        if shutil.which(command) is None:
            sys.exit(f"test-aarch64: there is no {command}; install Debian's {package}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    system = once(FOLDER / "system", unpack_debian)
    packages = once(FOLDER / "packages", install)
    package = FOLDER / "package"
    compile_package(package)
    # As a command, so that tests can start Python anew.
    python = FOLDER / "python"
    words = (*EMULATOR, "-L", system, "-E", f"PYTHONHOME={system / 'usr'}", "-0")
    start = shlex.join(map(str, words))
    python.write_text(
        f'#!/bin/sh\nexec {start} "$0" {shlex.quote(str(system / "usr" / "bin" / PYTHON))} "$@"\n'
    )
    python.chmod(0o755)
    os.chdir(package)
    os.environ |= {
        "PYTHONPATH": os.pathsep.join([str(package), str(packages)]),
        "SPARSEPRUNE_FALLBACK": "0",
        "OMP_NUM_THREADS": "1",
    }
    os.execv(python, [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *(sys.argv[1:] or TESTS)])


if __name__ == "__main__":
    main()
