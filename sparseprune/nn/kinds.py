"""Which dense layer becomes which sparse one, and why not; and back."""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from sparseprune.format.weights import all_weights, is_transposed, weight_names
from sparseprune.nn.attention import ProjectedAttention, why_not_projected
from sparseprune.nn.conv import SparseConv1d, SparseConv2d
from sparseprune.nn.linear import SparseLinear
from sparseprune.nn.masked import DenseLayer, Masked, dense_from_masked, masks_in
from sparseprune.nn.values import check_dtype

Sparse: TypeAlias = SparseLinear | SparseConv1d | SparseConv2d
SPARSE: dict[type[nn.Module], Any] = {
    nn.Linear: SparseLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
}
# What a class computes with; a sparse layer stands for those that leave all of it as it is.
COMPUTING = ("forward", "_conv_forward", "__call__", "_call_impl", "__getattr__", "__getattribute__")


class Original(NamedTuple):
    """What a sparse layer was made from, where that is not of torch's own class.

    Attributes:
        kind: its class.
        attributes: all that it had beside what every module has.
    """

    kind: type[nn.Module]
    attributes: dict[str, Any]


def why_not_sparse(module: nn.Module) -> str:
    """Why there are no sparse kernels for a layer; empty if there are."""
    kind = type(module)
    # A class derived from transformers' computes in some way of its own.
    parent = kind if is_transposed(kind) and kind.__name__ == "Conv1D" else _parent(module)
    if parent is None:
        return f"no sparse kernels for {kind.__name__}"
    if not _computes_like(kind, parent) or "forward" in vars(module):
        return f"{kind.__name__} has a forward of its own"
    if set(module._parameters) - {"weight", "bias"} or module._buffers or module._modules:
        return f"{kind.__name__} has parameters or buffers of its own"
    weight = module.get_parameter("weight")
    try:
        check_dtype(weight, kind.__name__)
    except TypeError:
        return f"no sparse kernels for {str(weight.dtype).removeprefix('torch.')}"
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups > 1 and weight.shape[1] == 1:
        return "depthwise: no sparse kernels"
    return ""


def sparse_from_dense(module: nn.Module, mask: Tensor, *, block: tuple[int, int] | None = None) -> Sparse:
    """A sparse layer with the weights that ``mask`` keeps of a layer for which there are sparse kernels.

    Args:
        module: the dense layer, for which :func:`why_not_sparse` is empty; not changed.
        mask: bool, of the weight's shape, True = keep.
        block: (V, 1); None takes the largest V for which the mask is made of whole blocks. Of a layer with a
            transposed weight, blocks are those of the weight (out_features, in_features).
    """
    parent, dense = _parent(module), module
    if is_transposed(type(module)):
        parent, dense, mask = nn.Linear, _linear_of(module), mask.t().contiguous()
    assert parent is not None
    sparse: Sparse = SPARSE[parent].from_dense(dense, mask, block=block)
    if type(module) is not parent:
        own = {name: value for name, value in vars(module).items() if name not in vars(nn.Module())}
        own = copy.deepcopy(own)
        for name, value in own.items():
            # For whoever reads it.
            if not hasattr(sparse, name):
                setattr(sparse, name, value)
        vars(sparse)["original"] = Original(type(module), own)
    return sparse


def dense_from_sparse(sparse: Sparse) -> nn.Module:
    """The dense layer with the same weights, of the class that it had, zeros in place of the pruned ones."""
    dense: Any = sparse.to_dense()
    original: Original | None = vars(sparse).get("original")
    if original is None:
        return dense
    if is_transposed(original.kind):
        del dense.in_features, dense.out_features
        trained = dense.weight.requires_grad
        dense.weight = nn.Parameter(dense.weight.detach().t().contiguous(), trained)
    dense.__class__ = original.kind
    vars(dense).update(copy.deepcopy(original.attributes))
    return dense


def torch_layer(module: nn.Module) -> DenseLayer | None:
    """A dense layer, or the input projection of an attention, as torch's own layer; None if there is none."""
    if is_transposed(type(module)):
        return _linear_of(module)
    if isinstance(module, nn.MultiheadAttention):
        in_proj = None if why_not_projected(module) else ProjectedAttention.from_attention(module).in_proj
        return in_proj if isinstance(in_proj, nn.Linear) else None
    return module if isinstance(module, DenseLayer) else None


def to_dense(module: nn.Module) -> nn.Module:
    """A copy of a sparse or masked layer or a :class:`ProjectedAttention` as what it was made from."""
    if isinstance(module, Sparse):
        return dense_from_sparse(module)
    if isinstance(module, Masked):
        inside = (
            part for part in module.modules() if part is not module and isinstance(part, Sparse | Masked)
        )
        return dense_from_masked(module, {id(part): to_dense(part) for part in inside})
    if isinstance(module, ProjectedAttention):
        in_proj, out_proj = to_dense(module.in_proj), to_dense(module.out_proj)
        assert isinstance(in_proj, nn.Linear)
        return module.to_attention(in_proj, out_proj)
    return copy.deepcopy(module)


class Layer(NamedTuple):
    """A weight that is pruned or could be.

    Attributes:
        name: the weight's name in the dense model.
        module: the layer: sparse, masked or dense.
        attribute: the weight's name there; of a sparse layer its property ``weight``.
        shape: shape of the dense weight.
        transposed: whether that is (in_features, out_features).
    """

    name: str
    module: nn.Module
    attribute: str
    shape: tuple[int, ...]
    transposed: bool

    @property
    def mask(self) -> Tensor | None:
        """True = keep, of ``shape``; None for a dense layer."""
        if isinstance(self.module, Sparse):
            return self.module.mask.t() if self.transposed else self.module.mask
        return masks_in(self.module).get(self.attribute) if isinstance(self.module, Masked) else None

    @property
    def parameter(self) -> nn.Parameter:
        """What is trained: all weights, or the kept values of a sparse layer."""
        found = self.module._parameters["values" if isinstance(self.module, Sparse) else self.attribute]
        assert found is not None
        return found


def layers_of(model: nn.Module) -> list[Layer]:
    """Every weight of a model, dense, masked or sparse, that is pruned or could be, in module order."""
    able = {(weight.module, weight.attribute) for weight in all_weights(model) if not weight.why_not}
    projections = {m.in_proj for m in model.modules() if isinstance(m, ProjectedAttention)}
    found: list[Layer] = []
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, ProjectedAttention):
            found += _layers(f"{prefix}in_proj_", module.in_proj, able)
        elif module not in projections:
            found += _layers(prefix, module, able)
    return found


def _layers(prefix: str, module: nn.Module, able: set[tuple[nn.Module, str]]) -> Iterator[Layer]:
    if isinstance(module, Sparse):
        original: Original | None = vars(module).get("original")
        transposed = original is not None and is_transposed(original.kind)
        shape = module.weight_shape[::-1] if transposed else module.weight_shape
        yield Layer(f"{prefix}weight", module, "weight", shape, transposed)
        return
    for name in weight_names(module):
        if (module, name) in able:
            weight = module._parameters[name]
            assert weight is not None
            yield Layer(f"{prefix}{name}", module, name, tuple(weight.shape), is_transposed(type(module)))


def _parent(module: nn.Module) -> type[nn.Module] | None:
    return next((dense for dense in SPARSE if isinstance(module, dense)), None)


def _computes_like(kind: type[nn.Module], parent: type[nn.Module]) -> bool:
    return all(getattr(kind, name, None) is getattr(parent, name, None) for name in COMPUTING)


def _linear_of(conv1d: nn.Module) -> nn.Linear:
    """A linear layer with the parameters of transformers' ``Conv1D``."""
    weight, bias = conv1d.get_parameter("weight"), conv1d.get_parameter("bias")
    linear = nn.utils.skip_init(nn.Linear, *weight.shape, device="meta")
    linear.weight = nn.Parameter(weight.detach().t(), weight.requires_grad)
    linear.bias = bias
    return linear.train(conv1d.training)
