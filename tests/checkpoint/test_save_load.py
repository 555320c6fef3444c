"""``sp.save`` and ``sp.load``: any form of a model into any other, whole or not at all."""

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from bounds import assert_half_the_digits
from hypothesis import given
from hypothesis import strategies as st
from test_random_networks import networks
from torch import Tensor, nn

import sparseprune as sp

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=1e-3),
    "plain SGD": lambda parameters: torch.optim.SGD(parameters, 0.01),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 0.01, amsgrad=True),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, 0.001, momentum=0.5, centered=True),
}
FORMS = ("sparse", "masked", "pruned", "dense")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 5))


def random_masks(model: nn.Module, density: float = 0.3, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = sp.masks_from_zeros(_zeroed(model))
    return {name: torch.rand(mask.shape, generator=generator) < density for name, mask in weights.items()}


def _zeroed(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    return model


def in_form(model: nn.Module, masks: dict[str, Tensor], form: str) -> nn.Module:
    if form == "dense":
        return copy.deepcopy(model)
    masked = sp.sparsify(model, masks, layers="sparse" if form == "sparse" else "dense")
    return sp.interchange.to_torch_prune(masked) if form == "pruned" else masked


def batch(sample: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(5, *sample, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, sample: tuple[int, ...], steps: range) -> None:
    dtype = next(model.parameters()).dtype
    for seed in steps:
        optimizer.zero_grad()
        model(batch(sample, dtype, seed)).square().mean().backward()
        optimizer.step()


def numbers(model: nn.Module) -> dict[str, Tensor]:
    """Of the ordinary torch model with zeros in place."""
    if any("weight_orig" in module._parameters for module in model.modules()):
        model, masks = sp.interchange.from_torch_prune(model)
        sp.apply_masks(model, masks)
    return dict(sp.densify(model).state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def frozen(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Any:
    """Everything that loading could change."""
    return copy.deepcopy((dict(model.state_dict()), optimizer.state_dict() if optimizer else {}))


def assert_unchanged(before: Any, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    assert same(before[0], dict(model.state_dict()))
    if optimizer:
        assert repr(before[1]) == repr(optimizer.state_dict())


@given(data=st.data())
def test_random_networks_go_on_in_any_form(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, sample = data.draw(networks())
    model = model.double()
    masks = random_masks(model, data.draw(st.sampled_from([0.05, 0.3, 1.0])), data.draw(st.integers(0, 99)))
    masks = {name: mask for name, mask in masks.items() if data.draw(st.integers(0, 4)) > 0}
    others = {name: ~mask for name, mask in masks.items()}
    source, target = data.draw(st.sampled_from(FORMS[:3])), data.draw(st.sampled_from(FORMS))
    make = OPTIMIZERS[data.draw(st.sampled_from(sorted(OPTIMIZERS)))]
    path = tmp_path_factory.getbasetemp() / "checkpoint.safetensors"

    saved = in_form(model, masks, source)
    optimizer = make(saved.parameters())
    train(saved, optimizer, sample, range(2))
    sp.save(saved, path, optimizer)

    loaded = in_form(_zeroed(model), others, target)
    resumed = make(loaded.parameters())
    facts = sp.load(path, loaded, resumed)
    assert same(numbers(loaded), numbers(saved))
    if masks:
        kept = sum(int(mask.sum()) for mask in masks.values())
        assert facts["sparsity"] == 1 - kept / sum(mask.numel() for mask in masks.values())
    if target == "dense":
        return
    for networks_, optimizer_ in ((saved, optimizer), (loaded, resumed)):
        train(networks_, optimizer_, sample, range(2, 4))
    if source == target:
        assert same(numbers(loaded), numbers(saved))
        assert repr(optimizer.state_dict()) == repr(resumed.state_dict())
    elif isinstance(optimizer, torch.optim.SGD):
        # The others divide by roundings where a gradient is 0 but for them.
        for name, expected in numbers(saved).items():
            assert_half_the_digits(numbers(loaded)[name], expected, name)


@pytest.mark.parametrize("source", ["sparse", "masked", "pruned"])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_optimizer_state_is_that_of_each_weight(tmp_path: Path, kind: str, source: str) -> None:
    model = mlp()
    masks = random_masks(model)
    saved = in_form(model, masks, source)
    optimizer = OPTIMIZERS[kind](saved.parameters())
    train(saved, optimizer, (12,), range(3))
    sp.save(saved, tmp_path / "a", optimizer)
    dense = mlp()
    of_dense = OPTIMIZERS[kind](dense.parameters())
    sp.load(tmp_path / "a", dense, of_dense)
    again = in_form(model, masks, "sparse")
    of_again = OPTIMIZERS[kind](again.parameters())
    sp.load(tmp_path / "a", again, of_again)
    found = 0
    for name, mask in masks.items():
        weight, values = dense.get_parameter(name), again.get_submodule(name.removesuffix(".weight")).values
        for key, state in of_dense.state[weight].items():
            if key == "step":
                assert of_again.state[values][key] == state == 3
                continue
            assert state.shape == weight.shape
            assert not state[~mask].any()
            # In row-major order, as blocks of one weight are.
            assert torch.equal(state[mask], of_again.state[values][key][:, 0])
            found += int(state[mask].ne(0).sum())
    assert found > 0


def test_a_dense_checkpoint_brings_its_optimizer_into_a_sparse_model(tmp_path: Path) -> None:
    model = mlp()
    masks = random_masks(model)
    sp.apply_masks(model, masks)
    optimizer = OPTIMIZERS["Adam"](model.parameters())
    train(model, optimizer, (12,), range(2))
    sp.apply_masks(model, masks)
    sp.save(model, tmp_path / "a", optimizer)
    sparse = in_form(mlp(), masks, "sparse")
    resumed = OPTIMIZERS["Adam"](sparse.parameters())
    sp.load(tmp_path / "a", sparse, resumed)
    assert same(numbers(sparse), numbers(model))
    for name, mask in masks.items():
        expected = optimizer.state[model.get_parameter(name)]["exp_avg"][mask]
        values = sparse.get_submodule(name.removesuffix(".weight")).values
        assert torch.equal(resumed.state[values]["exp_avg"][:, 0], expected)


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("form", ["sparse", "masked"])
def test_a_file_holds_little_besides_the_weights(tmp_path: Path, block: int, form: str) -> None:
    model = nn.Sequential(nn.Linear(512, 1024, bias=False), nn.Linear(1024, 256, bias=False))
    masks = {
        name: (torch.rand(len(p) // block, p.shape[1]) < 0.1).repeat_interleave(block, 0)
        for name, p in model.named_parameters()
    }
    sp.save(in_form(model, masks, form), tmp_path / "a")
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert os.path.getsize(tmp_path / "a") <= 1.15 * (4 + 4 / block) * kept


def test_wide_layers_have_wide_indices(tmp_path: Path) -> None:
    layer = nn.Linear(70_000, 1, bias=False)
    mask = torch.zeros(1, 70_000, dtype=torch.bool)
    mask[0, [3, 69_999]] = True
    saved = sp.SparseLinear.from_dense(layer, mask)
    sp.save(saved, tmp_path / "a")
    loaded = sp.SparseLinear(70_000, 1, bias=False)
    sp.load(tmp_path / "a", loaded)
    assert torch.equal(loaded.mask, mask)
    assert torch.equal(loaded.values, saved.values)


def test_facts_come_back(tmp_path: Path) -> None:
    model = sp.sparsify(mlp(), random_masks(mlp()), layers="sparse")
    sp.save(model, tmp_path / "new" / "a", method="snip", seed=7, epoch=3)
    facts = sp.load(tmp_path / "new" / "a", mlp())
    masks = random_masks(mlp()).values()
    assert facts == {
        "method": "snip",
        "seed": 7,
        "epoch": 3,
        "sparsity": 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks),
        "block": [1, 1],
        "versions": {"sparseprune": sp.__version__, "torch": torch.__version__},
    }
    # Anybody can read it.
    with safetensors.safe_open(tmp_path / "new" / "a", framework="pt") as other:
        assert json.loads(other.metadata()["sparseprune"])["method"] == "snip"
        assert other.get_tensor("0.col").dtype == torch.uint16
        assert set(other.keys()) == set(model.state_dict())


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.ModuleDict({"embed": nn.Embedding(500, 64), "head": nn.Linear(64, 500, bias=False)})
        model["head"].weight = model["embed"].weight
        return model

    model, other = tied(), tied()
    sp.save(model, tmp_path / "a")
    assert os.path.getsize(tmp_path / "a") < 1.1 * 4 * 500 * 64
    sp.load(tmp_path / "a", other)
    assert torch.equal(other["head"].weight, model["head"].weight)
    assert other["head"].weight is other["embed"].weight


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def test_wrappers_are_left_out(tmp_path: Path) -> None:
    masks = random_masks(mlp())
    model = in_form(mlp(), masks, "sparse")
    wrapped = [nn.DataParallel(model), compiled(model), compiled(nn.DataParallel(model))]
    partly = copy.deepcopy(model)
    partly[0] = compiled(partly[0])
    for saved in (*wrapped, partly):
        optimizer = OPTIMIZERS["SGD"](saved.parameters())
        sp.save(saved, tmp_path / "a", optimizer)
        loaded = mlp()
        sp.load(tmp_path / "a", loaded, OPTIMIZERS["SGD"](loaded.parameters()))
        assert same(numbers(loaded), numbers(model))
        again = mlp()
        again.load_state_dict(sp.convert_state_dict(saved.state_dict(), again))
        assert same(numbers(again), numbers(model))
    sp.save(model, tmp_path / "a")
    for target in (nn.DataParallel(_zeroed(mlp())), compiled(_zeroed(mlp()))):
        sp.load(tmp_path / "a", target)
        pairs = zip(target.parameters(), sp.densify(model).parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)


def test_a_module_named_module_is_no_wrapper(tmp_path: Path) -> None:
    model, other = nn.ModuleDict({"module": mlp()}), nn.ModuleDict({"module": _zeroed(mlp())})
    sp.save(model, tmp_path / "a")
    sp.load(tmp_path / "a", other)
    assert same(dict(model.state_dict()), dict(other.state_dict()))


# ---- files that cannot be loaded ---------------------------------------------------------------------------


def test_cut_or_changed_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    model = in_form(mlp(), random_masks(mlp()), "sparse")
    optimizer = OPTIMIZERS["Adam"](model.parameters())
    train(model, optimizer, (12,), range(1))
    sp.save(model, path, optimizer, method="snip")
    content = path.read_bytes()
    target = in_form(mlp(), random_masks(mlp(), seed=1), "masked")
    resumed = OPTIMIZERS["Adam"](target.parameters())
    train(target, resumed, (12,), range(1))
    before = frozen(target, resumed)
    at = [*range(0, len(content), len(content) // 40), len(content) - 1]
    damaged = [content[:i] for i in at]
    damaged += [content[:i] + bytes([content[i] ^ bit]) + content[i + 1 :] for i in at for bit in (1, 128)]
    damaged += [content + b"0", b"", b"{}"]
    for some in damaged:
        path.write_bytes(some)
        with pytest.raises(ValueError, match=r"^load: expected"):
            sp.load(path, target, resumed)
        assert_unchanged(before, target, resumed)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="load: expected a file"):
        sp.load(tmp_path / "none", mlp())
    torch.save(mlp().state_dict(), tmp_path / "a")
    with pytest.raises(ValueError, match="expected a file of safetensors"):
        sp.load(tmp_path / "a", mlp())
    safetensors.torch.save_file(mlp().state_dict(), tmp_path / "b")
    with pytest.raises(ValueError, match=r"other safetensors; load those with .*convert_state_dict"):
        sp.load(tmp_path / "b", mlp())


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_another_model_changes_nothing(tmp_path: Path, form: str) -> None:
    other = mlp()
    other[4] = nn.Linear(8, 6)
    sp.save(in_form(other, random_masks(other), "sparse"), tmp_path / "a")
    # As many rows, and columns that reach no further.
    narrow = mlp()
    narrow[0] = nn.Linear(13, 32)
    mask = torch.zeros(32, 13, dtype=torch.bool)
    mask[:, :3] = True
    sp.save(sp.sparsify(narrow, {"0.weight": mask}, layers="sparse"), tmp_path / "b")
    more = nn.Sequential(*mlp(), nn.Linear(5, 5))
    sp.save(in_form(more, random_masks(more), "sparse"), tmp_path / "c")
    sp.save(mlp()[:4], tmp_path / "d")
    model = in_form(mlp(), random_masks(mlp()), form)
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    train(model, optimizer, (12,), range(1))
    before = frozen(model, optimizer)
    for name, message in {
        "a": r"\n  4.[a-z_]*: expected a weight of shape \[5, 8\], got \[6, 8\]",
        "b": r"\n  0.[a-z_]*: expected a weight of shape \[32, 12\], got \[32, 13\]",
        "c": r"\n  of no layer of the model: 5.bias, 5.col, 5.crow, 5.values",
        "d": r"\n  missing: 4\.",
    }.items():
        with pytest.raises(
            ValueError, match=r"^load: expected the state of such a Sequential[^$]*" + message
        ):
            sp.load(tmp_path / name, model)
        assert_unchanged(before, model, optimizer)


def test_another_optimizer_changes_nothing(tmp_path: Path) -> None:
    model = in_form(mlp(), random_masks(mlp()), "sparse")
    sp.save(model, tmp_path / "without")
    optimizer = OPTIMIZERS["Adam"](model.parameters())
    train(model, optimizer, (12,), range(1))
    sp.save(model, tmp_path / "a", optimizer)
    target = mlp()
    before = frozen(target)
    groups = [{"params": target[0].parameters()}, {"params": target[1:].parameters()}]
    for other, path, message in (
        (OPTIMIZERS["Adam"](target.parameters()), "without", "saved without"),
        (
            OPTIMIZERS["SGD"](target.parameters()),
            "a",
            "expected an optimizer Adam, as the file has it, got SGD",
        ),
        (OPTIMIZERS["Adam"](groups), "a", "expected the 1 groups of parameters .* got 2 others"),
        (OPTIMIZERS["Adam"](target[:3].parameters()), "a", "in one of both alone: 3.bias, 3.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            sp.load(tmp_path / path, target, other)
        assert_unchanged(before, target)
        assert not other.state
    with pytest.raises(ValueError, match="to train parameters of the model, got others, of shapes"):
        sp.save(target, tmp_path / "b", optimizer)
    assert not (tmp_path / "b").exists()


def test_groups_and_their_options_come_back(tmp_path: Path) -> None:
    def grouped(model: nn.Sequential) -> torch.optim.Optimizer:
        rest = [p for layer in model[1:] for p in layer.parameters()]
        groups = [{"params": rest, "lr": 0.5}, {"params": list(model[0].parameters())}]
        return torch.optim.Adam(groups, lr=torch.tensor(0.1))

    model = in_form(mlp(), random_masks(mlp()), "sparse")
    optimizer = grouped(model)
    optimizer.param_groups[1].update(lr=torch.tensor(1 / 3), betas=(0.8, 0.99), initial_lr=0.1)
    sp.save(model, tmp_path / "a", optimizer)
    loaded = in_form(mlp(), random_masks(mlp(), seed=1), "masked")
    resumed = grouped(loaded)
    sp.load(tmp_path / "a", loaded, resumed)
    for theirs, own in zip(optimizer.param_groups, resumed.param_groups, strict=True):
        assert {**theirs, "params": 0} == {**own, "params": 0}


def test_what_json_does_not_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"save: expected facts that JSON holds, got \['masks'\]"):
        sp.save(mlp(), tmp_path / "a", masks=torch.ones(1))
    with pytest.raises(ValueError, match="other names of facts than sparsity"):
        sp.save(mlp(), tmp_path / "a", sparsity=0.9)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.state[model[0].weight]["history"] = []
    with pytest.raises(
        TypeError, match="save: expected an optimizer that keeps numbers and tensors, got list"
    ):
        sp.save(model, tmp_path / "a", optimizer)
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_if_a_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sp.save(mlp(), tmp_path / "a", epoch=1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    zeros = _zeroed(mlp())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="what was there is as it was"):
            sp.save(zeros, tmp_path / "a", epoch=2)
    assert sp.load(tmp_path / "a", model := _zeroed(mlp()))["epoch"] == 1
    assert same(dict(model.state_dict()), dict(mlp().state_dict()))
    assert os.listdir(tmp_path) == ["a"]


KILLED = """
import os, signal, sys
sys.path[:0] = {paths}
from test_save_load import *
model = in_form(mlp(), random_masks(mlp()), "sparse")
optimizer = OPTIMIZERS["AdamW"](model.parameters())
for step in range(3):
    train(model, optimizer, (12,), range(step, step + 1))
    sp.save(model, {path!r}, optimizer, step=step)
train(model, optimizer, (12,), range(7, 8))
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
sp.save(model, {path!r}, optimizer, step=3)
"""


def test_training_goes_on_bit_by_bit_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "a"
    here = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    code = KILLED.format(paths=here, path=str(path))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    model = in_form(mlp(), random_masks(mlp(), seed=1), "sparse")
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    assert sp.load(path, model, optimizer)["step"] == 2
    train(model, optimizer, (12,), range(3, 5))
    expected = in_form(mlp(), random_masks(mlp()), "sparse")
    of_expected = OPTIMIZERS["AdamW"](expected.parameters())
    train(expected, of_expected, (12,), range(5))
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
