"""The CUDA part of the build, and what of it can be seen without a GPU."""

import os
import re
import stat
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import sparseprune as sp
from sparseprune import ops
from sparseprune.build import nvcc
from sparseprune.ops import plain


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("USE_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def found(no_variables: pytest.MonkeyPatch) -> str:
    path = nvcc.find()
    if path is None:
        pytest.skip("there is no nvcc")
    return path


def program(folder: Path, text: str) -> Path:
    """An nvcc of our own."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# ---- whether -----------------------------------------------------------------------------------------------


def test_cuda_home_comes_before_the_path(no_variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home, other = program(tmp_path / "home", ""), program(tmp_path / "other", "")
    no_variables.setenv("PATH", str(other.parent))
    assert nvcc.find() == str(other)
    no_variables.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert nvcc.find() == nvcc.wanted() == str(home)


def test_use_cuda_0_builds_without(no_variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_variables.setenv("CUDA_HOME", str(program(tmp_path, "").parent.parent))
    no_variables.setenv("USE_CUDA", "0")
    assert nvcc.compile(tmp_path / "objects") == ([], [], [])
    assert not (tmp_path / "objects").exists()


def test_without_nvcc_auto_builds_without_and_1_says_what_is_missing(
    no_variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_variables.setenv("CUDA_HOME", str(tmp_path))
    assert nvcc.wanted() is None
    no_variables.setenv("USE_CUDA", "1")
    with pytest.raises(
        FileNotFoundError, match="USE_CUDA=1: expected nvcc, of the toolkit that CUDA_HOME names"
    ):
        nvcc.wanted()
    no_variables.setenv("USE_CUDA", "yes")
    with pytest.raises(ValueError, match="USE_CUDA: expected auto, 0 or 1, got 'yes'"):
        nvcc.wanted()


# ---- for which GPUs ----------------------------------------------------------------------------------------


def test_default_architectures(found: str) -> None:
    flags = nvcc.targets(found)
    assert "-gencode=arch=compute_80,code=sm_80" in flags
    assert len(flags) == len(set(flags)) > 1


def test_default_architectures_are_those_that_nvcc_knows(
    no_variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = program(tmp_path, "echo compute_70; echo compute_80; echo compute_90")
    flags = nvcc.targets(str(old))
    assert flags == ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90"]
    no_variables.setenv("TORCH_CUDA_ARCH_LIST", "12.0")
    with pytest.raises(ValueError, match=r"does not know 12\.0; it knows compute_70, compute_80, compute_90"):
        nvcc.targets(str(old))


@pytest.mark.parametrize("separator", [";", " "])
def test_arch_list(no_variables: pytest.MonkeyPatch, found: str, separator: str) -> None:
    no_variables.setenv("TORCH_CUDA_ARCH_LIST", separator.join(["8.6", "9.0a", "9.0+PTX"]))
    assert nvcc.targets(found) == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=[sm_90,compute_90]",
    ]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("7.5", r"expected compute capabilities of 8\.0 \(Ampere\) or higher, got 7\.5"),
        ("8.0;Hopper", r"expected compute capabilities like 8\.0 or 9\.0\+PTX, got 'Hopper'"),
    ],
)
def test_arch_list_that_cannot_be(
    no_variables: pytest.MonkeyPatch, tmp_path: Path, listed: str, message: str
) -> None:
    no_variables.setenv("TORCH_CUDA_ARCH_LIST", listed)
    with pytest.raises(ValueError, match=message):
        nvcc.targets(str(program(tmp_path, "echo compute_80")))


# ---- the build ---------------------------------------------------------------------------------------------


def test_what_nvcc_says_is_in_the_error(no_variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = 'case "$1" in --list-gpu-arch) echo compute_80;; *) echo "no licence"; exit 3;; esac'
    no_variables.setenv("CUDA_HOME", str(program(tmp_path, broken).parent.parent))
    if not nvcc.sources():
        pytest.skip("the sources are not beside the package")
    with pytest.raises(RuntimeError, match=r"(?s)no licence.*Build without CUDA with USE_CUDA=0"):
        nvcc.compile(tmp_path / "objects")


@pytest.mark.slow
def test_only_what_changed_is_compiled_again(
    found: str, no_variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On one small file: the whole is in the extension that is tested here, and in test_jit.py."""
    source = tmp_path / "cuda" / "one.cu"
    source.parent.mkdir()
    source.write_text('#include "one.cuh"\n')
    source.with_suffix(".cuh").write_text("__global__ void kernel(float* x) { *x = 1; }\n")
    no_variables.setattr(nvcc, "CSRC", tmp_path)
    no_variables.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    first = nvcc.compile(tmp_path / "objects")
    (built,), digest = first.objects, first.digest
    assert first.cxx_flags == ["-DSPARSEPRUNE_CUDA"]
    assert "-lcudart_static" in first.link_flags
    time = os.stat(built).st_mtime_ns
    assert nvcc.compile(tmp_path / "objects").digest == digest
    assert os.stat(built).st_mtime_ns == time
    source.with_suffix(".cuh").write_text("__global__ void kernel(float* x) { *x = 2; }\n")
    assert nvcc.compile(tmp_path / "objects").digest != digest


# ---- the extension -----------------------------------------------------------------------------------------


def test_every_operator_has_a_cuda_kernel_where_the_cpu_has_one() -> None:
    """Compiled, or in plain torch where there was no nvcc."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [f"sparseprune::{function.__name__}" for function in plain.SCHEMAS]
    assert len(names) == 16
    assert [name for name in names if not has(name, "CPU")] == []
    assert [name for name in names if not has(name, "CUDA")] == []


def test_compiled_is_not_available(needs_extension: None) -> None:
    facts = ops.info()
    assert facts["cuda_compiled"] is ops.extension.has_cuda()
    assert facts["cuda_available"] is torch.cuda.is_available()
    assert ops.has_kernels(torch.device("cuda")) is facts["cuda_compiled"]
    assert not ops.has_kernels(torch.device("meta"))


def test_the_extension_names_its_gpus(needs_extension: None) -> None:
    facts = ops.extension.build_info()
    if not ops.extension.has_cuda():
        assert "cuda" not in facts
        pytest.skip("the extension was compiled without CUDA")
    assert re.fullmatch(r"\d+\.\d+", facts["cuda"])
    assert re.fullmatch(r"sm_\d+(, sm_\d+)*", facts["cuda_architectures"])


def test_layers_of_a_gpu_know_their_shapes() -> None:
    """Fake tensors: shapes, dtypes and devices of a module on a GPU that is not there."""
    with FakeTensorMode():
        sizes = (9, 5, 8, 23)
        there = ops.Pattern(*(torch.empty(n, dtype=torch.int32, device="cuda") for n in sizes))
        x = torch.empty(6, 7, device="cuda", dtype=torch.float16)
        y = ops.spmm(x, torch.empty(5, 1, device="cuda", dtype=torch.float16), there)
        assert (y.shape, y.dtype, y.device.type) == ((8, 7), torch.float16, "cuda")
        with pytest.raises(ValueError, match="expected all tensors on one device, got cpu and cuda"):
            ops.spmm(torch.empty(6, 7), torch.empty(5, 1, device="cuda"), there)


# A layer remembers where its pattern lies.
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_gpu_without_kernels_computes_in_plain_torch_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty(0, dtype=torch.int32)
    monkeypatch.setattr(ops, "has_kernels", lambda device: False)
    monkeypatch.setattr(ops, "plans", lambda crow, col, *_: ops.Pattern(crow, col, empty, empty))
    with FakeTensorMode(), pytest.warns(RuntimeWarning, match="there are no CUDA kernels in this build"):
        sp.SparseLinear(4, 4, device="cuda")
    sp.SparseLinear(4, 4)  # nothing to warn of


def test_layers_of_a_dtype_without_kernels_are_refused_by_device() -> None:
    layer = sp.SparseLinear(4, 4)
    with pytest.raises(TypeError, match=r"expected float32 or bfloat16 .* got torch\.float16"):
        layer.half()
    with FakeTensorMode():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            sp.nn.values.check_dtype(torch.empty(0, device="cuda", dtype=dtype), "SparseLinear")
        with pytest.raises(TypeError, match=r"float32, float16 or bfloat16 on a GPU, got torch\.float64"):
            sp.nn.values.check_dtype(torch.empty(0, device="cuda", dtype=torch.float64), "SparseLinear")
