"""Batch normalisation with what surrounds it in plain torch: ``y = relu(batch_norm(x) + residual)``.

Statistics are those of the batch or given. They, and what is computed with them, are float32 for bfloat16.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparseprune.format.memory import empty_images, is_batch_inner_images
from sparseprune.ops.devices import widened

SAMPLES_AND_PIXELS = (0, 2, 3)


def _per_channel(numbers: Tensor) -> Tensor:
    return widened(numbers)[:, None, None]


def _check(op: str, x: Tensor, **others: Tensor | None) -> None:
    if x.dim() != 4:
        raise ValueError(
            f"{op}: expected x.shape == [samples, channels, height, width], got {x.dim()} dimensions"
        )
    for name, tensor in others.items():
        if name in ("g", "residual", "y"):
            if tensor is not None and tensor.shape != x.shape:
                raise ValueError(
                    f"{op}: expected {name}.shape == {list(x.shape)} (that of x), got {list(tensor.shape)}"
                )
        elif tensor is not None and tuple(tensor.shape) != (x.shape[1],):
            raise ValueError(
                f"{op}: expected {name}.shape == [{x.shape[1]} (channels)], got {list(tensor.shape)}"
            )


def _normalized(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    scale = torch.rsqrt(_per_channel(var) + eps)
    if weight is not None:
        scale = scale * _per_channel(weight)
    y = (widened(x) - _per_channel(mean)) * scale
    return y if bias is None else y + _per_channel(bias)


def batch_norm_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    relu: bool,
    batch_inner: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    _check("batch_norm_act", x, weight=weight, bias=bias, residual=residual)
    var, mean = torch.var_mean(widened(x), SAMPLES_AND_PIXELS, correction=0)
    return batch_norm_act_eval(x, weight, bias, mean, var, residual, eps, relu, batch_inner), mean, var


def batch_norm_act_eval(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    residual: Tensor | None,
    eps: float,
    relu: bool,
    batch_inner: bool | None = None,
) -> Tensor:
    op = "batch_norm_act_eval"
    _check(op, x, weight=weight, bias=bias, mean=mean, var=var, residual=residual)
    y = _normalized(x, weight, bias, mean, var, eps)
    if residual is not None:
        y = y + widened(residual)
    if relu:
        y = y.relu()
    inner = is_batch_inner_images(x) if batch_inner is None else batch_inner
    return empty_images(x, tuple(x.shape), inner).copy_(y)


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
    op = "batch_norm_act_backward"
    _check(op, x, g=g, weight=weight, bias=bias, mean=mean, var=var, y=y)
    wide = widened(g)
    if relu:
        output = _normalized(x, weight, bias, mean, var, eps) if y is None else widened(y)
        wide = wide.masked_fill(output <= 0, 0)
    rstd = torch.rsqrt(widened(var) + eps)
    centered = widened(x) - _per_channel(mean)
    d_bias = wide.sum(SAMPLES_AND_PIXELS)
    d_weight = (wide * centered).sum(SAMPLES_AND_PIXELS) * rstd
    d_x = wide
    if training:
        count = x.numel() // x.shape[1]
        d_x = d_x - _per_channel(d_bias / count) - centered * _per_channel(d_weight * rstd / count)
    d_x = d_x * _per_channel(rstd if weight is None else rstd * widened(weight))
    inner = is_batch_inner_images(x)
    return (
        empty_images(x, tuple(x.shape), inner).copy_(d_x),
        empty_images(x, tuple(x.shape), inner).copy_(wide) if needs_residual else x.new_empty(0),
        d_weight,
        d_bias,
    )


SCHEMAS: dict[Callable[..., Any], str] = {
    batch_norm_act: "batch_norm_act(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps, "
    "bool relu, bool? batch_inner=None) -> (Tensor, Tensor, Tensor)",
    batch_norm_act_eval: "batch_norm_act_eval(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, "
    "Tensor var, Tensor? residual, float eps, bool relu, bool? batch_inner=None) -> Tensor",
    batch_norm_act_backward: "batch_norm_act_backward(Tensor g, Tensor x, Tensor? weight, Tensor? bias, "
    "Tensor mean, Tensor var, Tensor? y, float eps, bool relu, bool training, bool needs_residual) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
}
