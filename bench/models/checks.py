"""What is tried with each model, on a fresh one each time; whatever is raised says why not."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import sparseprune as sp
from bench.models.trial import (
    Trial,
    WrongError,
    compare,
    initial,
    numbers_in,
    outputs,
    shifted,
    steady,
    train,
)
from sparseprune.scores.losses import of_batch

STEPS = 20
# Of training beside a dense twin: larger steps of deep networks are chaotic, and roundings grow.
RATE = 1e-5


class Check(NamedTuple):
    """A column of the table.

    Attributes:
        sparse: tries it with the pruned model; returns a remark, or "".
        dense: tries the same with the dense model, where it has a meaning: a model that cannot do it dense
            need not sparse.
    """

    sparse: Callable[[Trial], str]
    dense: Callable[[Trial], object] | None = None


def sparsifies(trial: Trial) -> str:
    """The model becomes sparse, and dense again, of the same classes; the remark counts its layers."""
    dense, sparse = trial.dense(), trial.sparse()
    rows = [row for row in sp.summary(sparse).rows if row.name in trial.masks]
    if {row.name: row.kept for row in rows} != {n: int(mask.sum()) for n, mask in trial.masks.items()}:
        raise WrongError("the summary has other numbers of weights than the masks")
    back = sp.densify(sparse)
    if [type(m) for m in back.modules()] != [type(m) for m in dense.modules()]:
        raise WrongError("densify: other classes than the model had")
    masked = [row.choice or row.computes for row in rows if not row.computes.startswith("sparse")]
    counted = [f"{masked.count(why)} {why}" for why in dict.fromkeys(masked)]
    return "; ".join([f"{len(rows) - len(masked)} of {len(rows)} layers sparse", *counted])


def equals(trial: Trial) -> str:
    """In evaluation it computes what the dense model with zeros does: sparse, masked and frozen."""
    batch, model = trial.batch(trial.dtype), trial.model
    with torch.no_grad():
        reference = trial.dense(trial.dtype).eval()
        before = outputs(model, reference, batch)
        sp.apply_masks(reference, trial.masks)
        expected = outputs(model, reference, batch)
        if all(torch.equal(a, b) for a, b in zip(before, expected, strict=True)):
            raise WrongError("the dense model computes the same with zeros and without: nothing is compared")
        for layers in ("sparse", "dense"):
            network = sp.sparsify(trial.dense(trial.dtype), trial.masks, layers=layers).eval()
            compare(f'layers="{layers}"', outputs(model, network, batch), expected)
            compare(f'frozen, layers="{layers}"', outputs(model, sp.freeze(network), batch), expected)
    return "" if trial.dtype == torch.float64 else "in float32"


def trains(trial: Trial) -> str:
    """20 steps: the loss falls, pruned weights stay 0, and a dense model with zeros ends alike."""
    network = trial.sparse()
    learns(trial, network)
    weights = dict(sp.densify(network).named_parameters(remove_duplicate=False))
    for name, mask in trial.masks.items():
        if weights[name].detach()[~mask].any():
            raise WrongError(f"{name}: pruned weights came back")
    dense = shifted(trial.dense(trial.dtype))
    sparse = steady(sp.sparsify(dense, trial.masks, layers="sparse"))
    train(trial.model, sparse, STEPS, torch.optim.SGD(sparse.parameters(), RATE, momentum=0.9))
    sp.apply_masks(dense, trial.masks)
    expected = masked_training(trial, dense)
    try:
        end_alike(sp.densify(sparse), expected, dense)
    except WrongError:
        if not is_chaotic(trial, dense, expected):
            raise
        return f"dense, changed by one rounding, ends elsewhere after {STEPS} steps: weights are not compared"
    return "" if trial.dtype == torch.float64 else "in float32"


def masked_training(trial: Trial, masked: nn.Module) -> nn.Module:
    """A copy of a model with zeros after as many steps, with zeros again after each."""
    dense = steady(copy.deepcopy(masked))
    optimizer = torch.optim.SGD(dense.parameters(), RATE, momentum=0.9)
    optimizer.register_step_post_hook(lambda *_: sp.apply_masks(dense, trial.masks))
    train(trial.model, dense, STEPS, optimizer)
    return dense


def end_alike(found: nn.Module, expected: nn.Module, before: nn.Module) -> None:
    """Raise WrongError unless all weights and statistics of two trained models agree; see `compare`."""
    start, ended = before.state_dict(), found.state_dict()
    moved = max(float((p.detach() - start[name]).abs().max()) for name, p in expected.named_parameters())
    for name, tensor in expected.state_dict().items():
        if tensor.is_floating_point():
            largest = max(float(tensor.abs().max()), moved) if "running" in name else moved
            compare(f"{name} after {STEPS} steps", [ended[name]], [tensor], largest)


def is_chaotic(trial: Trial, before: nn.Module, expected: nn.Module) -> bool:
    """Whether the dense model ends elsewhere, too, if one rounding is added to each of its weights."""
    nudged = copy.deepcopy(before)
    for parameter in nudged.parameters():
        parameter.data.mul_(1 + torch.finfo(parameter.dtype).eps)
    try:
        end_alike(masked_training(trial, nudged), expected, before)
    except WrongError:
        return True
    return False


def learns(trial: Trial, network: nn.Module) -> None:
    """Raise WrongError unless the loss is finite and falls in 20 steps."""
    losses = train(trial.model, network, STEPS)
    if not all(map(math.isfinite, losses)) or not losses[-1] < losses[0]:
        raise WrongError(f"the loss goes from {losses[0]:.3g} to {losses[-1]:.3g} in {STEPS} steps")


def compiles(trial: Trial) -> str:
    """No graph break that the dense model does not have, and the loss and all gradients as without."""
    breaks = compiled(trial, trial.sparse())
    if breaks and breaks > (theirs := compiled(trial, trial.dense())):
        raise WrongError(f"{breaks} graph breaks, {theirs} in the dense model")
    return f"{breaks} graph breaks, as in the dense model" if breaks else ""


def compiled(trial: Trial, network: nn.Module) -> int:
    """Compile a training step, compare it with the eager one, and count the breaks of the graph."""
    steady(network)
    batch, loss = trial.batch(), of_batch(trial.model.loss)

    def step(called: Any) -> list[Tensor]:
        network.zero_grad()
        found = loss(called, batch)
        found.backward()
        gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        return [found, torch.cat([g.detach().clone() for g in gradients])]

    expected = step(network)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    try:
        compare("compiled", step(torch.compile(network, backend="aot_eager")), expected)
        return sum(counters["graph_break"].values())
    finally:
        torch._dynamo.reset()


def exports(trial: Trial) -> str:
    """``torch.export`` in evaluation; the exported program computes the same."""
    exported(trial, trial.sparse())
    return ""


def exported(trial: Trial, network: nn.Module) -> None:
    """Export a network, run it, and compare."""
    network.eval()
    args, kwargs = trial.model.arguments(trial.batch())
    with torch.no_grad():
        program = torch.export.export(network, args, kwargs, strict=False)
        compare(
            "exported", numbers_in(program.module()(*args, **kwargs)), numbers_in(network(*args, **kwargs))
        )


def saves(trial: Trial) -> str:
    """A file loads bit by bit into new models, sparse and dense; what is densified, into its old class."""
    network, model = trial.sparse(), trial.model
    train(model, network, 2)
    dense = sp.densify(network).state_dict()
    others = {name: mask.flatten().roll(1).view_as(mask) for name, mask in trial.masks.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        sp.save(network, path)
        loaded = sp.sparsify(initial(model, 1), others, layers="sparse")
        sp.load(path, loaded)
        _check_bits("load into a sparse model", dict(loaded.state_dict()), dict(network.state_dict()))
        plain = initial(model, 1)
        sp.load(path, plain)
        _check_bits("load into a dense model", dict(plain.state_dict()), dict(dense))
    own = initial(model, 2)
    own.load_state_dict(dense, strict=True)
    _check_bits("densify and load_state_dict", dict(own.state_dict()), dict(dense))
    with torch.no_grad():
        found, expected = (outputs(model, of.eval(), trial.batch()) for of in (loaded, network))
    if not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
        raise WrongError("the loaded model computes other bits")
    return ""


def _check_bits(what: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    if found.keys() != expected.keys():
        raise WrongError(f"{what}: other names: {sorted(found.keys() ^ expected.keys())[:4]}")
    for name, tensor in expected.items():
        if isinstance(tensor, Tensor) and not torch.equal(found[name], tensor):
            raise WrongError(f"{what}: {name} has other bits")


CHECKS: dict[str, Check] = {
    "sparsifies": Check(sparsifies),
    "equals masked dense": Check(equals),
    f"trains {STEPS} steps": Check(trains, lambda trial: learns(trial, trial.dense())),
    "compiles": Check(compiles, lambda trial: compiled(trial, trial.dense())),
    "exports": Check(exports, lambda trial: exported(trial, trial.dense())),
    "saves and loads": Check(saves),
}
