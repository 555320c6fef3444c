import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
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
    """A source tree that was never built, in a folder with a space in its name."""
    if not jit.sources():
        pytest.skip("the sources are not beside the package")
    tree = tmp_path / "a tree"
    for folder in ("csrc", "sparseprune"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tree


def start(tree: Path, code: str, **environment: str) -> subprocess.Popen[str]:
    """A process that runs the code with the tree's package."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(tree / "built")],
        cwd=tree,
        env={
            **os.environ,
            "PYTHONPATH": f"{tree}{os.pathsep}{ROOT / 'tests'}",
            "SPARSEPRUNE_FALLBACK": "0",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> Any:
    """What it prints as JSON in its last line."""
    with process:
        output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


def run(tree: Path, code: str, **environment: str) -> Any:
    """What the code prints as JSON in its last line, run with the tree's package."""
    return end(start(tree, code, **environment))


def compiler(tree: Path, script: str) -> str:
    """A program in place of the compiler, for CXX; sources that take no time to read."""
    for source in (tree / "csrc").rglob("*.cpp"):
        source.unlink()
    (tree / "csrc" / "ops.cpp").write_text("#error this cannot be compiled\n")
    program = tree / "a compiler"
    program.write_text(
        f'#!/bin/sh\ncase "$1" in -v) echo clang version;; -dump*) echo 20.0.0;; *) {script};; esac\n'
    )
    program.chmod(0o755)
    return str(program)


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
import os
compiler = os.environ.pop("CXX", None)
os.environ["CXX"] = "false"
try:
    sp.jit.load(sys.argv[1])
except RuntimeError as error:
    assert "jit.load: false built nothing" in str(error), error
else:
    raise AssertionError("loaded what was not built")
assert before[0].equal(step()[0])
# In the same process, after a compile that failed and, as its kill leaves it, with torch's lock.
del os.environ["CXX"]
if compiler is not None:
    os.environ["CXX"] = compiler
open(os.path.join(sys.argv[1], "lock"), "x").close()
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


@pytest.mark.parametrize(
    "environment",
    [
        {"CXX": "/nonexistent/g++"},
        {"PATH": "/nonexistent", "CXX": "g++"},
        {"CXX": ""},
        {"CXX": "'g++"},
        {"CXX": "/"},
    ],
)
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


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 1", "Error building extension 'sparseprune_jit'"),
        ("true", "built nothing in .* that can be loaded"),
        ("touch sparseprune_jit.so ops.o", "built nothing in .* that can be loaded"),
    ],
)
def test_load_with_a_wrong_compiler_says_so(tree: Path, script: str, message: str) -> None:
    facts = run(tree, FAILS, CXX=compiler(tree, script), USE_CUDA="0")
    assert facts["error"] == "RuntimeError"
    assert re.search(message, facts["message"])
    assert facts["backend"] == "plain torch (fallback)"
    assert facts["same"]


def test_load_with_what_is_no_compiler_says_so(tree: Path) -> None:
    facts = run(tree, FAILS, CXX="false", USE_CUDA="0")
    assert facts["error"] == "RuntimeError"
    assert facts["message"].startswith("jit.load: false built nothing in ")
    assert facts["same"]


def test_load_into_what_is_no_folder_says_so(tree: Path) -> None:
    (tree / "built").touch()
    facts = run(tree, FAILS, USE_CUDA="0")
    assert facts["error"] == "RuntimeError"
    assert facts["message"] == (
        f"jit.load: cannot write to the build folder {tree / 'built'} (File exists); "
        "name another one as build_directory, or in TORCH_EXTENSIONS_DIR"
    )
    assert facts["same"]


def test_load_waits_for_another_process_and_not_for_one_that_was_killed(tree: Path) -> None:
    """With a compiler that tells when it works, for as long as there is a file."""
    times, hold = tree / "times", tree / "hold"
    script = (
        f'echo begin >> "{times}"; while [ -e "{hold}" ]; do sleep 0.05; done; echo end >> "{times}"; exit 1'
    )
    environment = {"CXX": compiler(tree, script), "USE_CUDA": "0"}
    hold.touch()
    killed = start(tree, FAILS, **environment)
    wait_for(lambda: times.exists())
    second = start(tree, FAILS, **environment)
    # It says that it waits.
    assert second.stderr is not None
    line = second.stderr.readline()
    assert line == f"jit.load: another process builds in {tree / 'built'}; waiting for it\n"
    assert times.read_text() == "begin\n"
    assert (tree / "built" / "lock").exists()
    killed.kill()
    killed.communicate()
    wait_for(lambda: times.read_text() == "begin\nbegin\n")
    third = start(tree, FAILS, **environment)
    assert third.stderr is not None
    assert "waiting for it" in third.stderr.readline()
    hold.unlink()
    for process in (second, third):
        facts = end(process)
        assert facts["error"] == "RuntimeError"
        assert "Error building extension 'sparseprune_jit'" in facts["message"]
        assert facts["same"]
    # The killed one's compiler ends by itself; the other two took turns.
    wait_for(lambda: times.read_text().count("end\n") == 3)
    assert times.read_text().endswith("begin\nend\n")
    assert not (tree / "built" / "lock").exists()


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_load_builds_in_the_folder_of_torch(tree: Path) -> None:
    code = FAILS.replace("sp.jit.load(sys.argv[1])", "sp.jit.load()")
    environment = {"CXX": compiler(tree, "exit 1"), "USE_CUDA": "0"}
    facts = run(tree, code, TORCH_EXTENSIONS_DIR=str(tree / "cache"), **environment)
    assert "Error building extension" in facts["message"]
    assert (tree / "cache" / "sparseprune_jit" / "build.ninja").is_file()


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
