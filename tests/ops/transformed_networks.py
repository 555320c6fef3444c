"""Small networks of all layers, and the same dense, as functions of the sparse ones' parameters."""

from collections.abc import Callable
from typing import Any

import torch
from other_layers import Conv1D, Experts
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

import sparseprune as sp
from sparseprune.format.bsr import dense_weight
from sparseprune.nn.kinds import layers_of
from sparseprune.nn.masked import Masked, masked_from_dense, masks_in
from sparseprune.nn.sparse import SparseLayer


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def sparse_of(dense: nn.Module, block_rows: int = 1, density: float = 0.6) -> Any:
    weight = dense.weight
    shape = (len(weight) // block_rows, *weight.shape[1:])
    mask = (noise(*shape, seed=7).sigmoid() < density).repeat_interleave(block_rows, 0)
    kind = {nn.Linear: sp.SparseLinear, nn.Conv1d: sp.SparseConv1d, nn.Conv2d: sp.SparseConv2d}[type(dense)]
    return kind.from_dense(dense, mask)


def with_relu(layer: Any) -> list[nn.Module]:
    layer.relu = True
    return [layer, sp.nn.FusedReLU()]


def network() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    norm(noise(5, 4, 3, 3, dtype=torch.float32))
    layers = (
        *(
            sparse_of(nn.Conv2d(2, 4, 3, stride=2, padding=1)),
            *with_relu(sp.nn.BatchNormAct2d.from_batch_norm(norm)),
        ),
        *(sparse_of(nn.Conv2d(4, 4, 1), 2), nn.Tanh(), nn.Flatten(), *with_relu(sparse_of(nn.Linear(24, 6)))),
        masked_from_dense(nn.Linear(6, 3), noise(3, 6) > 0),
    )
    return nn.Sequential(*layers).eval()


def norm(training: bool) -> nn.Module:
    layer = nn.BatchNorm2d(2, track_running_stats=not training)
    return nn.Sequential(*with_relu(sp.nn.BatchNormAct2d.from_batch_norm(layer))).train(training)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class SelfAttention(nn.Module):
    """A sparse attention, as function of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        dense = nn.MultiheadAttention(4, 2, batch_first=True)
        masks = {"0.in_proj_weight": noise(12, 4) > 0, "0.out_proj.weight": noise(4, 4, seed=3) > 0}
        self.attention = sp.sparsify(nn.Sequential(dense), masks, layers="sparse")[0]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x)[0]
        return y


def transposed() -> nn.Module:
    masks = {"0.weight": noise(5, 4) > 0}
    return sp.sparsify(nn.Sequential(Conv1D(4, 5)), masks, layers="sparse")


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: sparse_of(nn.Linear(5, 4)), (3, 5)),
    "linear, blocks, no bias": (lambda: sparse_of(nn.Linear(5, 4, bias=False), 2), (3, 5)),
    "linear, 3 dimensions": (lambda: sparse_of(nn.Linear(5, 4)), (2, 2, 5)),
    "linear and relu": (lambda: nn.Sequential(*with_relu(sparse_of(nn.Linear(5, 4)))), (3, 5)),
    "linear, no weights": (lambda: sparse_of(nn.Linear(5, 4), density=0), (3, 5)),
    "conv2d": (lambda: sparse_of(nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 0), groups=2), 2), (2, 2, 4, 3)),
    "conv2d, strides": (lambda: sparse_of(nn.Conv2d(1, 2, 2, 3, dilation=3)), (2, 1, 5, 7)),
    "conv2d, reflected": (
        lambda: sparse_of(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")),
        (2, 1, 3, 3),
    ),
    "conv2d, one image": (lambda: sparse_of(nn.Conv2d(2, 2, 2)), (2, 3, 3)),
    "conv1d": (lambda: sparse_of(nn.Conv1d(2, 2, 3, padding=1, dilation=2)), (2, 2, 5)),
    "masked linear": (lambda: masked_from_dense(nn.Linear(5, 4), noise(4, 5) > 0), (3, 5)),
    "masked conv2d": (lambda: masked_from_dense(nn.Conv2d(2, 2, 2), noise(2, 2, 2, 2) > 0), (2, 2, 3, 3)),
    "masked, of another class": (lambda: masked_from_dense(Doubled(5, 4), noise(4, 5) > 0), (3, 5)),
    "masked experts": (
        lambda: masked_from_dense(
            Experts(2, 3, 4), {"up": noise(2, 3, 4) > 0, "down": noise(2, 4, 3, seed=2) > 0}
        ),
        (4, 4),
    ),
    "transposed": (transposed, (3, 5)),
    "attention": (SelfAttention, (2, 3, 4)),
    "batch norm, evaluated": (lambda: norm(False), (2, 2, 2, 3)),
    "batch norm of a batch": (lambda: norm(True), (2, 2, 2, 3)),
    "network": (network, (2, 2, 6, 4)),
}

Parameters = dict[str, Tensor]
Call = Callable[[Parameters, Tensor], Tensor]


def dense_call(model: nn.Module) -> Call:
    """The densified network in float64, as a function of the sparse one's parameters."""
    dense = sp.densify(model).double()
    sparse = {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    kept = {name: layer for name, layer in model.named_modules() if isinstance(layer, Masked)}
    is_transposed = {layer.name: layer.transposed for layer in layers_of(model)}
    # The dense weight is a linear function of the values: a product with a matrix of zeros and ones.
    placed = {
        name: torch.stack(
            [
                dense_weight(one.reshape(layer.values.shape), layer.crow, layer.col, layer._cols).flatten()
                for one in torch.eye(layer.values.numel(), dtype=torch.float64)
            ]
            or [torch.zeros(layer.mask.numel(), dtype=torch.float64)]
        )[: layer.values.numel()]
        for name, layer in sparse.items()
    }

    def call(parameters: Parameters, x: Tensor) -> Tensor:
        given = {}
        for name, parameter in parameters.items():
            module, _, own = name.rpartition(".")
            if own == "values":
                weight = (parameter.flatten() @ placed[module]).reshape(sparse[module].weight_shape)
                name, parameter = f"{module}.weight".lstrip("."), weight
            elif module in kept and own in kept[module].buffer_of:
                parameter = parameter * masks_in(kept[module])[own]
            name = name.replace("in_proj.", "in_proj_")
            given[name] = parameter.t() if is_transposed.get(name) else parameter
        return functional_call(dense, given, (x,))

    return call


def problem(
    make: Callable[[], nn.Module], shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[Call, Call, Parameters, Tensor]:
    torch.manual_seed(0)
    model = make()
    reference = dense_call(model)
    model = model.to(dtype)
    parameters = {key: parameter.detach() for key, parameter in model.named_parameters()}

    def call(parameters: Parameters, x: Tensor) -> Tensor:
        return functional_call(model, parameters, (x,))

    return call, reference, parameters, noise(*shape, seed=1, dtype=dtype)


def like(tree: Any, seed: int) -> Any:
    return pytree.tree_map(lambda t: noise(*t.shape, seed=seed, dtype=t.dtype), tree)
