"""Every parameter of a model under the name that it has in the dense model, whatever became of its layer."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from sparseprune.nn import dialects
from sparseprune.nn.dialects import DENSE, MASKED, PRUNED, SPARSE, Dialect
from sparseprune.nn.masked import Masked
from sparseprune.nn.sparse import SparseLayer

COMPILED = "_orig_mod"  # what torch.compile puts into names


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within what torch.compile and the parallel wrappers made of it."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(inner := model._modules.get(COMPILED), nn.Module):
            model = inner
        else:
            return model


def plain(name: str) -> str:
    """A name without what torch.compile put into it."""
    return ".".join(part for part in name.split(".") if part != COMPILED)


class Site(NamedTuple):
    """A parameter of a model, in whichever dialect its layer has it.

    Attributes:
        name: its name in the dense model without wrappers, such as "0.weight".
        prefix: what the layer's names begin with in the model's state dict.
        module: the layer.
        dialect: which of those of :mod:`sparseprune.nn.dialects` it has.
        parts: the layer's own names for the parts of that.
        transposed: whether the dense weight is the transpose of what sparse layers and files store.
    """

    name: str
    prefix: str
    module: nn.Module
    dialect: Dialect
    parts: tuple[str, ...]
    transposed: bool

    @property
    def parameter(self) -> nn.Parameter:
        """What is trained."""
        # Read as an attribute, it may be the product with its mask.
        found = self.module._parameters[self.parts[0]]
        assert found is not None
        return found

    @property
    def mask(self) -> Tensor | None:
        """True = keep, bool, of the dense weight's shape, a new tensor; None where the layer has none."""
        if self.dialect == DENSE:
            return None
        if isinstance(self.module, SparseLayer):
            return self.module.mask.t().contiguous() if self.transposed else self.module.mask
        mask = self.module._buffers[self.parts[1]]
        assert mask is not None
        return mask != 0

    def find(self, state_dict: Mapping[str, Any]) -> tuple[Dialect, dict[str, Any], list[str]]:
        """Its parts in a state dict of plain names; see :func:`sparseprune.nn.dialects.find`.

        A buffer of a dense layer that has a mask's name is no mask.
        """
        own_mask = dialects.mask_name(self.name.rpartition(".")[2])
        mask = self.dialect != DENSE or own_mask not in self.module._buffers
        return dialects.find(state_dict, self.name, mask)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the whole weight as sparse layers and files store it."""
        if isinstance(self.module, SparseLayer) and self.dialect == SPARSE:
            return self.module.weight_shape
        shape = tuple(self.parameter.shape)
        return shape[::-1] if self.transposed else shape


def sites(model: nn.Module) -> Iterator[Site]:
    """Every parameter of the model."""
    projections: dict[nn.Module, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        bare = projections.get(module, plain(prefix))
        if isinstance(module, nn.MultiheadAttention) and isinstance(
            in_proj := module._modules.get("in_proj"), nn.Module
        ):
            # sparsify() made a layer of in_proj_weight and in_proj_bias.
            projections[in_proj] = f"{plain(prefix)}in_proj_"
        masks = module.buffer_of if isinstance(module, Masked) else {}
        for own, parameter in module._parameters.items():
            name, dialect = own, DENSE
            parts: tuple[str, ...] = (own,)
            buffer = f"{own.removesuffix('_orig')}_mask"
            if parameter is None:
                continue
            if isinstance(module, SparseLayer) and own == "values":
                name, dialect, parts = "weight", SPARSE, SPARSE
            elif own in masks:
                dialect, parts = MASKED, (own, masks[own])
            elif own.endswith("_orig") and module._buffers.get(buffer) is not None and parameter.dim() > 1:
                name, dialect, parts = own.removesuffix("_orig"), PRUNED, (own, buffer)
            transposed = name == "weight" and dialects.is_transposed(module)
            yield Site(bare + name, prefix, module, dialect, parts, transposed)
