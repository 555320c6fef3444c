"""What all tests share: the operators that are tested, their instruction sets and threads, and examples."""

import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Several test processes share the cores: a thread that waits must not spin. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

import sparseprune
from sparseprune.cost import choice, speedup

pytest.register_assert_rewrite(
    "bounds", "layers", "linear_problems", "conv_problems", "linear_pairs", "small_networks", "browser"
)

# The same examples in every run, so that a test never fails by chance; fuzz.py looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None, database=None, max_examples=100)
settings.register_profile("fuzz", deadline=None, database=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("SPARSEPRUNE_EXAMPLES", "same"))

# A library with the CUDA operators compiled for the CPU, in place of the extension; see test_simt.py.
EMULATED = "SPARSEPRUNE_EMULATED" in os.environ
if EMULATED:
    with sparseprune.ops.replaced_library():
        torch.ops.load_library(os.environ["SPARSEPRUNE_EMULATED"])

COMPILED = sparseprune.ops.extension is not None
ISAS = sparseprune.ops.extension.available_isas() if COMPILED else ["plain torch"]


@pytest.fixture(autouse=True, scope="session")
def own_choices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A file of measured choices for the tests: theirs must not reach the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEPRUNE_CHOICES", str(tmp_path_factory.mktemp("choices") / "choices.json"))
        yield


@pytest.fixture(autouse=True, scope="session")
def brief_measurements() -> Iterator[None]:
    """No test is about how long a layer takes: a machine that is busy testing need not become quiet."""
    with pytest.MonkeyPatch.context() as patch:
        for rounds in (choice.ROUNDS, speedup.ROUNDS):
            patch.setitem(rounds, "seconds", 0.005)
            patch.setitem(rounds, "patience", 0.0)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in a test, whatever ran before it."""
    random.seed(0)
    torch.manual_seed(0)


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
    """The number of threads after the test is that before it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, restored_threads: None) -> int:
    """One thread, and two."""
    torch.set_num_threads(request.param)
    return request.param


@pytest.fixture
def needs_extension() -> None:
    """Skips the test where operators are plain torch's."""
    if not COMPILED:
        pytest.skip("tests the compiled operators")
