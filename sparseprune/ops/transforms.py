"""Products under torch's transforms: ``torch.func`` (grad, vmap, jvp, ...) and forward-mode derivatives.

``y = W x``, ``W^T g`` and ``g x^T`` at the pattern are linear in both operands, and the derivative of each is
made of the other two: so one rule serves all of them, in both modes and to any order. Convolutions have the
same trio. A batch of dense operands is one of more samples; where values or patterns are batched, or what is
summed over, each product is computed by itself. Bias and ReLU are torch's, which knows their rules.
Only forward mode over forward mode goes through the dense weight.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as _in_functorch
from torch._C import _is_tracing
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from sparseprune.format.bsr import dense_weight
from sparseprune.format.geometry import Geometry
from sparseprune.ops.autograd import without_views
from sparseprune.ops.devices import widened
from sparseprune.ops.plain.convolution import dense_conv2d, dense_filters


def transformed() -> bool:
    """Whether there may be tensors that only torch's transforms understand."""
    return _in_functorch() or forward_ad._current_level >= 0


def one_node() -> bool:
    """Whether a layer is to be one node of the autograd graph: in eager mode, with gradients.

    Graphs that are compiled or traced hold operators, which bring their own gradients.
    """
    return not (
        is_compiling()
        or not torch.is_grad_enabled()
        or _is_tracing()
        or _in_functorch()
        or forward_ad._current_level >= 0
    )


def _nested_forward() -> bool:
    """Whether forward-mode derivatives of forward-mode derivatives are computed.

    Torch switches forward mode off within ``jvp`` below, and would take the outer derivative for zero.
    """
    stack = torch._C._functorch.get_interpreter_stack() or []
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1


Product = Callable[..., Tensor]


def _bilinear(
    operator: Product,
    to_first: Product,
    to_second: Product,
    folded: Callable[..., tuple[Tensor, int]] | None = None,
) -> Product:
    """``operator(a, b, *rest)``, linear in a and b, with its derivatives and its rule for batches.

    ``to_first`` and ``to_second`` are the gradients ``(g, a, b, *rest)`` of the two. ``folded``: the results
    for a batch of a, its dimension first, and their dimension of the batch.
    """

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> Tensor:
            with without_views():
                return operator(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            tensors = [t for t in inputs if isinstance(t, Tensor)]
            ctx.others = inputs[len(tensors) :]
            ctx.save_for_backward(*tensors)
            ctx.save_for_forward(*tensors)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
            inputs = (*ctx.saved_tensors, *ctx.others)
            first, second, *rest = ctx.needs_input_grad
            return (
                to_first(g, *inputs) if first else None,
                to_second(g, *inputs) if second else None,
                *(None for _ in rest),
            )

        @staticmethod
        def jvp(ctx: Any, d_a: Tensor | None, d_b: Tensor | None, *_: Any) -> Tensor | None:
            if _nested_forward():
                raise NotImplementedError(
                    "sparseprune: expected at most one forward-mode derivative of this operator, got one of "
                    "another; compute one of them in reverse mode, with torch.func.jacrev or grad"
                )
            inputs: tuple[Any, ...] = (*ctx.saved_tensors, *ctx.others)
            a, b, rest = inputs[0], inputs[1], inputs[2:]
            parts = [product(d_a, b, *rest)] if d_a is not None else []
            parts += [product(a, d_b, *rest)] if d_b is not None else []
            return sum(parts[1:], parts[0]) if parts else None

        @staticmethod
        def vmap(info: Any, dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
            batched = [isinstance(t, Tensor) and dim is not None for t, dim in zip(inputs, dims, strict=True)]
            inputs = tuple(
                t.movedim(dim, 0) if has else t for t, dim, has in zip(inputs, dims, batched, strict=True)
            )
            if folded is not None and not any(batched[1:]):
                return folded(product, *inputs)
            each = (
                product(*(t[i] if has else t for t, has in zip(inputs, batched, strict=True)))
                for i in range(info.batch_size)
            )
            return torch.stack(list(each)), 0

    def product(*inputs: Any) -> Tensor:
        result: Tensor = Node.apply(*inputs)
        return result

    return product


# ---- matrices: activations are (features, batch) ----


def _folded_samples(product: Product, x: Tensor, *rest: Any) -> tuple[Tensor, int]:
    many, features, samples = x.shape
    y = product(x.transpose(0, 1).reshape(features, many * samples), *rest)
    return y.unflatten(1, (many, samples)), 1


_spmm: Product = _bilinear(
    lambda x, values, *pattern: torch.ops.sparseprune.spmm.default(x, values, *pattern),
    lambda g, x, values, *pattern: spmm_t(g, values, *pattern, x.shape[0]),
    lambda g, x, values, *pattern: sddmm(g, x, *pattern, values.shape[1]),
    _folded_samples,
)
spmm_t: Product = _bilinear(
    lambda g, values, *rest: torch.ops.sparseprune.spmm_t.default(g, values, *rest),
    lambda d, g, values, *rest: _spmm(d, values, *rest[:-1]),
    lambda d, g, values, *rest: sddmm(g, d, *rest[:-1], values.shape[1]),
    _folded_samples,
)
sddmm: Product = _bilinear(
    lambda g, x, *rest: torch.ops.sparseprune.sddmm.default(g, x, *rest),
    lambda d, g, x, *rest: _spmm(x, d, *rest[:-1]),
    lambda d, g, x, *rest: spmm_t(g, d, *rest[:-1], x.shape[0]),
)


def spmm(x: Tensor, values: Tensor, pattern: Sequence[Tensor], bias: Tensor | None, relu: bool) -> Tensor:
    # What is narrower than its sums is rounded once, at the end.
    wide, wide_values = widened(x), widened(values)
    if _nested_forward():
        y = dense_weight(wide_values, pattern[0], pattern[1], x.shape[0]) @ wide
    else:
        y = _spmm(wide, wide_values, *pattern)
    y = y if bias is None else y + widened(bias)[:, None]
    return (y.relu() if relu else y).to(x.dtype)


# ---- images: (N, C, H, W) ----


def _folded_images(product: Product, x: Tensor, *rest: Any) -> tuple[Tensor, int]:
    return product(x.flatten(0, 1), *rest).unflatten(0, x.shape[:2]), 0


_conv2d: Product = _bilinear(
    lambda x, values, *rest: torch.ops.sparseprune.conv2d.default(x, values, *rest),
    lambda g, x, values, *rest: conv2d_t(g, values, *rest, tuple(x.shape[2:])),
    lambda g, x, values, *rest: conv2d_sddmm(g, x, *rest, values.shape[1]),
    _folded_images,
)
conv2d_t: Product = _bilinear(
    lambda g, values, *rest: torch.ops.sparseprune.conv2d_t.default(g, values, *rest),
    lambda d, g, values, *rest: _conv2d(d, values, *rest[:-1]),
    lambda d, g, values, *rest: conv2d_sddmm(g, d, *rest[:-1], values.shape[1]),
    _folded_images,
)
conv2d_sddmm: Product = _bilinear(
    lambda g, x, *rest: torch.ops.sparseprune.conv2d_sddmm.default(g, x, *rest),
    lambda d, g, x, *rest: _conv2d(x, d, *rest[:-1]),
    lambda d, g, x, *rest: conv2d_t(g, d, *rest[:-1], tuple(x.shape[2:])),
)


def conv2d(
    x: Tensor, values: Tensor, pattern: Sequence[Tensor], geometry: Geometry, bias: Tensor | None
) -> Tensor:
    wide, wide_values = widened(x), widened(values)
    if _nested_forward():
        weight = dense_filters("conv2d", wide_values, pattern[0], pattern[1], geometry)
        y = dense_conv2d(wide, weight, geometry)
    else:
        y = _conv2d(wide, wide_values, *pattern, tuple(geometry))
    y = y if bias is None else y + widened(bias)[:, None, None]
    return y.to(x.dtype)
