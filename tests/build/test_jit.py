import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparseprune import ops
from sparseprune.build import jit, nvcc

ROOT = Path(__file__).resolve().parents[2]

# The extension that is installed here must not be found by the copy of the source tree.
PRELUDE = """
import copy, json, sys, warnings
import bounds
sys.modules["sparseprune._C"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import sparseprune as sp
import torch

torch.manual_seed(0)
layer = sp.SparseLinear.from_dense(torch.nn.Linear(70, 50), torch.rand(50, 70) < 0.3)
x = torch.randn(33, 70, requires_grad=True)

def step():
    y = layer(x)
    mask, = sp.topk_masks([y], 100)
    return [y, mask.float(), *torch.autograd.grad(y.square().sum(), [x, layer.values, layer.bias])]

def report(**facts):
    print(json.dumps({"backend": sp.ops.info()["backend"], **facts}))

before = step()
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree that was never built."""
    if not jit.sources():
        pytest.skip("the sources are not beside the package")
    for folder in ("csrc", "sparseprune"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    return tmp_path


def run(tree: Path, code: str, **environment: str) -> Any:
    """What the code prints as JSON in its last line, run with the tree's package."""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tree / "built")],
        cwd=tree,
        env={
            **os.environ,
            "PYTHONPATH": f"{tree}{os.pathsep}{ROOT / 'tests'}",
            "SPARSEPRUNE_FALLBACK": "0",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


FAILS = (
    PRELUDE
    + """
try:
    sp.jit.load(sys.argv[1])
except Exception as caught_error:
    error = caught_error
after = step()
same = all(torch.equal(a, b) for a, b in zip(before, after))
report(error=type(error).__name__, message=str(error), same=same)
"""
)


def test_import_without_extension_warns_once_and_works(tree: Path) -> None:
    facts = run(
        tree,
        PRELUDE
        + """
expected = bounds.of_layer(layer.to_dense(), x, torch.zeros_like(before[0]))
bounds.assert_sums(before[0], expected["y"])
report(file=sp.__file__,
       warnings=[[w.category.__name__, str(w.message)] for w in caught])
""",
    )
    assert Path(facts["file"]).parent.parent == tree
    assert facts["backend"] == "plain torch (fallback)"
    ((category, message),) = facts["warnings"]
    assert category == "RuntimeWarning"
    assert message.startswith("sparseprune: the C++ extension is not available (")
    assert "everything works in plain torch" in message
    assert message.endswith("`pip install -e . --no-build-isolation`, or call sparseprune.jit.load()")


@pytest.mark.slow
def test_load_builds_once_and_agrees_with_plain_torch(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        PRELUDE
        + """
module = sp.jit.load(sys.argv[1])
layer = copy.deepcopy(layer)  # with plans of the operators that are in use now
after = step()
has = torch._C._dispatch_has_kernel_for_dispatch_key
names = [f"sparseprune::{function.__name__}" for function in sp.ops.plain.SCHEMAS]
for a, b in zip(before, after):
    bounds.assert_half_the_digits(a, b)
report(name=module.__name__, isas=module.available_isas(), again=sp.jit.load() is module,
       cuda=module.has_cuda(), build=module.build_info(),
       missing=[name for name in names if not has(name, "CUDA")])
"""
    )
    monkeypatch.delenv("USE_CUDA", raising=False)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")  # one is enough here
    facts = run(tree, code)
    assert facts["cuda"] is (nvcc.find() is not None)
    assert facts["missing"] == []  # in plain torch where there is no nvcc
    if facts["cuda"]:
        assert re.fullmatch(r"\d+\.\d+", facts["build"]["cuda"])
        assert facts["build"]["cuda_architectures"] == "sm_80"
    assert facts["backend"] == facts["name"] == "sparseprune_jit"
    assert "scalar" in facts["isas"]
    assert facts["again"]
    built = {path.name: path.stat().st_mtime_ns for path in (tree / "built").glob("*.[so]*")}
    assert "sparseprune_jit.so" in built
    assert run(tree, code) == facts
    assert built == {path.name: path.stat().st_mtime_ns for path in (tree / "built").glob("*.[so]*")}


@pytest.mark.parametrize("environment", [{"CXX": "/nonexistent/g++"}, {"PATH": "/nonexistent", "CXX": "g++"}])
def test_load_without_a_compiler_says_so_and_leaves_plain_torch(
    environment: dict[str, str], tree: Path
) -> None:
    facts = run(tree, FAILS, **environment)
    assert facts["error"] == "RuntimeError"
    message = (
        f"jit.load: expected a C++ compiler, found no {environment['CXX']!r}; install one (such as g++), or"
    )
    assert facts["message"].startswith(message)
    assert facts["backend"] == "plain torch (fallback)"
    assert facts["same"]


def test_load_that_cannot_compile_leaves_plain_torch(tree: Path) -> None:
    for source in (tree / "csrc").rglob("*.cpp"):
        source.unlink()
    (tree / "csrc" / "ops.cpp").write_text("#error this cannot be compiled\n")
    facts = run(tree, FAILS, USE_CUDA="0")
    assert facts["error"] == "RuntimeError"
    assert "Error building extension 'sparseprune_jit'" in facts["message"]
    assert "this cannot be compiled" in facts["message"]
    assert facts["backend"] == "plain torch (fallback)"
    assert facts["same"]


def test_load_that_cannot_compile_cuda_leaves_plain_torch(tree: Path) -> None:
    (tree / "bin").mkdir()
    nvcc = tree / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho this compiler has no licence\nexit 1\n")
    nvcc.chmod(0o755)
    facts = run(tree, FAILS, CUDA_HOME=str(tree), USE_CUDA="auto")
    assert facts["error"] == "RuntimeError"
    assert "this compiler has no licence" in facts["message"]
    assert "Build without CUDA with USE_CUDA=0" in facts["message"]
    assert facts["backend"] == "plain torch (fallback)"
    assert facts["same"]


def test_load_names_a_stale_lock(tree: Path) -> None:
    lock = tree / "built" / "lock"
    lock.parent.mkdir()
    lock.touch()
    facts = run(tree, FAILS)
    assert facts["error"] == "RuntimeError"
    assert facts["message"] == (
        f"jit.load: {lock} exists: another build is running, or one was killed; "
        "wait for the other build, or delete that file and call again"
    )
    assert facts["same"]


def test_load_without_sources_says_what_to_do(tree: Path) -> None:
    shutil.rmtree(tree / "csrc")
    facts = run(tree, FAILS)
    assert facts["error"] == "FileNotFoundError"
    assert facts["message"] == (
        f"jit.load: expected C++ sources in {tree / 'csrc'}, found none; "
        "clone the repository, or install a wheel that holds the compiled extension"
    )
    assert facts["same"]


def test_load_returns_the_extension_in_use(needs_extension: None, tmp_path: Path) -> None:
    assert jit.load(tmp_path) is ops.extension
    assert not list(tmp_path.iterdir())
