"""What neighbours in an ``nn.Sequential`` save: a sparse layer computes the ReLU after it, and runs of sparse
layers hand on activations batch-innermost, transposed at each end, not between."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

from torch import nn

from sparseprune.nn import FusedReLU, SparseLinear

# Modules that treat every number alike and keep strides.
POINTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Tanh,
    nn.Sigmoid,
    nn.Hardtanh,
    nn.Dropout,
    nn.Identity,
    FusedReLU,
)


def neighbours(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Every two modules that follow one another directly in an ``nn.Sequential`` of the model."""
    for module in model.modules():
        if _is_sequential(module):
            children = [child for child in module._modules.values() if child is not None]
            yield from itertools.pairwise(children)


def fusible_relus(model: nn.Module) -> dict[nn.Module, nn.ReLU]:
    """``{module: the nn.ReLU directly after it}``, where nothing else in the model sees what is between them.

    Both occur once in the model and have no hooks.
    """
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    return {
        module: relu
        for module, relu in neighbours(model)
        if type(relu) is nn.ReLU and all(places[m] == 1 and not _has_hooks(m) for m in (module, relu))
    }


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return any((*hooks, module._backward_hooks, module._backward_pre_hooks))


def mark_runs(model: nn.Module) -> None:
    """Set ``batch_inner`` of the sparse layers of every run.

    A run is two or more sparse layers of an ``nn.Sequential`` (and of those nested in it) with nothing but
    pointwise modules between them. Its last layer returns ordinary contiguous tensors (False), all others
    batch-inner ones (True). A layer that is alone keeps what it has. Numbers do not change, but for those
    that Dropout drops: it draws in the order of memory.
    """
    sequentials = [module for module in model.modules() if _is_sequential(module)]
    nested = {child for parent in sequentials for child in parent.children()}
    inner, last = set(), set()
    for sequential in sequentials:
        if sequential not in nested:
            for run in _runs(_flat(sequential)):
                inner.update(run[:-1])
                last.add(run[-1])
    for layer in inner:
        layer.batch_inner = True
    for layer in last:  # a layer that ends one run and is within another: what follows may need it contiguous
        layer.batch_inner = False


def _is_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _flat(sequential: nn.Module) -> Iterator[nn.Module]:
    for child in sequential._modules.values():  # children() omits a module's second appearance
        assert child is not None
        if _is_sequential(child):
            yield from _flat(child)
        else:
            yield child


def _runs(modules: Iterable[nn.Module]) -> Iterator[list[SparseLinear]]:
    run: list[SparseLinear] = []
    for module in modules:
        if isinstance(module, SparseLinear):
            run.append(module)
        elif type(module) not in POINTWISE:
            if len(run) > 1:
                yield run
            run = []
    if len(run) > 1:
        yield run
