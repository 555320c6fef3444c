"""Batch normalisation with what surrounds it: wrappers, fake kernels and gradients of the operators."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseprune.format.memory import empty_images, is_batch_inner_images
from sparseprune.ops.autograd import in_backward, relu_backward, without_views
from sparseprune.ops.transforms import one_node

# ---- wrappers ----------------------------------------------------------------------------------------------


def batch_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    relu: bool = False,
    batch_inner: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``y = (x - mean) / sqrt(var + eps) * weight + bias + residual`` with each channel's mean and variance.

    Args:
        x: ``(N, C, H, W)``, not empty, float32 or bfloat16 (or float64: slow, for checking gradients). What
            is computed from bfloat16 is float32 and ``y`` is rounded once. Fast where it is batch-inner.
        weight, bias: ``(C,)`` or None (1 and 0), like x, or float32 for bfloat16.
        residual: like x, or None.
        relu: give ``max(y, 0)`` (NaN stays NaN).
        batch_inner: layout of y in memory: [C, H, W, N] (True), contiguous (False), or as ``x`` (None).
    Returns:
        y, the mean and the biased variance, ``(C,)`` in the dtype of the sums, which are not differentiable.
    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.sparseprune.batch_norm_act.default(
        x, weight, bias, residual, eps, relu, batch_inner
    )
    return result


def batch_norm_act_eval(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    relu: bool = False,
    batch_inner: bool | None = None,
) -> Tensor:
    """:func:`batch_norm_act` with ``mean`` and ``var`` ``(C,)``, constants like weight."""
    return torch.ops.sparseprune.batch_norm_act_eval.default(
        x, weight, bias, mean, var, residual, eps, relu, batch_inner
    )


def batch_norm_act_backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    y: Tensor | None,
    eps: float,
    relu: bool,
    training: bool,
    needs_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(d_x, d_residual, d_weight, d_bias)`` from the gradient ``g`` of the output ``y``.

    Args:
        y: needed only where there are a residual and a ReLU, whose mask is otherwise computed from ``x``.
        training: ``mean`` and ``var`` are those of ``x``, not constants.
        needs_residual: otherwise d_residual is empty.
    """
    result: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.sparseprune.batch_norm_act_backward.default(
        g, x, weight, bias, mean, var, y, eps, relu, training, needs_residual
    )
    return result


# ---- fake kernels: shapes and strides without data ---------------------------------------------------------


def _like(x: Tensor, batch_inner: bool | None = None) -> Tensor:
    return empty_images(x, x.shape, is_batch_inner_images(x) if batch_inner is None else batch_inner)


def _channels(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _fake_batch_norm_act(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(x, rest[5] if len(rest) > 5 else None), _channels(x), _channels(x)


def _fake_batch_norm_act_eval(x: Tensor, *rest: Any) -> Tensor:
    return _like(x, rest[7] if len(rest) > 7 else None)


def _fake_batch_norm_act_backward(g: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_residual = _like(x) if rest[-1] else x.new_empty(0)
    return _like(x), d_residual, _channels(x), _channels(x)


# ---- gradients ---------------------------------------------------------------------------------------------


def _save_for_batch_norm_act(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, ctx.eps, ctx.relu, *_ = inputs
    y, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.training = True
    _save(ctx, x, weight, bias, mean, var, residual, y)


def _save_for_batch_norm_act_eval(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, mean, var, residual, ctx.eps, ctx.relu, *_ = inputs
    ctx.training = False
    _save(ctx, x, weight, bias, mean, var, residual, output)


def _save(
    ctx: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    residual: Tensor | None,
    y: Tensor,
) -> None:
    # Without a residual the mask of the ReLU follows from x, which is read anyway.
    masking = y if ctx.relu and residual is not None else None
    ctx.save_for_backward(x, weight, bias, mean, var, masking)


def _input_gradients(
    ctx: Any, g: Tensor, needs: dict[str, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Of x, weight, bias and residual."""
    x, weight, bias, mean, var, y = ctx.saved_tensors
    if torch.is_grad_enabled():
        return _differentiable_gradients(ctx, g, needs)
    masked = ctx.relu and needs["residual"]
    d_x, d_residual, d_weight, d_bias = batch_norm_act_backward(
        g, x, weight, bias, mean, var, y, ctx.eps, ctx.relu, ctx.training, masked
    )
    return (
        d_x if needs["x"] else None,
        d_weight.to(weight.dtype) if needs["weight"] else None,
        d_bias.to(bias.dtype) if needs["bias"] else None,
        (d_residual if masked else g) if needs["residual"] else None,
    )


def _differentiable_gradients(
    ctx: Any, g: Tensor, needs: dict[str, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The same by torch's functions, which know their second derivatives."""
    x, weight, bias, mean, var, y = ctx.saved_tensors
    if ctx.training:
        mean = var = None
    output = F.batch_norm(x, mean, var, weight, bias, training=ctx.training, eps=ctx.eps)
    if y is not None:
        g = relu_backward(g, y)
    elif ctx.relu:
        output = output.relu()
    inputs = {"x": x, "weight": weight, "bias": bias}
    wanted = [tensor for name, tensor in inputs.items() if needs[name]]
    gradients = iter(torch.autograd.grad(output, wanted, g, create_graph=True) if wanted else ())
    d_x, d_weight, d_bias = (next(gradients) if needs[name] else None for name in inputs)
    return d_x, d_weight, d_bias, g if needs["residual"] else None


def _needs(ctx: Any, residual_at: int) -> dict[str, bool]:
    x, weight, bias, *_ = ctx.needs_input_grad
    return {"x": x, "weight": weight, "bias": bias, "residual": ctx.needs_input_grad[residual_at]}


def _batch_norm_act_gradients(ctx: Any, g: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    d_x, d_weight, d_bias, d_residual = _input_gradients(ctx, g, _needs(ctx, 3))
    return d_x, d_weight, d_bias, d_residual, None, None, None


def _batch_norm_act_eval_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    d_x, d_weight, d_bias, d_residual = _input_gradients(ctx, g, _needs(ctx, 5))
    return d_x, d_weight, d_bias, None, None, d_residual, None, None, None


FAKES: dict[str, Callable[..., Any]] = {
    "batch_norm_act": _fake_batch_norm_act,
    "batch_norm_act_eval": _fake_batch_norm_act_eval,
    "batch_norm_act_backward": _fake_batch_norm_act_backward,
}
# (operator, backward, setup_context)
GRADIENTS: list[tuple[str, Callable[..., Any], Callable[..., Any]]] = [
    ("batch_norm_act", _batch_norm_act_gradients, _save_for_batch_norm_act),
    ("batch_norm_act_eval", _batch_norm_act_eval_gradients, _save_for_batch_norm_act_eval),
]


# ---- a normalisation in eager mode -------------------------------------------------------------------------


def _for_layers(op: str, save: Callable[..., None], gradients: Callable[..., Any]) -> Callable[..., Any]:
    """An operator as a layer calls it, one node of the autograd graph (see ``_Linear`` in products.py).

    It takes what the operator takes. Its output may be changed in place.
    """

    def operator(*inputs: Any) -> Any:
        return getattr(torch.ops.sparseprune, op).default(*inputs)

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with without_views():
                output = operator(*inputs)
            save(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
            with in_backward():
                return gradients(ctx, *g)

    def call(*inputs: Any) -> Any:
        return Node.apply(*inputs) if one_node() else operator(*inputs)

    return call


normalize = _for_layers("batch_norm_act", _save_for_batch_norm_act, _batch_norm_act_gradients)
normalize_with = _for_layers(
    "batch_norm_act_eval", _save_for_batch_norm_act_eval, _batch_norm_act_eval_gradients
)
