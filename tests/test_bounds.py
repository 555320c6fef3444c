"""Error bounds hold for every order of a sum, and what is not rounding is beyond them."""

import bounds
import pytest
import torch
from torch import Tensor, nn


def terms(n: int, kind: str) -> tuple[Tensor, Tensor]:
    """Factors of n products in float32."""
    generator = torch.Generator().manual_seed(n)
    if kind == "equal":
        return torch.full((n,), 1 / 3), torch.full((n,), 0.7)
    a, b = (torch.randn(n, generator=generator) for _ in range(2))
    return (a.abs(), b.abs()) if kind == "positive" else (a, b)


def sums_of(a: Tensor, b: Tensor) -> bounds.Sums:
    products = a.double() * b.double()
    return bounds.Sums(products.sum(), products.abs().sum(), torch.tensor(float(len(a))))


ORDERS = {
    "in turn": lambda a, b: (a * b).cumsum(0)[-1],
    "largest first": lambda a, b: (a * b)[(a * b).abs().argsort(descending=True)].cumsum(0)[-1],
    "in eight parts": lambda a, b: sum(part.cumsum(0)[-1] for part in (a * b).chunk(8)),
    "torch's dot": torch.dot,
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["normal", "positive", "equal"])
@pytest.mark.parametrize("n", [1, 2, 17, 170, 5000])
def test_any_order_of_a_sum_stays_within_its_bound(n: int, kind: str, order: str) -> None:
    a, b = terms(n, kind)
    bounds.assert_sums(ORDERS[order](a, b), sums_of(a, b))
    narrow = [t.bfloat16().float() for t in (a, b)]
    bounds.assert_sums(ORDERS[order](*narrow).bfloat16(), sums_of(*narrow))


@pytest.mark.parametrize("n", [1, 2, 17, 170])
def test_a_lost_term_is_out_of_bounds(n: int) -> None:
    a, b = terms(n, "normal")
    size = (a * b).abs()
    lost = int((size - size.median()).abs().argmin())  # of the size that is usual
    wrong = (a * b).index_fill(0, torch.tensor([lost]), 0).sum()
    with pytest.raises(AssertionError, match="1 of 1 numbers are out of bounds"):
        bounds.assert_sums(wrong, sums_of(a, b))


def test_sums_of_integers_have_no_error_at_all() -> None:
    a, b = bounds.integers(100_000).float(), bounds.integers(100_000, seed=1).float()
    exact = sums_of(a, b)._replace(count=torch.tensor(0.0))
    for order in ORDERS.values():
        bounds.assert_sums(order(a, b), exact)
    for lost in range(0, 100_000, 9973):
        with pytest.raises(AssertionError, match="out of bounds"):
            bounds.assert_sums((a * b).index_fill(0, torch.tensor([lost]), 0).sum(), exact)


def test_nan_and_other_shapes_are_out_of_bounds() -> None:
    one = torch.ones(3, dtype=torch.float64)
    bounds.assert_within(torch.ones(3), one, 0 * one)
    for wrong in (torch.tensor([1, 1, torch.nan]), torch.tensor([1, torch.inf, 1]), torch.ones(1, 3)):
        with pytest.raises(AssertionError):
            bounds.assert_within(wrong, one, one)


LAYERS = {
    "linear": (nn.Linear(30, 20), (17, 30)),
    "conv": (nn.Conv2d(3, 5, 3, 2, padding=1), (6, 3, 7, 8)),
    "reflected": (nn.Conv2d(3, 5, 3, padding=2, padding_mode="reflect"), (6, 3, 7, 8)),
}


def step(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    return dict(zip(("y", "x", *names), (y, *torch.autograd.grad(y, (x, *parameters), g)), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_stay_within_their_bounds_and_wrong_ones_do_not(name: str, dtype: torch.dtype) -> None:
    layer, shape = LAYERS[name]
    layer = layer.to(dtype)
    x = torch.randn(shape).to(dtype)
    g = torch.randn(layer(x).shape).to(dtype)
    expected = bounds.of_layer(layer, x, g)
    for part, actual in step(layer, x, g).items():
        bounds.assert_sums(actual, expected[part], part)
    # One weight is lost; an input is read at its neighbour's place; padding is not zero.
    weight = layer.weight.detach().clone()
    weight.view(-1)[7] = 0
    lost = torch.func.functional_call(layer, {"weight": weight}, (x,))
    for wrong in (lost, layer(x.roll(1, -1)), layer(x.index_fill(-1, torch.tensor([0]), 0))):
        with pytest.raises(AssertionError, match="out of bounds"):
            bounds.assert_sums(wrong, expected["y"])


@pytest.mark.parametrize("far", [0.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_norm_stays_within_its_bounds_and_a_wrong_one_does_not(dtype: torch.dtype, far: float) -> None:
    x = torch.randn(9, 3, 7, 5).to(dtype) + far
    g = torch.randn(x.shape).to(dtype)
    norm = nn.BatchNorm2d(3, momentum=1.0).to(dtype)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(0.5, 1.5)
    expected = bounds.of_batch_norm(x, g, norm.weight, norm.bias, None, norm.eps)
    found = step(norm, x, g)
    for part, actual in found.items():
        expected[part].check(actual, part)
    expected["mean"].check(norm.running_mean, "mean")
    if dtype == torch.float32 and far:
        return  # there, float32 has no digits left to tell more
    spoilt = g.clone()
    spoilt[4, :, 2, 3] = 0
    wrong = step(norm, x, spoilt)
    norm.eps *= 100
    wrong["y"] = norm(x)
    for part in found:
        with pytest.raises(AssertionError, match="out of bounds"):
            expected[part].check(wrong[part])


def test_half_the_digits() -> None:
    exact = torch.tensor([1000.0, 1.0], dtype=torch.float64)
    bounds.assert_half_the_digits(exact + torch.tensor([0, 1e-6]), exact)
    for wrong in (exact + torch.tensor([0, 1e-4]), exact.float(), exact[:1], exact * torch.nan):
        with pytest.raises(AssertionError):
            bounds.assert_half_the_digits(wrong, exact)
