"""Sums in place of everything in a network that is no weight, as paths are counted through them.

``SUMS[name]`` replaces the functions, methods and operators of torch that have this name.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# What each element makes of itself alone, and normalisations, which scale it.
SAME = """
abs absolute alpha_dropout batch_norm celu clamp clamp_max clamp_min clip cos detach double dropout dropout1d
dropout2d dropout3d elu erf exp expm1 feature_alpha_dropout feature_dropout float gelu group_norm hardshrink
hardsigmoid hardswish hardtanh instance_norm layer_norm leaky_relu local_response_norm log log1p log_sigmoid
log_softmax logsigmoid mish neg negative normalize pow prelu relu relu6 rms_norm rpow rrelu rsqrt selu sigmoid
sign silu sin softmax softmin softplus softshrink softsign sqrt square tanh tanhshrink threshold
"""

# Whether there is a path through them is up to values: of a maximum one position has one, or all.
REFUSED = """
cdist cosine_similarity cummax cummin floor_divide fractional_max_pool2d fractional_max_pool3d kthvalue
logsumexp max median min mode norm prod rdiv reciprocal renorm rtruediv sort std topk var vector_norm
max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d_with_indices
adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices
"""


def _same(*args: Any, **_: Any) -> Tensor:
    return next(x for x in args if _has_paths(x))


def _has_paths(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _refused(name: str) -> Callable[..., Tensor]:
    def refuse(*tensors: Any, **_: Any) -> Tensor:
        raise ValueError(f"no paths can be counted through torch's {name}")

    return refuse


def _sum(x: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
    return torch.sum(x, *args, **kwargs)


def _add(a: Any, b: Any, **_: Any) -> Tensor:
    """The sum of both, whatever their signs; constants are no paths."""
    return _or_zero(a) + _or_zero(b)


def _or_zero(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return 0
    return x if _has_paths(x) else torch.zeros_like(x)


def _multiply(a: Any, b: Any, **_: Any) -> Tensor:
    if _has_paths(a) and _has_paths(b) and bool(((a == 0) != (b == 0)).any()):
        raise ValueError("one factor of a product has no paths, and its value decides about the other's")
    return a * b


def _divide(a: Any, b: Any, **_: Any) -> Tensor:
    if _has_paths(b):
        raise ValueError("no paths can be counted through a division by activations")
    return a / b


def _masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    return x.masked_fill(mask, 0)


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    one, other = x.chunk(2, dim)
    return one + other


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    keys, values = key.sum((-2, -1), keepdim=True), value.sum(-2, keepdim=True)
    if query.dim() > 3 and len(query[0]) != len(key[0]):
        keys, values = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (keys, values))
    return query.sum(-1, keepdim=True) + keys + values


def _multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    features: int,
    heads: int,
    in_weight: Tensor | None,
    in_bias: Any,
    key_bias: Any,
    value_bias: Any,
    add_zero: bool,
    dropout: float,
    out_weight: Tensor,
    *_: Any,
    **more: Any,
) -> tuple[Tensor, None]:
    """A sum of queries, keys and values of each head, (L, N, heads, features of a head), projected."""
    weights = [more[f"{x}_proj_weight"] for x in "qkv"] if in_weight is None else in_weight.chunk(3)
    projected = (F.linear(x, weight) for x, weight in zip((query, key, value), weights, strict=True))
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in projected)
    mixed = q.sum(-1, keepdim=True) + k.sum((0, -1), keepdim=True) + v.sum(0, keepdim=True)
    return F.linear(mixed.flatten(2), out_weight), None


def _pooled(dims: int) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Sums over the windows of a maximum's pool, and of an average's, which have other arguments."""

    def each(size: Any, fill: int) -> tuple[int, ...]:
        sizes = tuple(size) if isinstance(size, tuple | list) else (size,)
        sizes = sizes * dims if len(sizes) == 1 else sizes
        return (fill, *sizes) if dims == 1 else sizes

    def sums(x: Tensor, kernel: Any, stride: Any, padding: Any, ceil_mode: bool) -> Tensor:
        kernel = each(kernel, 1)
        stride = kernel if stride is None or stride == () or stride == [] else each(stride, 1)
        pool = F.avg_pool3d if dims == 3 else F.avg_pool2d
        y = pool(
            x.unsqueeze(-2) if dims == 1 else x,
            kernel,
            stride,
            each(padding, 0),
            ceil_mode=ceil_mode,
            divisor_override=1,
        )
        return y.squeeze(-2) if dims == 1 else y

    def of_max(
        x: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        if set(each(dilation, 1)) != {1}:
            raise ValueError("no paths are counted through pools with dilation")
        return sums(x, kernel_size, stride, padding, ceil_mode)

    def of_mean(
        x: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        return sums(x, kernel_size, stride, padding, ceil_mode)

    return of_max, of_mean


def _adaptive(dims: int) -> Callable[..., Tensor]:
    def sums(x: Tensor, output_size: Any, *_: Any, **__: Any) -> Tensor:
        sizes = tuple(output_size) if isinstance(output_size, tuple | list) else (output_size,) * dims
        for dim, wanted in zip(range(-dims, 0), sizes, strict=True):
            size = x.shape[dim]
            if wanted is None or wanted == size:
                continue
            place, window = (
                torch.arange(size, device=x.device),
                torch.arange(wanted, device=x.device)[:, None],
            )
            # Where windows begin and end, as torch divides them.
            begin, end = window * size // wanted, -(-(window + 1) * size // wanted)
            within = ((place >= begin) & (place < end)).to(x.dtype)
            x = (x.movedim(dim, -1) @ within.T).movedim(-1, dim)
        return x

    return sums


SUMS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(SAME.split(), _same),
    **{name: _refused(name) for name in REFUSED.split()},
    **dict.fromkeys(("mean", "amax", "amin"), _sum),
    **dict.fromkeys(("add", "radd", "sub", "subtract", "rsub", "maximum", "minimum", "fmax", "fmin"), _add),
    **dict.fromkeys(("mul", "rmul", "multiply"), _multiply),
    **dict.fromkeys(("div", "divide", "true_divide", "truediv"), _divide),
    "masked_fill": _masked_fill,
    "glu": _glu,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head_attention,
}
for _dims in (1, 2, 3):
    SUMS[f"max_pool{_dims}d"], SUMS[f"avg_pool{_dims}d"] = _pooled(_dims)
    SUMS[f"adaptive_max_pool{_dims}d"] = SUMS[f"adaptive_avg_pool{_dims}d"] = _adaptive(_dims)
