"""The examples, each run in a process of its own, as a user runs it."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(__file__).resolve().parent / "site"
# What is left of float32 where sums are in another order.
HALF_THE_DIGITS = 2.0**-12


def needs(package: str) -> None:
    """Skips the test where a package is not installed; importing it here would take seconds."""
    if find_spec(package) is None:
        pytest.skip(f"needs {package}")


def run(folder: Path, *arguments: str) -> str:
    """What a script prints."""
    path = os.pathsep.join(map(str, (SITE, ROOT / "tests", ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # Else each compiles anew what it imports, which takes longer than what it does.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def example(name: str) -> str:
    return str(ROOT / "examples" / f"{name}.py")


def check_difference(output: str) -> None:
    (difference,) = re.findall(r"differs? by (\S+)", output)
    assert float(difference) < HALF_THE_DIGITS


@pytest.mark.parametrize("model", ["bert", "vit", "gpt2"])
def test_trainer_of_transformers(model: str, tmp_path: Path) -> None:
    needs("transformers")
    needs("accelerate")
    assert run(tmp_path, example("hf_trainer"), model).endswith(
        "resumed at step 10, the same weights: True\n"
    )


@pytest.mark.parametrize("model", ["vit", "resnet"])
def test_timm(model: str, tmp_path: Path) -> None:
    needs("timm")
    check_difference(run(tmp_path, example("timm_models"), model))


def test_lightning(tmp_path: Path) -> None:
    needs("lightning")
    assert run(tmp_path, example("lightning_callback")).endswith("the same weights: True; loaded: True\n")


def test_two_processes(tmp_path: Path) -> None:
    output = run(
        tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", example("ddp")
    )
    sent, dense = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", output)[:2])
    # Two of three layers may have turned out to be faster dense, which sends as much as dense does.
    assert 0 < sent <= dense
    assert output.endswith("the same on all ranks: masks True, trained weights True\n")


def test_rewiring(tmp_path: Path) -> None:
    output = run(tmp_path, example("rewiring"))
    before, after = map(int, re.findall(r"matter (\d+), then (\d+)", output)[0])
    assert after > 2 * before
    assert output.endswith("resumed halfway, the same network: True\n")


def test_an_exported_program_runs_without_the_code_of_its_model(tmp_path: Path) -> None:
    written = run(tmp_path, example("export_program"), "model.pt2").splitlines()
    # Alone in a folder, it can import nothing but what is installed.
    script = tmp_path / "run_program.py"
    script.write_text(Path(example("run_program")).read_text(encoding="utf-8"), encoding="utf-8")
    assert run(tmp_path, str(script), "model.pt2").splitlines()[-1] == written[-1]


def test_onnx(tmp_path: Path) -> None:
    needs("onnxscript")
    needs("onnxruntime")
    check_difference(run(tmp_path, example("export_onnx"), "model.onnx"))
    assert (tmp_path / "model.onnx").is_file()
