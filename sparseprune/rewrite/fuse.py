"""Where activations lie batch-inner: batch-norm that also adds the residual and computes the ReLU, and pools
that keep the layout; and the way back."""

import copy
import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from sparseprune.nn import FusedReLU, SparseConv1d, SparseConv2d, SparseLinear
from sparseprune.nn.batch_norm import BatchNormAct2d, BatchNormAnyAct2d, is_norm_with_act
from sparseprune.nn.frozen import SparseConvAct2d
from sparseprune.nn.pooling import CLASSES as POOL_CLASSES
from sparseprune.nn.pooling import batch_inner_pool, ordinary_pool
from sparseprune.rewrite.forward import Rewritten, attributes_read, original_class, rewrite
from sparseprune.rewrite.layout import KEEPING_FUNCTIONS, KEEPING_METHODS, fusible_relus, neighbours, role_of
from sparseprune.rewrite.trace import Trace, called, has_hooks, trace_all, trace_block

ADDS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add)
ADD_METHODS = ("add", "add_")
IN_PLACE_ADDS: tuple[Any, ...] = (operator.iadd, "add_")
RELUS: tuple[Any, ...] = (F.relu, F.relu_, torch.relu, torch.relu_)
PADS: tuple[Any, ...] = (F.pad, torch.cat)
# What computes a ReLU (``relu``), and but for linear layers an addition before it.
ABSORBING = (BatchNormAct2d, SparseConvAct2d, SparseLinear)


def fuse(model: nn.Module) -> nn.Module:
    """Fuse what surrounds the sparse layers of a model, in place.

    Between and next to sparse convolutions, where activations lie batch-inner: ``nn.BatchNorm2d`` becomes
    :class:`BatchNormAct2d`, as does timm's layer of that name, and pools keep the layout. Sparse linear
    layers and such batch-norms take over the ``nn.ReLU`` after them in an ``nn.Sequential`` (a
    :class:`FusedReLU` stands in its place), and those in the forward of a module that torch.fx can follow,
    batch-norms the residual additions too: the module then has a class of the same name, derived from its
    own, with another forward.

    Names, ``state_dict`` keys, parameters and numbers stay the same. Modules that occur twice, are called
    twice or have hooks are left as they are, and so are forwards that depend on the mode, on chance, on
    optional arguments or on attributes other than flags, integers and strings (which then cannot be set to
    something else).

    Returns:
        ``model``.
    """
    replace_in_place(model, _norms_and_pools(model))
    calls = count_calls(traces_of_roots(model))
    relus: dict[nn.Module, nn.Module] = {}
    for before, relu in fusible_relus(model).items():
        alone = isinstance(before, SparseLinear) or calls[before] == 1
        if isinstance(before, (SparseLinear, BatchNormAct2d)) and before.is_last and alone:
            before.relu = True
            relus[relu] = FusedReLU(relu.inplace).train(relu.training)
    replace_in_place(model, relus)
    fuse_forwards(model, calls)
    return model


def fuse_forwards(model: nn.Module, calls: Counter[nn.Module]) -> set[nn.Module]:
    """Let layers take in the residual additions and ReLUs after them in the forwards of users' modules.

    Args:
        model: changed in place.
        calls: how often a forward pass calls each module.
    Returns:
        the layers that took something in.
    """
    return {layer for block in list(model.modules()) for layer in _fuse_block(block, calls)}


def unfuse(model: nn.Module) -> nn.Module:
    """A copy of a model in which nothing is fused: torch's own batch-norms, ReLUs and pools, and the forwards
    that modules had. Sparse layers stay sparse, without a ReLU.

    Raises:
        ValueError: a module computes a ReLU, and there is no place it could go back to.
    """
    with_place = {module for module, after in neighbours(model) if isinstance(after, FusedReLU)}
    for block in model.modules():
        if isinstance(block, Rewritten):
            with_place |= {block.get_submodule(name) for name in block.rewriting.absorbing}
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        fused = isinstance(module, (SparseLinear, BatchNormAct2d)) and module.relu
        if fused and module not in with_place:
            dense = "nn.Linear" if isinstance(module, SparseLinear) else "nn.BatchNorm2d"
            raise ValueError(
                f"densify: expected a FusedReLU after {name or 'the layer'!r} in an nn.Sequential, since "
                f"{dense} cannot hold its ReLU (relu=True), got none; sparsify(fuse=False) keeps ReLUs apart"
            )
        if isinstance(module, BatchNormAct2d):
            replacements[module] = module.to_batch_norm()
        elif isinstance(module, FusedReLU):
            replacements[module] = nn.ReLU(module.inplace).train(module.training)
        elif type(module) in POOL_CLASSES.values():
            replacements[module] = ordinary_pool(module)
    result = copy.deepcopy(model, {id(old): new for old, new in replacements.items()})
    for module in result.modules():
        if isinstance(module, Rewritten):
            restored: nn.Module = module
            restored.__class__ = original_class(module)
        elif isinstance(module, SparseLinear):
            module.relu = False
    return result


def _norms_and_pools(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """``{batch-norm or pool: what replaces it}`` where a sparse convolution comes before or after.

    With nothing but others of them, and what keeps the layout, between.
    """
    found: dict[nn.Module, nn.Module] = {}
    for trace in trace_all(model):
        before: dict[fx.Node, bool] = {}  # whether a node's result may lie as a convolution gave it
        for node in trace.graph.nodes:
            fed = any(before[source] for source in node.all_input_nodes)
            before[node] = _is_conv(trace, node) or (fed and _passes(trace, node))
        after: dict[fx.Node, bool] = {}  # ... and whether it reaches a convolution as it lies
        for node in reversed(trace.graph.nodes):
            users = node.users
            after[node] = any(_is_conv(trace, u) or (after[u] and _passes(trace, u)) for u in users)
        for node in trace.graph.nodes:
            module = called(trace, node)
            if module is not None and _is_candidate(module) and (before[node] or after[node]):
                found[module] = module
    return {module: _replacement(module) for module in found}


def _is_conv(trace: Trace, node: fx.Node) -> bool:
    return isinstance(called(trace, node), (SparseConv1d, SparseConv2d))


def _passes(trace: Trace, node: fx.Node) -> bool:
    module = called(trace, node)
    return (module is not None and _is_candidate(module)) or role_of(trace, node) == "keeps"


def _is_candidate(module: nn.Module) -> bool:
    if getattr(module, "return_indices", False) or any(has_hooks(part) for part in module.modules()):
        return False
    return type(module) is nn.BatchNorm2d or is_norm_with_act(module) or type(module) in POOL_CLASSES


def _replacement(module: nn.Module) -> nn.Module:
    if is_norm_with_act(module):
        return BatchNormAnyAct2d.from_batch_norm(module)
    if isinstance(module, nn.BatchNorm2d):
        return BatchNormAct2d.from_batch_norm(module)
    return batch_inner_pool(module)


def traces_of_roots(model: nn.Module) -> list[Trace]:
    """One trace of each part that can be followed, of the two modes that in evaluation."""
    return list({trace.root: trace for trace in trace_all(model)}.values())


def count_calls(traces: Iterable[Trace]) -> Counter[nn.Module]:
    """How often one forward pass calls each module, as far as it can be followed."""
    return Counter(
        module
        for trace in traces
        for node in trace.graph.nodes
        if (module := called(trace, node)) is not None
    )


def replace_in_place(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules in the places of some within a model."""
    for parent in list(model.modules()):
        # named_children() omits a module's second name.
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]


# ---- forwards ----------------------------------------------------------------------------------------------


def _fuse_block(block: nn.Module, calls: Counter[nn.Module]) -> list[nn.Module]:
    """Rewrite the forward of a user's module that adds residuals or applies ReLUs; after which layers."""
    found = any(isinstance(module, ABSORBING) for module in block.modules())
    own = not type(block).__module__.startswith(("torch.nn.", "sparseprune.nn."))
    constants = attributes_read(block) if own and found else None
    if constants is None:
        return []
    # Looking into children only where it helps: hooks that they get later are not called then.
    ends = {module for module in block.modules() if module is not block and _absorbs_at_its_end(module)}
    best: tuple[fx.Graph, dict[fx.Node, bool]] | None = None
    for inlined in (set(), ends) if ends else (set(),):
        graph = trace_block(block, inlined)
        if graph is not None:
            absorbing = _absorb(Trace(block, graph), calls)
            if len(absorbing) > (len(best[1]) if best else 0):
                best = graph, absorbing
    if best is None:
        return []
    graph, absorbing = best
    names = [str(node.target) for node in absorbing]
    layers = [block.get_submodule(name) for name in names]
    for layer, relu in zip(layers, absorbing.values(), strict=True):
        assert isinstance(layer, ABSORBING)
        layer.relu = relu
    graph.lint()
    rewrite(block, graph, names, constants)
    return layers


def _absorbs_at_its_end(module: nn.Module) -> bool:
    if type(module) is not nn.Sequential or has_hooks(module) or len(module) == 0:
        return False
    return isinstance(module[-1], ABSORBING) or _absorbs_at_its_end(module[-1])


def _absorb(trace: Trace, calls: Counter[nn.Module]) -> dict[fx.Node, bool]:
    """``{layer's node that does more now: whether a ReLU}``; the graph is changed, no module is."""
    absorbing: dict[fx.Node, bool] = {}
    for node in list(trace.graph.nodes):
        layer = called(trace, node)
        plain = len(node.args) == 1 and not node.kwargs
        if (
            isinstance(layer, ABSORBING)
            and plain
            and calls[layer] == 1
            and layer.is_last
            and not has_hooks(layer)
        ):
            adds = not isinstance(layer, SparseLinear)
            with_residual = _absorb_addition(trace.graph, node) if adds else None
            fused = with_residual or node
            relu = _absorb_relu(trace, fused)
            if relu or with_residual is not None:
                absorbing[fused] = relu
    return absorbing


def _absorb_addition(graph: fx.Graph, layer: fx.Node) -> fx.Node | None:
    """The layer's new node, with the residual as second argument, if an addition alone uses the old."""
    add = _only_user(layer)
    if add is None or add.kwargs or len(add.args) != 2 or _only_user(layer.all_input_nodes[0]) is None:
        return None
    if not (add.target in ADDS if add.op == "call_function" else add.target in ADD_METHODS):
        return None
    left, right = add.args
    residual = right if left is layer else left
    if left is right or not isinstance(residual, fx.Node) or not _is_activation(residual):
        return None
    # It would change the residual, which others may see.
    if add.target in IN_PLACE_ADDS and left is not layer:
        return None
    # Not where the layer was: there may be no residual yet.
    with graph.inserting_before(add):
        fused = graph.call_module(str(layer.target), (layer.args[0], residual))
    add.replace_all_uses_with(fused)
    graph.erase_node(add)
    graph.erase_node(layer)
    return fused


def _is_activation(node: fx.Node) -> bool:
    """Whether a node surely gives a tensor of activations, and not a size or a factor."""
    if node.op == "placeholder":
        return any(user.op == "call_module" for user in node.users)
    if node.op in ("call_function", "call_method"):
        return node.target in KEEPING_FUNCTIONS or node.target in KEEPING_METHODS or node.target in PADS
    return node.op == "call_module"


def _absorb_relu(trace: Trace, layer: fx.Node) -> bool:
    relu = _only_user(layer)
    if relu is None or not relu.args or relu.args[0] is not layer:
        return False
    module = called(trace, relu)
    is_module = type(module) is nn.ReLU and module is not None and not has_hooks(module)
    is_function = relu.op == "call_function" and relu.target in RELUS
    is_method = relu.op == "call_method" and relu.target in ("relu", "relu_")
    if not (is_module or is_function or is_method):
        return False
    relu.replace_all_uses_with(layer)
    trace.graph.erase_node(relu)
    return True


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
