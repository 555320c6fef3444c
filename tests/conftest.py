import os
from collections.abc import Iterator

import pytest

# Several test processes share the cores: a thread that waits must not spin. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

import sparseprune

# A library with the CUDA operators compiled for the CPU, in place of the extension; see test_simt.py.
EMULATED = "SPARSEPRUNE_EMULATED" in os.environ
if EMULATED:
    with sparseprune.ops.replaced_library():
        torch.ops.load_library(os.environ["SPARSEPRUNE_EMULATED"])

COMPILED = sparseprune.ops.extension is not None
ISAS = sparseprune.ops.extension.available_isas() if COMPILED else ["plain torch"]


@pytest.fixture(autouse=True, scope="session")
def own_choices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests measure must not reach the user's file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEPRUNE_CHOICES", str(tmp_path_factory.mktemp("choices") / "choices.json"))
        yield


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this machine in turn; plain torch where the extension is not built."""
    extension = sparseprune.ops.extension
    if extension is None:
        yield request.param
        return
    before = extension.isa()
    extension.set_isa(request.param)
    yield request.param
    extension.set_isa(before)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, restored_threads: None) -> int:
    torch.set_num_threads(request.param)
    return request.param


@pytest.fixture
def needs_extension() -> None:
    if not COMPILED:
        pytest.skip("tests the compiled operators")
