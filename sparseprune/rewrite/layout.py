"""How activations lie in memory along a network: sparse layers want samples innermost, whatever is not known
gets ordinary contiguous tensors."""

import itertools
import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import fx, nn

from sparseprune.nn import FusedReLU, MaskedConv1d, MaskedConv2d, MaskedLinear, SparseLinear
from sparseprune.nn.batch_norm import BatchNormAct2d
from sparseprune.nn.conv import SparseConv1d, SparseConv2d
from sparseprune.nn.frozen import AddAct2d, FoldedNorm1d
from sparseprune.nn.pooling import CLASSES as POOL_CLASSES
from sparseprune.rewrite.trace import Trace, called, has_hooks, trace_all

# Modules that treat every number alike and keep strides.
POINTWISE: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Tanh, nn.Sigmoid),
    *(nn.Hardtanh, nn.Dropout, nn.Identity, FusedReLU, FoldedNorm1d),
)

# What decides itself how its output lies.
PRODUCERS = (SparseConv1d, SparseConv2d, BatchNormAct2d, AddAct2d, *POOL_CLASSES.values())

# What a node of a network does with an input that lies batch-inner.
# "wants": computes best from it. "copies": makes it ordinary first. "passes": computes from either, and
# decides how its result lies. "keeps": takes any strides, its result may have the same. "takes": takes any
# strides, its result is ordinary. "strict": not known, or depends on strides.
Role: TypeAlias = Literal["wants", "copies", "passes", "keeps", "takes", "strict"]


class Asked(NamedTuple):
    """What the consumers of a result ask: that it be ordinary; how many want it batch-inner or copy it."""

    strict: bool = False
    wants: int = 0
    copies: int = 0

    def and_also(self, other: "Asked") -> "Asked":
        return Asked(self.strict or other.strict, self.wants + other.wants, self.copies + other.copies)


KEEPING_MODULES = (*POINTWISE, nn.Dropout2d, nn.Flatten, nn.AdaptiveAvgPool2d)
TAKING_MODULES = (nn.Linear, MaskedLinear)
COPYING_MODULES = (nn.Conv1d, nn.Conv2d, MaskedConv1d, MaskedConv2d)
KEEPING_FUNCTIONS: set[Callable[..., Any]] = {
    *(operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul),
    *(operator.truediv, operator.neg, torch.add, torch.sub, torch.mul, torch.div, torch.relu),
    *(torch.sigmoid, torch.tanh, torch.flatten, torch.reshape, torch.mean, F.relu, F.relu6, F.leaky_relu),
    *(F.elu, F.gelu, F.silu, F.hardtanh, F.sigmoid, F.tanh, F.dropout, F.dropout2d, F.adaptive_avg_pool2d),
}
KEEPING_METHODS = {
    *("add", "add_", "sub", "sub_", "mul", "mul_", "relu", "relu_", "sigmoid", "tanh"),
    *("flatten", "reshape", "mean", "clone", "detach"),
}
TAKING_FUNCTIONS: set[Callable[..., Any]] = {torch.cat, torch.numel, F.max_pool2d, F.avg_pool2d}
TAKING_METHODS = {"size", "dim", "numel", "contiguous"}


def mark_layout(model: nn.Module) -> None:
    """Set ``batch_inner`` of the modules of this package that choose how their output lies in memory.

    Never True where some consumer is known to need, or might need, ordinary memory. Otherwise, seen through
    pointwise modules and functions, additions and flattening: as most convolutions that read it want it,
    which is batch-inner if they are sparse and ordinary if they are dense; where none does, what a sparse
    convolution gives is batch-inner, and batch-norm and pools keep what they get. Numbers do not change, but
    for those that Dropout drops: it draws in the order of memory.

    The network is followed with torch.fx, in training and in evaluation mode. What cannot be followed gets
    and gives ordinary tensors, and its parts are followed one by one. An ``nn.Sequential`` there is
    taken to be called as a whole.
    """
    mark_runs(model)
    asked: dict[Any, Asked] = {}
    traces = trace_all(model)
    for trace in traces:
        for node, of_node in _asked(trace).items():
            module = called(trace, node)
            if module is not None and isinstance(module, PRODUCERS):
                of_node = of_node._replace(strict=of_node.strict or has_hooks(module))
                asked[module] = asked.get(module, Asked()).and_also(of_node)
    followers = set()
    for module, of_module in asked.items():
        undecided = of_module.wants == of_module.copies == 0
        module.batch_inner = not of_module.strict and of_module.wants >= of_module.copies
        if undecided and module.batch_inner and not isinstance(module, (SparseConv1d, SparseConv2d)):
            followers.add(module)
    for trace in traces:
        _follow(trace, followers)


def role_of(trace: Trace, node: fx.Node) -> Role:
    """What a node does with a batch-inner input."""
    if node.op == "call_module":
        module = trace.root.get_submodule(str(node.target))
        if has_hooks(module):
            return "strict"
        if isinstance(module, (SparseConv1d, SparseConv2d, SparseLinear)):
            return "wants"
        if isinstance(module, PRODUCERS):
            return "passes"
        if type(module) in KEEPING_MODULES:
            return "keeps"
        kind = type(module)
        return "copies" if kind in COPYING_MODULES else "takes" if kind in TAKING_MODULES else "strict"
    if node.op == "call_function":
        if node.target is getattr:
            return "takes" if node.args[1] in ("shape", "dtype", "device", "ndim") else "strict"
        if node.target in KEEPING_FUNCTIONS:
            return "keeps"
        takes = node.target in TAKING_FUNCTIONS and not node.kwargs.get("return_indices")
        return "takes" if takes else "strict"
    if node.op == "call_method":
        if node.target in KEEPING_METHODS:
            return "keeps"
        return "takes" if node.target in TAKING_METHODS else "strict"
    return "strict"


def _asked(trace: Trace) -> dict[fx.Node, Asked]:
    """What the consumers of each node ask of its result."""
    asked: dict[fx.Node, Asked] = {}
    for node in reversed(trace.graph.nodes):
        total = Asked()
        for user in node.users:
            role = role_of(trace, user)
            if role == "keeps":
                of_user = asked[user]
            elif role == "passes":
                # It brings its result into either layout, and is faster where its input lies batch-inner.
                of_user = Asked(wants=asked[user].wants)
            else:
                of_user = Asked(role == "strict", role == "wants", role == "copies")
            total = total.and_also(of_user)
        asked[node] = total
    return asked


def _follow(trace: Trace, followers: Collection[Any]) -> None:
    """Followers keep the layout that they get, and a linear layer that is in no run, but after a convolution,
    gives back ordinary memory."""
    inner: set[fx.Node] = set()
    for node in trace.graph.nodes:
        module = called(trace, node)
        sources = node.all_input_nodes
        fed = any(source in inner for source in sources)
        if isinstance(module, SparseLinear):
            if fed and module.batch_inner is None:
                module.batch_inner = False
            if module.batch_inner:
                inner.add(node)
        elif isinstance(module, PRODUCERS):
            producer: Any = module
            if module in followers and sources[:1] and sources[0] not in inner:
                producer.batch_inner = False
            if producer.batch_inner:
                inner.add(node)
        elif fed and role_of(trace, node) == "keeps":
            inner.add(node)


# ---- runs of linear layers ---------------------------------------------------------------------------------


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
        if type(relu) is nn.ReLU and all(places[m] == 1 and not has_hooks(m) for m in (module, relu))
    }


def mark_runs(model: nn.Module) -> None:
    """Set ``batch_inner`` of the linear sparse layers of every run.

    A run is two or more sparse layers of an ``nn.Sequential`` (and of those nested in it) with nothing but
    pointwise modules between them. Its last layer returns ordinary contiguous tensors (False), all others
    batch-inner ones (True). A layer that is alone keeps what it has.
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
    # A layer that ends one run and is within another: what follows may need it contiguous.
    for layer in last:
        layer.batch_inner = False


def _is_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _flat(sequential: nn.Module) -> Iterator[nn.Module]:
    # children() omits a module's second appearance.
    for child in sequential._modules.values():
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
