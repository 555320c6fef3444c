"""What a network's forward passes do, as torch.fx graphs: of the whole network or, where it cannot be
followed, of its parts."""

import inspect
import operator
import random
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from sparseprune.nn.batch_norm import is_norm_with_act


class Trace(NamedTuple):
    """The calls that ``root``'s forward makes, down to leaves: modules of torch and of this package."""

    root: nn.Module
    graph: fx.Graph


class _Proxy(fx.Proxy):
    """Records ``x += y`` as what it is: torch.fx takes it for ``x = x + y``, which leaves x alone."""


def _recorded(change: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", change, (self, other), {})


for _change in (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow):
    setattr(_Proxy, f"__{_change.__name__}__", _recorded(_change))


class _Tracer(fx.Tracer):
    def __init__(self, opaque: frozenset[nn.Module]) -> None:
        super().__init__()
        # So that what changes a buffer is recorded, not done.
        self.proxy_buffer_attributes = True
        self.opaque = opaque

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.opaque or has_hooks(m) or _is_leaf(m)


class _BlockTracer(_Tracer):
    """Stops at all modules but those to be ``inlined``."""

    def __init__(self, inlined: Collection[nn.Module]) -> None:
        super().__init__(frozenset())
        self.inlined = inlined

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.inlined


def trace_all(model: nn.Module) -> list[Trace]:
    """Traces that cover all calls of modules in the model that can be followed, in both modes.

    Parts within what cannot be followed, and modules with hooks, are traces of their own: each as if called
    once, by something unknown.
    """
    traces: list[Trace] = []
    seen: set[nn.Module] = set()

    def visit(module: nn.Module) -> None:
        if module in seen:
            return
        seen.add(module)
        if _is_leaf(module):
            alone = nn.Sequential(module)
            traces.extend(Trace(alone, graph) for graph in _graphs(alone, frozenset()))
            return
        graphs = _graphs_of_root(module)
        traces.extend(Trace(module, graph) for graph in graphs)
        for graph in graphs:
            for node in graph.nodes:
                part = called(Trace(module, graph), node)
                if part is not None and not _is_leaf(part):
                    visit(part)
        if not graphs:
            for child in module.children():
                visit(child)

    visit(model)
    return traces


def trace_block(block: nn.Module, inlined: Collection[nn.Module]) -> fx.Graph | None:
    """The forward of one module with its children as leaves; None if no graph can stand for the forward.

    That is where it cannot be followed, differs between training and evaluation, has optional arguments, or
    computes with a tensor that is none of the module's, such as the ``weight`` of a sparse layer.

    Args:
        block: the module.
        inlined: those of its children to look into.
    """
    if not _is_plain(block):
        return None
    graphs = [_graph(block, _BlockTracer(inlined), training) for training in (True, False)]
    graph = graphs[0] if str(graphs[0]) == str(graphs[1]) else None
    # torch.fx kept such a tensor in the module while it looked.
    read = [] if graph is None else [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    return graph if all(hasattr(block, name.split(".")[0]) for name in read) else None


def called(trace: Trace, node: fx.Node) -> nn.Module | None:
    """The module that a node calls."""
    return trace.root.get_submodule(str(node.target)) if node.op == "call_module" else None


def has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return any((*hooks, module._backward_hooks, module._backward_pre_hooks))


def _is_leaf(module: nn.Module) -> bool:
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    home = type(module).__module__
    ours = home.startswith(("torch.nn.", "torch.ao.nn.", "sparseprune.nn."))
    return (ours and not isinstance(module, containers)) or is_norm_with_act(module)


def _graphs_of_root(root: nn.Module) -> list[fx.Graph]:
    if not _is_plain(root):
        return []
    graphs = _graphs(root, frozenset())
    if graphs:
        return graphs
    opaque: frozenset[nn.Module] = frozenset()
    # The innermost first.
    for part in reversed(list(root.modules())[1:]):
        if not _is_leaf(part) and not _graphs(part, opaque):
            opaque |= {part}
    return _graphs(root, opaque) if opaque else []


def _graphs(root: nn.Module, opaque: frozenset[nn.Module]) -> list[fx.Graph]:
    """In training and in evaluation mode; none if either cannot be followed."""
    graphs = []
    for training in (True, False):
        graph = _graph(root, _Tracer(opaque), training)
        if graph is None:
            return []
        graphs.append(graph)
    return graphs


def _graph(root: nn.Module, tracer: fx.Tracer, training: bool) -> fx.Graph | None:
    if isinstance(root, (nn.ModuleList, nn.ModuleDict)):
        return None
    with _unchanged(root) as drew_random_numbers:
        for module in root.modules():
            module.training = training
        try:
            graph = tracer.trace(root)
        except Exception:
            # A forward is any code: whatever it raises, it cannot be followed.
            return None
        if drew_random_numbers():
            # Decided by chance: another time it is another graph.
            return None
    return graph


@contextmanager
def _unchanged(root: nn.Module) -> Iterator[Callable[[], bool]]:
    """Undo what running a forward leaves behind in modules and generators of random numbers."""
    before = {module: dict(module.__dict__) for module in root.modules()}
    state, python_state = torch.get_rng_state(), random.getstate()

    def drew() -> bool:
        return not torch.equal(torch.get_rng_state(), state) or random.getstate() != python_state

    try:
        yield drew
    finally:
        for module, attributes in before.items():
            module.__dict__.clear()
            module.__dict__.update(attributes)
        torch.set_rng_state(state)
        random.setstate(python_state)


def _is_plain(module: nn.Module) -> bool:
    """Whether forward has required positional arguments only, so that one graph stands for every call."""
    parameters = inspect.signature(module.forward).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return all(p.kind in plain and p.default is p.empty for p in parameters)
