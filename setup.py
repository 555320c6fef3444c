"""Build of the extension. Metadata is in pyproject.toml, sources and flags in sparseprune/build."""

import os
import runpy
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).resolve().parent
cxx = runpy.run_path(str(ROOT / "sparseprune" / "build" / "jit.py"))
nvcc = runpy.run_path(str(ROOT / "sparseprune" / "build" / "nvcc.py"))


class Build(BuildExtension):
    def build_extensions(self) -> None:
        (extension,) = self.extensions
        cuda = nvcc["compile"](Path(self.build_temp) / "cuda")
        extension.extra_objects += cuda.objects
        extension.extra_link_args += cuda.link_flags
        extension.extra_compile_args += cuda.cxx_flags
        super().build_extensions()


setup(
    ext_modules=[
        CppExtension(
            "sparseprune._C",
            [os.path.relpath(path, ROOT) for path in cxx["sources"]()],
            include_dirs=cxx["include_dirs"](),
            extra_compile_args=[*cxx["CXX_FLAGS"], *cxx["NO_WARNINGS"]],
        )
    ],
    cmdclass={"build_ext": Build.with_options(use_ninja=True)},
)
