"""Build of the C++ extension. Metadata is in pyproject.toml; sources and flags are in sparseprune/jit.py."""

import os
import runpy
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).resolve().parent
build = runpy.run_path(str(ROOT / "sparseprune" / "jit.py"))

setup(
    ext_modules=[
        CppExtension(
            "sparseprune._C",
            [os.path.relpath(path, ROOT) for path in build["sources"]()],
            include_dirs=build["include_dirs"](),
            extra_compile_args=build["CXX_FLAGS"],
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)},
)
