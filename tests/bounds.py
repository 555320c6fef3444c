"""How far a computed number may be from the exact one, by the roundings that made it.

Notation and theorems are those of Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, 2002.
u is the unit roundoff of an arithmetic, half the distance from 1 to the next number; γ_n = n u / (1 - n u).

*Sums of products* (section 3.1). A sum of n products, added up in any order, in any number of partial sums,
fused or not, is off by at most γ_n Σ|terms|: each product takes part in one multiplication and at most n - 1
additions. The same operator on absolute values gives Σ|terms|, on ones for all numbers that are not zero it
gives n (adding an exact zero rounds nothing). What is stored as bfloat16 or float16 is added up in float32,
in which products of two such numbers are exact, and rounded once more.

*Sums of integers* below 2^24 are exact, in any order: n counts for nothing, and one term that is lost,
doubled or taken from elsewhere shows, however many there are. The bound of a long sum would hide it.
``integers`` makes such operands, and tests of long sums use them too.

*A chain of operations* (section 3.3, running error analysis): ``Rounded`` carries a number and its error
through sums, products and square roots. Batch normalisation is such a chain.

*Whole networks*: rigorous bounds multiply the norms of all layers, and say nothing. What is asked for instead
is half of the digits, √u of the largest number: see ``assert_half_the_digits``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# In which sums are made. What is narrower is only stored.
ARITHMETIC = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def gamma(n: Tensor | float, dtype: torch.dtype) -> Tensor:
    """γ_n of the arithmetic."""
    nu = torch.as_tensor(n, dtype=torch.float64) * unit_roundoff(dtype)
    assert nu.numel() == 0 or float(nu.max()) < 1, "a sum too long for this arithmetic: there is no bound"
    return nu / (1 - nu)


def storing(magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """Error of rounding numbers of at most this magnitude to a dtype that is narrower than its arithmetic."""
    if ARITHMETIC[dtype] == dtype:
        return torch.zeros_like(magnitude)
    finfo = torch.finfo(dtype)
    return unit_roundoff(dtype) * magnitude + finfo.smallest_normal * finfo.eps / 2  # half a subnormal


# ---- sums of products ----


class Sums(NamedTuple):
    """Sums in float64, of what their terms are, of the terms' absolute values, and the number of terms."""

    exact: Tensor
    terms: Tensor
    count: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Sums:
        """The same part of each, or the same order."""
        return Sums(*map(function, self))


def of_sums(sums: Sums, dtype: torch.dtype, truncated: bool = False) -> Tensor:
    """Bound for sums that are stored in this dtype.

    ``truncated`` sums are those of tensor cores, which do not round: an addition may lose 2 u (Fasi, Higham,
    Mikaitis and Pranesh, Numerical behavior of NVIDIA tensor cores, 2021).
    """
    arithmetic = ARITHMETIC[dtype]
    # What underflows in a product or a sum is at most the smallest normal number, flushed to zero or not.
    roundings = 2 * sums.count if truncated else sums.count
    error = gamma(roundings, arithmetic) * sums.terms + sums.count * torch.finfo(arithmetic).smallest_normal
    reference = gamma(sums.count, torch.float64) * sums.terms  # float64 rounds as well
    return error + reference + storing(sums.exact.abs() + error, dtype)


def integers(*shape: int, seed: int = 0) -> Tensor:
    """-4 .. 4 without 0, in float64: no product is 0, and sums of a million of them are exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.randint(1, 5, shape, generator=generator)
    return (magnitude * (torch.randint(0, 2, shape, generator=generator) * 2 - 1)).double()


def assert_within(actual: Tensor, exact: Tensor, bound: Tensor, what: str = "") -> None:
    """Every number within its own bound; NaN is not."""
    assert actual.shape == exact.shape, f"{what}: {list(actual.shape)} is not {list(exact.shape)}"
    actual, exact = actual.detach().cpu(), exact.detach().cpu()
    errors = (actual.double() - exact).abs()
    bound = bound.cpu().expand(errors.shape)
    within = errors <= bound
    if not within.all():
        worst = int(torch.where(within, -1, errors - bound).nan_to_num(nan=torch.inf).argmax())
        raise AssertionError(
            f"{what}: {int((~within).sum())} of {within.numel()} numbers are out of bounds; number {worst} "
            f"is {float(actual.flatten()[worst])!r}, not {float(exact.flatten()[worst])!r}: off by "
            f"{float(errors.flatten()[worst]):.3g}, which is beyond {float(bound.flatten()[worst]):.3g}"
        )


def assert_sums(actual: Tensor, sums: Sums, what: str = "", truncated: bool = False) -> None:
    """Sums of products within their bounds."""
    assert_within(actual, sums.exact, of_sums(sums, actual.dtype, truncated), what)


def of_function(function: Callable[..., Any], *operands: Tensor | None) -> list[Sums]:
    """The results of a function that is linear in every operand: sums of products of all of them."""

    def results(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        found = function(*(None if t is None else change(t.detach().cpu().double()) for t in operands))
        return [found] if isinstance(found, Tensor) else list(found)

    changes = (lambda t: t.clone(), torch.abs, lambda t: (t != 0).double())
    return [Sums(*of) for of in zip(*map(results, changes), strict=True)]


def of_layer(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Sums]:
    """``y``, ``x`` (its gradient) and the gradients of the parameters of a linear or convolution layer."""
    names = [name for name, _ in layer.named_parameters()]
    twin = copy.deepcopy(layer).cpu().double()

    def step(x: Tensor, g: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        given = [t.requires_grad_() for t in (x, *parameters)]
        y = torch.func.functional_call(twin, dict(zip(names, given[1:], strict=True)), (given[0],))
        return (y.detach(), *torch.autograd.grad(y, given, g))

    return dict(zip(("y", "x", *names), of_function(step, x, g, *layer.parameters()), strict=True))


# ---- chains of operations ----


class Rounded(NamedTuple):
    """Exact numbers in float64, and how far the computed ones may be from them."""

    exact: Tensor
    error: Tensor
    dtype: torch.dtype  # arithmetic

    @staticmethod
    def given(numbers: Tensor, dtype: torch.dtype) -> Rounded:
        wide = numbers.detach().cpu().double()
        return Rounded(wide, torch.zeros_like(wide), dtype)

    def rounded(self, roundings: int = 1, magnitude: Tensor | None = None) -> Rounded:
        """After roundings of numbers of this magnitude, by default the result's own."""
        magnitude = self.exact.abs() + self.error if magnitude is None else magnitude
        return self._replace(error=self.error + gamma(roundings, self.dtype) * magnitude)

    def __add__(self, other: Rounded) -> Rounded:  # type: ignore[override]
        return Rounded(self.exact + other.exact, self.error + other.error, self.dtype).rounded()

    def __sub__(self, other: Rounded) -> Rounded:
        return self + other._replace(exact=-other.exact)

    def __mul__(self, other: Rounded) -> Rounded:  # type: ignore[override]
        error = self.exact.abs() * other.error + self.error * other.exact.abs() + self.error * other.error
        return Rounded(self.exact * other.exact, error, self.dtype).rounded()

    def over(self, n: float) -> Rounded:
        return Rounded(self.exact / n, self.error / n, self.dtype).rounded()

    def sum(self, dims: tuple[int, ...]) -> Rounded:
        n = self.exact.numel() // max(1, self.exact.sum(dims).numel())
        magnitude = (self.exact.abs() + self.error).sum(dims, keepdim=True)
        exact, error = self.exact.sum(dims, keepdim=True), self.error.sum(dims, keepdim=True)
        return Rounded(exact, error, self.dtype).rounded(n, magnitude)

    def rsqrt(self) -> Rounded:
        # (1 - t)^(-1/2) - 1 <= t for t <= 1/2. CUDA's rsqrtf may be off by four roundings.
        relative = self.error / self.exact
        assert float(relative.max()) <= 0.5, "nothing is known of 1 / sqrt(number)"
        exact = self.exact.rsqrt()
        return Rounded(exact, exact * relative, self.dtype).rounded(4)

    def stored(self, dtype: torch.dtype) -> Rounded:
        return self._replace(error=self.error + storing(self.exact.abs() + self.error, dtype))

    def check(self, actual: Tensor, what: str = "") -> None:
        assert_within(actual, self.exact.reshape(actual.shape), self.error.reshape(actual.shape), what)


CHANNEL = (0, 2, 3)


def moments(x: Tensor) -> tuple[Rounded, Rounded]:
    """Mean and variance of the channels of (N, C, H, W), in whatever blocks they are computed.

    The mean of n numbers, or of blocks and then of their means: e = γ_{n+2} rms(x). The variance is the mean
    square of deviations (n + 4 roundings) from computed means: a deviation within a block is off by the error
    of the block's mean, a block's mean from that of all by twice as much. So each deviation d is off by at
    most 2 e, d² by 4 e |d| + 4 e², and the mean of |d| is at most the standard deviation (Cauchy and Schwarz,
    which also turn the means of |x| in blocks into rms(x)).
    """
    dtype, wide = ARITHMETIC[x.dtype], x.detach().cpu().double()
    n = wide.numel() // wide.shape[1]
    mean, rms = wide.mean(CHANNEL, keepdim=True), wide.square().mean(CHANNEL, keepdim=True).sqrt()
    var = wide.var(CHANNEL, correction=0, keepdim=True)
    of_mean = gamma(n + 2, dtype) * rms
    of_var = gamma(n + 4, dtype) * var + 4 * of_mean * var.sqrt() + 4 * of_mean.square()
    return Rounded(mean, of_mean, dtype), Rounded(var, of_var, dtype)


def of_batch_norm(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    statistics: tuple[Tensor, Tensor] | None = None,
    training: bool | None = None,
) -> dict[str, Rounded]:
    """y = (x - mean) / sqrt(var + eps) weight + bias + residual, its gradients, and its statistics.

    ``statistics``, where given, are mean and variance; the gradient does not pass through them, unless
    ``training``. The gate of a ReLU is in ``g``.
    """
    dtype = ARITHMETIC[x.dtype]
    n = x.numel() // x.shape[1]

    def channels(t: Tensor) -> Rounded:
        return Rounded.given(t.detach().reshape(1, -1, 1, 1), dtype)

    ones, zeros = x.new_ones(x.shape[1]), x.new_zeros(x.shape[1])
    w, b = channels(ones if weight is None else weight), channels(zeros if bias is None else bias)
    mean, var = moments(x) if statistics is None else map(channels, statistics)
    rstd = (var + channels(torch.full_like(ones, eps, dtype=torch.float64))).rsqrt()
    scale = rstd * w
    # As written, or as x scale + (bias - mean scale): up to four more roundings of x and mean.
    either_way = Rounded.given(x, dtype).exact.abs() + mean.exact.abs()
    centered = (Rounded.given(x, dtype) - mean).rounded(4, either_way)
    y = centered * scale + b
    y = y if residual is None else y + Rounded.given(residual, dtype)

    gradient = Rounded.given(g, dtype)
    d_bias = gradient.sum(CHANNEL)
    product = (gradient * centered).sum(CHANNEL)
    d_x = gradient * scale
    if statistics is None if training is None else training:
        parts = (d_x, scale * d_bias.over(n), centered * (scale * rstd * rstd * product).over(n))
        # In whatever order the three parts are scaled and added.
        size = sum(part.exact.abs() + part.error for part in parts)
        d_x = (parts[0] - parts[1] - parts[2]).rounded(8, size)
    return {
        "y": y.stored(x.dtype),
        "x": d_x.stored(x.dtype),
        "weight": product * rstd,
        "bias": d_bias,
        "mean": mean,
        "var": var,
    }


# ---- whole networks ----


def assert_half_the_digits(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Two computations of one number in a whole network: equal to within √u of the largest number.

    Roundings of L layers with sums of n terms reach the result as about κ √(L n) u of the largest number, for
    a network of condition κ: √u leaves room for κ √(L n) up to 9e7 in float64 (4e3 in float32, 16 in
    bfloat16, where every activation is rounded once more). A mistake, such as one lost weight, one wrong
    pixel or a layer in a narrower dtype, is larger: it changes 1 / n of a sum, and no sum here has 1 / √u
    terms in float64. Networks are compared in float64 wherever the dtype is not what is tested.
    """
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype} is not {expected.dtype}"
    if not expected.is_floating_point():
        assert torch.equal(actual, expected), what
        return
    exact = expected.detach().cpu().double()
    if exact.numel():
        bound = unit_roundoff(expected.dtype) ** 0.5 * exact.abs().max()
        assert_within(actual, exact, bound, what)
    assert actual.shape == expected.shape, what
