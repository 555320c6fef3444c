"""An sdist holds everything that a build needs, and a wheel built from it works where no source tree is."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sparseprune.build import nvcc

ROOT = Path(__file__).resolve().parents[2]


def test_workflows_call_targets_of_the_makefile() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    if not workflows:
        pytest.skip("an sdist has no workflows")
    text = "".join(path.read_text() for path in workflows)
    called = set(re.findall(r"run: make ([\w-]+)", text))
    called |= set(re.findall(r"[\w-]+", re.search(r"target: \[(.*)\]", text)[1]))
    assert called == {"docs", "lint", "test", "test-slow", "wheels"}
    rules = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert called <= rules


@pytest.mark.slow
def test_sdist_builds_a_wheel_that_works(tmp_path: Path) -> None:
    # CUDA kernels are built where there is nvcc, though `make test-slow` installs the extension without.
    others = {name: value for name, value in os.environ.items() if name != "USE_CUDA"}

    def python(*arguments: str, cwd: Path) -> str:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            # For one GPU, if there is nvcc: it takes long.
            env={**others, "SPARSEPRUNE_FALLBACK": "0", "TORCH_CUDA_ARCH_LIST": "8.0"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    clean = tmp_path / "clean"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).is_file():
            (clean / name).parent.mkdir(parents=True, exist_ok=True)
            (clean / name).write_bytes((ROOT / name).read_bytes())
    python("setup.py", "-q", "sdist", "--dist-dir", str(tmp_path), cwd=clean)
    (archive,) = tmp_path.glob("*.tar.gz")
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "-xf", str(archive), "-C", str(tmp_path / "unpacked")], check=True)
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    sources = {
        p.relative_to(clean) for p in (clean / "csrc").rglob("*") if p.suffix in (".cpp", ".h", ".cuh", ".cu")
    }
    assert sources <= {p.relative_to(unpacked) for p in unpacked.rglob("*")}

    python("setup.py", "-q", "bdist_wheel", "--dist-dir", str(tmp_path), cwd=unpacked)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import bounds, torch, sparseprune as sp\n"
        "assert sp.__file__.startswith(sys.argv[1]) and sp.ops.extension is not None\n"
        "layer = sp.SparseLinear.from_dense(torch.nn.Linear(20, 30), torch.rand(30, 20) < 0.5)\n"
        "x = torch.randn(5, 20)\n"
        "y = layer(x)\n"
        "bounds.assert_sums(y, bounds.of_layer(layer.to_dense(), x, y)['y'])\n"
        "print(sp.ops.info()['cuda_compiled'])"
    )
    path = [str(tmp_path / "installed"), str(ROOT / "tests")]
    assert python("-c", script, *path, cwd=tmp_path) == f"{nvcc.find() is not None}\n"
