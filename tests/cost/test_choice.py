import hashlib
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import sparseprune as sp
from sparseprune.cost import cache, choice, machine
from sparseprune.cost.cache import Choice
from sparseprune.cost.calls import Call
from sparseprune.format.memory import is_batch_inner_images
from sparseprune.nn import SparseConv2d, SparseLinear
from sparseprune.nn.masked import masked_from_dense

Made = tuple[SparseLinear, nn.Module]


def layers(rows: int = 8, cols: int = 5, block_rows: int = 1, frozen: bool = False) -> Made:
    linear = nn.Linear(cols, rows)
    linear.weight.requires_grad_(not frozen)
    mask = (
        (torch.arange(rows * cols // block_rows) % 3 == 0).reshape(-1, cols).repeat_interleave(block_rows, 0)
    )
    return SparseLinear.from_dense(linear, mask, block=(block_rows, 1)), masked_from_dense(linear, mask)


NOW = 1e9


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "new" / "choices.json"
    monkeypatch.setenv("SPARSEPRUNE_CHOICES", str(path))
    monkeypatch.setattr(cache.time, "time", lambda: NOW)
    return path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch call of what was measured: 1 s sparse, 2 s dense."""
    seen: list[int] = []
    monkeypatch.setattr(choice, "measure", lambda s, d, batch, _: seen.append(batch) or Choice(1.0, 2.0))
    return seen


def choose(made: Made, batch_size: int = 16) -> Choice:
    return choice.choose(made[0], lambda: made[1], batch_size)


def test_choice_says_what_was_measured(needs_extension: None) -> None:
    assert str(Choice(0.001, 0.0025)) == "sparse 1 ms, dense 2.5 ms a step"
    assert str(Choice(0.003, 0.0025)) == "dense 2.5 ms, sparse 3 ms a step"
    assert str(Choice(0.003, 0.0029)) == "a tie: sparse 3 ms, dense 2.9 ms a step"
    disturbed = "other processes kept 1.3 processors busy"
    assert str(Choice(0.001, 0.0025, disturbed)) == (
        f"sparse 1 ms, dense 2.5 ms a step, disturbed: {disturbed}"
    )


@pytest.mark.parametrize(("sparse", "sparse_wins"), [(1.0, True), (2.0, True), (2.09, True), (2.11, False)])
def test_a_tie_goes_to_sparse(sparse: float, sparse_wins: bool) -> None:
    assert Choice(sparse, 2.0).use_sparse is sparse_wins


@pytest.mark.parametrize("frozen", [False, True])
def test_measure_times_both_and_changes_nothing(frozen: bool) -> None:
    sparse, dense = layers(frozen=frozen)
    before = torch.get_rng_state()
    found = choice.measure(sparse, dense, 4)
    assert 0 < found.sparse < 1
    assert 0 < found.dense < 1
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for layer in (sparse, dense) for p in layer.parameters())
    with torch.no_grad():
        choice.measure(sparse, dense, 4)


def convs(block_rows: int = 1, **options: object) -> Made:
    conv = nn.Conv2d(3, 8, 3, **options)
    mask = (torch.arange(8 * 27 // block_rows).view(-1, 27) * 7 % 4 == 0).repeat_interleave(block_rows, 0)
    mask = mask.view_as(conv.weight)
    return SparseConv2d.from_dense(conv, mask, block=(block_rows, 1)), masked_from_dense(conv, mask)


@pytest.mark.parametrize(
    ("batch_size", "input_gradient", "expected"),
    [(17, True, (True, True)), (17, False, (False, True)), (15, True, (False, False))],
)
def test_measure_runs_sparse_convolutions_batch_inner(
    batch_size: int, input_gradient: bool, expected: tuple[bool, bool]
) -> None:
    made = convs()
    seen: dict[nn.Module, tuple[bool, ...]] = {}
    gradients: dict[nn.Module, bool] = {}
    for layer in made:

        def note(layer: nn.Module, x: tuple[torch.Tensor], y: torch.Tensor) -> None:
            seen[layer] = (is_batch_inner_images(x[0]), is_batch_inner_images(y))
            assert x[0].requires_grad == input_gradient
            y.register_hook(lambda g: gradients.update({layer: is_batch_inner_images(g)}))

        layer.register_forward_hook(note)
    call = Call((3, 5, 6), (8, 3, 4), input_gradient)
    found = choice.measure(*made, batch_size, call)
    assert 0 < found.sparse < 1
    assert 0 < found.dense < 1
    assert seen == {made[0]: expected, made[1]: (False, False)}
    assert gradients == {made[0]: expected[1], made[1]: False}
    assert made[0].batch_inner is None
    assert all(p.grad is None for layer in made for p in layer.parameters())


def test_measure_of_a_frozen_first_layer() -> None:
    made = [layer.requires_grad_(False) for layer in convs()]
    found = choice.measure(*made, 4, Call((3, 5, 6), (8, 3, 4), False))
    assert 0 < found.sparse < 1
    assert 0 < found.dense < 1


def test_key_of_a_convolution_names_what_its_seconds_depend_on() -> None:
    call = Call((3, 5, 6), (8, 3, 4), True)
    key = choice.key_of(convs()[0], 16, call)
    assert key == "conv 8x3x3x3, input 3x5x6, density 0.25, block 1x1, float32, batch 16"
    others = [
        choice.key_of(convs(**options)[0], 16, call)
        for options in (
            {"block_rows": 2},
            {"stride": 2},
            {"padding": (1, 0)},
            {"padding": "same"},
            {"dilation": 2},
            {"padding": 1, "padding_mode": "reflect"},
        )
    ]
    others += [
        choice.key_of(convs()[0], 17, call),
        choice.key_of(convs()[0], 16, call._replace(input=(3, 6, 6))),
        choice.key_of(convs()[0], 16, call._replace(input_gradient=False)),
        choice.key_of(convs()[0].bfloat16(), 16, call),
    ]
    assert len({key, *others}) == len(others) + 1
    assert "conv 8x3x3x3, stride 2x2, input 3x5x6, density" in others[1]
    linear = layers()[0]
    assert choice.key_of(linear, 4, Call((7, 5), (7, 8), True)) == (
        "linear 8x5, input 7x5, density 0.35, block 1x1, float32, batch 4"
    )
    assert choice.key_of(linear, 4, Call((5,), (8,), True)) == choice.key_of(linear, 4)


@pytest.mark.parametrize("isa", ["scalar"], indirect=True)
def test_assume_sparse_only_with_vector_instructions(isa: str, needs_extension: None) -> None:
    assert not choice.assume(convs()[0], 64).use_sparse


@pytest.mark.parametrize(
    ("dtype", "block_rows", "densest"),
    [(torch.float32, 1, 0.05), (torch.float32, 16, 0.05), (torch.float16, 4, 0.02), (torch.bfloat16, 8, 0.1)],
)
def test_assumptions_on_a_gpu_are_those_of_the_model(
    dtype: torch.dtype, block_rows: int, densest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sp.ops, "has_kernels", lambda device: True)
    for density, expected in ((densest, True), (densest + 0.01, False)):
        kept = round(16 * 1000 * density) // block_rows
        with FakeTensorMode():
            values = torch.empty(kept, block_rows, dtype=dtype, device="cuda")
            layer = SimpleNamespace(values=values, block=(block_rows, 1), weight_shape=(16, 1000))
            assumed = choice.assume(layer, 64)
        assert assumed.use_sparse is expected
        assert "CUDA" in str(assumed) or sp.ops.extension is None


def test_a_gpu_has_seconds_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    key = machine.key(torch.device("cuda"))
    assert key.startswith("Some GPU, CUDA ")
    assert key != machine.key() == machine.key(torch.device("cpu"))


def test_measure_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    made = layers()
    for layer, name in zip(made, ("sparse", "dense"), strict=True):
        layer.register_forward_pre_hook(lambda module, x, name=name: turns.append(name))
    choice.measure(*made, 4)
    assert len(turns) >= 4
    assert turns == ["sparse", "dense"] * (len(turns) // 2)


def test_choose_measures_once_and_keeps_the_seconds_alone(file: Path, measured: list[int]) -> None:
    for _ in range(2):
        assert choose(layers()) == Choice(1.0, 2.0)
    assert measured == [16]
    key = "linear 8x5, density 0.35, block 1x1, float32, batch 16"
    content = {machine.key(): {key: {"sparse": 1.0, "dense": 2.0, "when": NOW}}}
    assert json.loads(file.read_text()) == content
    assert {path.name for path in file.parent.iterdir()} <= {"choices.json", "choices.json.lock"}
    file.unlink()
    choose(layers())
    assert measured == [16, 16]


def test_choose_does_not_keep_what_was_disturbed(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, needs_extension: None
) -> None:
    found = [Choice(0.001, 0.0959, "other processes kept 2.0 processors busy"), Choice(0.001, 0.0005)]
    monkeypatch.setattr(choice, "measure", lambda *_: found.pop(0))
    caplog.set_level(logging.INFO, "sparseprune")
    assert choose(layers()).use_sparse
    assert not file.exists()
    assert not choose(layers()).use_sparse
    assert not choose(layers()).use_sparse
    key = "linear 8x5, density 0.35, block 1x1, float32, batch 16"
    assert caplog.messages == [
        f"{key}: sparse 1 ms, dense 95.9 ms a step, disturbed: other processes kept 2.0 processors busy; "
        "not kept",
        f"{key}: dense 0.5 ms, sparse 1 ms a step",
    ]


def test_choose_measures_anew_what_another_build_took(
    file: Path, measured: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_extension: None
) -> None:
    for content in (b"one", b"other", b"one"):
        built = tmp_path / content.decode()
        built.write_bytes(content)
        monkeypatch.setattr(sp.ops.library.extension, "__file__", str(built))
        choose(layers())
    assert measured == [16, 16]
    digests = [hashlib.sha256(content).hexdigest()[:12] for content in (b"one", b"other")]
    assert [on.split("build ")[1].split(",")[0] for on in json.loads(file.read_text())] == digests
    built.unlink()
    monkeypatch.setattr(sp.ops.library.extension, "__file__", str(tmp_path / "gone"))
    assert "build unknown" in machine.key()


def test_choose_measures_whatever_differs(
    file: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch, restored_threads: None
) -> None:
    choose(layers())
    for made, batch_size in [
        (layers(), 17),
        (layers(rows=16), 16),
        (layers(cols=6), 16),
        (layers(block_rows=4), 16),
        (layers(frozen=True), 16),
        (tuple(layer.bfloat16() for layer in layers()), 16),
    ]:
        before = len(measured)
        choose(made, batch_size)
        choose(made, batch_size)
        assert len(measured) == before + 1
    torch.set_num_threads(torch.get_num_threads() + 1)
    choose(layers())
    assert len(measured) == 8
    assert [len(entries) for entries in cache.load(file).values()] == [7, 1]
    monkeypatch.setattr(machine, "__version__", "99")
    choose(layers())
    assert len(measured) == 9


def test_choose_keeps_what_another_process_has_written(
    file: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(sparse: nn.Module, dense: nn.Module, batch_size: int, call: Call | None) -> Choice:
        monkeypatch.setattr(choice, "measure", lambda *_: Choice(3.0, 4.0))
        choose(layers(), 99)
        return Choice(1.0, 2.0)

    monkeypatch.setattr(choice, "measure", slowly)
    choose(layers())
    assert list(cache.load(file)[machine.key()].values()) == [Choice(3.0, 4.0), Choice(1.0, 2.0)]


def test_sparsify_reads_the_file(file: Path, measured: list[int]) -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    masks = {"0.weight": torch.eye(6, dtype=torch.bool)}
    for _ in range(2):
        assert isinstance(sp.sparsify(model, masks, batch_size=3)[0], SparseLinear)
    assert measured == [3]
    file.write_text(file.read_text().replace("2.0", "0.5"))
    assert not isinstance(sp.sparsify(model, masks, batch_size=3)[0], SparseLinear)
