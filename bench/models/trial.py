"""A model, its masks, and what every check does with them: make it afresh, train it, compare."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree

import sparseprune as sp
from bench.models.model import Model
from sparseprune.nn.batch_norm import BatchNormAct2d
from sparseprune.scores.losses import of_batch
from sparseprune.scores.nested import with_each

SPARSITY = 0.9
WARM_UP = 5  # steps
# What is asked for, as typed first; then what the error proposes.
WAYS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("", 0, {}),
    ('scope="erk"', 0, {"scope": "erk"}),
    (f"{WARM_UP} steps of training before", WARM_UP, {}),
    (f'{WARM_UP} steps of training before and scope="erk"', WARM_UP, {"scope": "erk"}),
)


class WrongError(Exception):
    """Numbers are not what they should be."""


@dataclass(frozen=True)
class Trial:
    """What all checks of a model start from.

    Attributes:
        model: the model.
        masks: those of `pruned`.
        start: weights to start from, in float32, where masks were chosen after some steps.
        dtype: of what is compared: float64, or float32 where the model does not compute in that.
    """

    model: Model
    masks: Mapping[str, Tensor]
    start: Mapping[str, Tensor] | None
    dtype: torch.dtype

    def dense(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The dense model before pruning, always with the same weights."""
        made = initial(self.model)
        if self.start is not None:
            made.load_state_dict(self.start)
        return made.to(dtype)

    def sparse(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The pruned one, with sparse kernels wherever there are some."""
        return sp.sparsify(self.dense(dtype), self.masks, layers="sparse")

    def batch(self, dtype: torch.dtype = torch.float32) -> Any:
        return in_dtype(self.model.batch, dtype)


def initial(model: Model, seed: int = 0) -> nn.Module:
    """The model in training mode, with weights of a seed."""
    torch.manual_seed(seed)
    return model.make().train()


def in_dtype(batch: Any, dtype: torch.dtype) -> Any:
    """A batch with its numbers in a dtype; integers stay."""
    return with_each(lambda t: t.to(dtype) if t.is_floating_point() else t, batch)


def pruned(model: Model) -> tuple[Trial, str]:
    """Masks as a stranger would ask for them: SNIP, 90 %, the model's own loss on a batch.

    Returns:
        the trial; and "", or what the error was and what helped.
    Raises:
        Exception: that of the first call, where nothing helped.
    """
    refused: Exception | None = None
    for words, steps, options in WAYS:
        made = initial(model)
        start = None
        if steps:
            train(model, made, steps)
            start = copy.deepcopy(made.state_dict())
        try:
            masks = sp.prune(made, [model.batch], sparsity=SPARSITY, loss=model.loss, **options)
        except Exception as error:
            refused = refused or error
            continue
        remark = f"with {words}; as typed: {refused}" if words else ""
        return Trial(model, masks, start, _comparable(model)), remark
    assert refused is not None
    raise refused


def unscored(model: Model) -> Trial:
    """Random masks, layer by layer, where scores fail."""
    masks = sp.prune(initial(model), method="random", sparsity=SPARSITY, scope="layer")
    return Trial(model, masks, None, _comparable(model))


def _comparable(model: Model) -> torch.dtype:
    """float64 if the dense model computes in it."""
    try:
        with torch.no_grad():
            outputs(model, initial(model).double().eval(), in_dtype(model.batch, torch.float64))
    except Exception:
        return torch.float32
    return torch.float64


def outputs(model: Model, network: nn.Module, batch: Any) -> list[Tensor]:
    """All numbers that it returns for a batch."""
    args, kwargs = model.arguments(batch)
    return numbers_in(network(*args, **kwargs))


def numbers_in(value: Any) -> list[Tensor]:
    leaves = _pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def train(
    model: Model, network: nn.Module, steps: int, optimizer: torch.optim.Optimizer | None = None
) -> list[float]:
    """Train on one batch, by AdamW where no optimizer is given; losses before each step and at the end."""
    optimizer = optimizer or torch.optim.AdamW(network.parameters(), lr=1e-3)
    dtype = next(p.dtype for p in network.parameters() if p.is_floating_point())
    batch, loss = in_dtype(model.batch, dtype), of_batch(model.loss)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        found = loss(network, batch)
        found.backward()
        optimizer.step()
        losses.append(float(found.detach()))
    with torch.no_grad():
        return [*losses, float(loss(network, batch))]


def steady(network: nn.Module) -> nn.Module:
    """In training mode but for chance (dropout, dropped paths), which differs with the layout in memory."""
    for module in network.modules():
        module.training = isinstance(module, _BatchNorm | BatchNormAct2d)
    return network


def shifted(network: nn.Module) -> nn.Module:
    """With biases of batch norms that are not 0: a channel without weights is, and ReLU might do either."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.bias is not None:
            noise = torch.randn(module.bias.shape, generator=generator, dtype=module.bias.dtype)
            module.bias.data.add_(noise, alpha=0.1)
    return network


def compare(
    what: str, found: Sequence[Tensor], expected: Sequence[Tensor], largest: float | None = None
) -> None:
    """Raise WrongError unless numbers agree to half of the digits, √u of the largest (or of ``largest``).

    So far may two computations of a whole network be apart by roundings alone; one lost weight is more.
    """
    if [t.shape for t in found] != [t.shape for t in expected]:
        raise WrongError(f"{what}: other shapes than the dense model")
    for a, b in zip(found, expected, strict=True):
        if a.dtype != b.dtype:
            raise WrongError(f"{what}: {a.dtype}, not {b.dtype} as of the dense model")
        if not a.numel():
            continue
        a, b = a.detach().double(), b.detach().double()
        bound = (torch.finfo(expected[0].dtype).eps / 2) ** 0.5
        size = float(b.abs().max()) if largest is None else largest
        apart = float((a - b).abs().max())
        # NaN is wrong too.
        if not apart <= bound * size:
            raise WrongError(f"{what}: {apart:.1e} apart, with numbers up to {size:.1e}")
