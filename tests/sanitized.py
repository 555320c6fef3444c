"""The extension compiled with the address and undefined-behaviour sanitizers, beside a copy of the tests."""

import os
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compiling import run
from torch.utils import cpp_extension

from sparseprune.build import jit

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Without optimisation nothing that is wrong is optimised away, and it compiles in half of the time of -O1.
# Sums that wrap around are not defined here, so that the sanitizer reports them.
SANITIZED = ["-O0", "-g1", "-fno-wrapv", *SANITIZERS]


def compile_all(compiler: list[str], files: dict[Path, list[str]], folder: Path) -> dict[str, Path]:
    """Objects by the names of their sources, which have flags of their own; a process for each core.

    A warning is an error.
    """

    def compile_one(source: Path) -> Path:
        result = folder / f"{source.stem}.o"
        flags = [*jit.CXX_FLAGS, *jit.WARNINGS, *files[source], f"-I{jit.CSRC}"]
        run([*compiler, *flags, "-c", str(source), "-o", str(result)], folder)
        return result

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip([source.stem for source in files], pool.map(compile_one, files), strict=True))


def flags_of_torch() -> list[str]:
    """What a source of the extension is compiled with besides, as torch's own builds do."""
    headers = [*jit.include_dirs()[:1], *cpp_extension.include_paths(), sysconfig.get_path("include")]
    return ["-fPIC", "-DTORCH_EXTENSION_NAME=_C", *(f"-isystem{path}" for path in headers)]


def build(compiler: list[str], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Compile the extension into a copy of the package, and copy the tests beside it.

    Returns:
        the objects by the names of their sources, and the environment in which Python uses the extension.
    """
    # The bindings, all templates, are not what is tested.
    files = {Path(path): [*SANITIZED, *flags_of_torch()] for path in jit.sources()}
    files |= {jit.CSRC / "bindings.cpp": ["-O0", *flags_of_torch()]}
    objects = compile_all(compiler, files, folder)

    # Another package beside other tests, so that the extension that is installed here is not found.
    shutil.copytree(
        ROOT / "sparseprune", folder / "sparseprune", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    extension = folder / "sparseprune" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-lc10", "-ltorch_cpu", "-ltorch"]
    parts = map(str, objects.values())
    run([*compiler, "-shared", *SANITIZERS, *parts, *libraries, "-o", str(extension)], folder)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu\n    slow\n")
    # libstdc++ too: AddressSanitizer looks for its exceptions when it is loaded, before Python loads any C++.
    preload = [
        run([*compiler, f"-print-file-name={name}"], folder).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    environment = {
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(folder),
        "SPARSEPRUNE_FALLBACK": "0",
    }
    script = "from sparseprune.ops import extension as e; print(e.__file__)"
    assert run([sys.executable, "-c", script], folder, **environment).strip() == str(extension)
    return objects, environment
