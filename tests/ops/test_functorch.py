"""Layers under ``torch.func``, in forward mode and traced, beside the same networks dense."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_half_the_digits
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)
from torch.utils import _pytree as pytree
from transformed_networks import NETWORKS, Call, Parameters, like, noise, problem, sparse_of, with_relu

import sparseprune as sp
from sparseprune.ops import products

# Torch's own rules of forward mode warn.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
]

# ---- transforms ----


def loss(call: Call) -> Callable[[Parameters, Tensor], Tensor]:
    return lambda parameters, x: call(parameters, x).pow(3).sum()


def stacked(tree: Any) -> Any:
    return pytree.tree_map(lambda t: torch.stack([t, 2 * t, t - 1]), tree)


def dual(call: Call, p: Parameters, x: Tensor) -> Any:
    with forward_ad.dual_level():
        tangents = like(p, 2)
        given = {name: forward_ad.make_dual(t, tangents[name]) for name, t in p.items()}
        return tuple(forward_ad.unpack_dual(call(given, forward_ad.make_dual(x, like(x, 3)))))


def gradient_of_tangent(call: Call, p: Parameters, x: Tensor) -> Any:
    given = x.clone().requires_grad_()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(call(p, forward_ad.make_dual(given, like(x, 3)))).tangent
        if tangent is None or not tangent.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(tangent.pow(2).sum(), given, allow_unused=True, materialize_grads=True)[0]


TRANSFORMS: dict[str, Callable[[Call, Parameters, Tensor], Any]] = {
    "grad": lambda f, p, x: grad(loss(f), (0, 1))(p, x),
    "vjp": lambda f, p, x: (lambda y, pull: pull(like(y, 2)))(*vjp(f, p, x)),
    "jvp": lambda f, p, x: jvp(f, (p, x), (like(p, 2), like(x, 3))),
    "jvp of x": lambda f, p, x: jvp(lambda x: f(p, x), (x,), (like(x, 3),)),
    "linearize": lambda f, p, x: linearize(lambda x: f(p, x), x)[1](like(x, 3)),
    "jacrev": lambda f, p, x: jacrev(f, (0, 1))(p, x),
    "jacfwd": lambda f, p, x: jacfwd(f, (0, 1))(p, x),
    "hessian": lambda f, p, x: hessian(loss(f), (0, 1))(p, x),
    "reverse over forward": lambda f, p, x: jacrev(jacfwd(loss(f), (0, 1)), (0, 1))(p, x),
    "forward over forward": lambda f, p, x: jacfwd(jacfwd(loss(f), 1), 1)(p, x),
    "reverse over reverse": lambda f, p, x: jacrev(jacrev(loss(f), (0, 1)), (0, 1))(p, x),
    "forward over forward, parameters": lambda f, p, x: jacfwd(jacfwd(loss(f)))(p, x),
    "third": lambda f, p, x: jacrev(lambda x: jacfwd(grad(lambda x: loss(f)(p, x)))(x).pow(2).sum())(x),
    "product with the hessian": lambda f, p, x: jvp(grad(loss(f)), (p, x), (like(p, 2), like(x, 3)))[1],
    "vmap of x": lambda f, p, x: vmap(f, (None, 0))(p, stacked(x)),
    "vmap of x, elsewhere": lambda f, p, x: vmap(f, (None, 1), 1)(p, stacked(x).transpose(0, 1)),
    "vmap twice": lambda f, p, x: vmap(vmap(f, (None, 0)), (None, 0))(p, stacked(stacked(x))),
    "gradients of samples": lambda f, p, x: vmap(grad(loss(f), (0, 1)), (None, 0))(p, stacked(x)),
    "ensemble": lambda f, p, x: vmap(f, (0, None))(stacked(p), x),
    "ensemble, each its x": lambda f, p, x: vmap(f)(stacked(p), stacked(x)),
    "gradients of an ensemble": lambda f, p, x: vmap(grad(loss(f), (0, 1)))(stacked(p), stacked(x)),
    "hessians of an ensemble": lambda f, p, x: vmap(hessian(loss(f), 1))(stacked(p), stacked(x)),
    "forward mode": dual,
    "reverse over forward mode": gradient_of_tangent,
}


def check(name: str, transform: str, dtype: torch.dtype) -> None:
    check_network(*NETWORKS[name], transform, dtype)


def check_network(
    make: Callable[[], nn.Module], shape: tuple[int, ...], transform: str, dtype: torch.dtype
) -> None:
    call, reference, parameters, x = problem(make, shape, dtype)
    of = TRANSFORMS[transform]
    wide = {key: t.double() for key, t in parameters.items()}
    actual, expected = of(call, parameters, x), of(reference, wide, x.double())
    found, structure = pytree.tree_flatten(actual)
    wanted, other = pytree.tree_flatten(expected)
    assert structure == other
    assert len(wanted) > 0
    for one, exact in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert_half_the_digits(one, exact.to(dtype), transform)


# Torch's softmax has no such derivative.
EVERY = [
    (name, transform)
    for name in NETWORKS
    for transform in TRANSFORMS
    if (name, transform) != ("attention", "reverse over forward mode")
]


@pytest.mark.parametrize(("name", "transform"), EVERY)
def test_transforms_of_a_network_equal_those_of_the_dense_one(name: str, transform: str) -> None:
    check(name, transform, torch.float64)


@pytest.mark.parametrize("transform", ["grad", "jvp", "hessian", "gradients of samples", "ensemble"])
@pytest.mark.parametrize("name", ["linear and relu", "conv2d", "conv1d", "network"])
def test_transforms_in_float32(name: str, transform: str) -> None:
    check(name, transform, torch.float32)


def test_operators_refuse_forward_mode_over_forward_mode() -> None:
    """Torch would take the outer derivative for zero."""
    layer = sparse_of(nn.Linear(5, 4)).double()
    x = noise(4, 3)

    def derivative(x: Tensor) -> Tensor:
        return jvp(lambda x: products.spmm_t(x, layer.values, layer.pattern, 5), (x,), (x,))[1]

    with pytest.raises(
        NotImplementedError, match=r"at most one forward-mode derivative .* with torch.func.jacrev"
    ):
        jvp(derivative, (x,), (x,))


def test_an_ensemble_of_modules() -> None:
    """``stack_module_state`` stacks patterns and plans with the parameters: patterns may differ."""
    layers = [sparse_of(nn.Linear(5, 4, dtype=torch.float64)) for _ in range(3)]
    x = noise(3, 5)
    y = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(*stack_module_state(layers))
    assert_half_the_digits(y, torch.stack([layer.to_dense()(x) for layer in layers]), "y")


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_with_a_residual(training: bool) -> None:
    fused = sp.nn.BatchNormAct2d(2, relu=True, track_running_stats=not training, dtype=torch.float64)
    fused.train(training)

    def plain(x: Tensor, residual: Tensor) -> Tensor:
        y = F.batch_norm(x, fused.running_mean, fused.running_var, fused.weight, fused.bias, training)
        return (y + residual).relu()

    inputs = (noise(3, 2, 2, 2), noise(3, 2, 2, 2, seed=1))
    for of in (jacrev, jacfwd, lambda f, numbers: hessian(lambda *t: f(*t).pow(3).sum(), numbers)):
        for one, exact in zip(
            pytree.tree_leaves(of(fused, (0, 1))(*inputs)),
            pytree.tree_leaves(of(plain, (0, 1))(*inputs)),
            strict=True,
        ):
            assert_half_the_digits(one, exact)


def test_bfloat16_is_rounded_once() -> None:
    layer = sparse_of(nn.Linear(5, 4)).bfloat16()
    wide = layer.to_dense().float()
    x = noise(3, 5, dtype=torch.bfloat16)
    y = vmap(layer)(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, wide(x.float()).bfloat16())


@given(
    samples=st.integers(1, 18),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    block_rows=st.sampled_from([1, 2, 4]),
    density=st.floats(0, 1),
    relu=st.booleans(),
    transform=st.sampled_from(sorted(set(TRANSFORMS) - {"reverse over reverse", "reverse over forward"})),
)
def test_any_linear_layer_under_any_transform(
    samples: int, sizes: tuple[int, int], block_rows: int, density: float, relu: bool, transform: str
) -> None:
    def make() -> nn.Module:
        layer = sparse_of(nn.Linear(sizes[0], sizes[1] * block_rows), block_rows, density)
        return nn.Sequential(*with_relu(layer)) if relu else layer

    few = samples if "mode" in transform or transform in ("grad", "jvp", "vjp") else min(samples, 2)
    check_network(make, (few, sizes[0]), transform, torch.float64)


@given(data=st.data())
def test_any_convolution_under_any_transform(data: st.DataObject) -> None:
    def draw(least: int, most: int) -> int:
        return data.draw(st.integers(least, most))

    groups, block_rows = draw(1, 2), data.draw(st.sampled_from([1, 2]))
    kernel, stride, dilation = (draw(1, 3), draw(1, 3)), (draw(1, 4), draw(1, 4)), (draw(1, 2), draw(1, 2))
    padding = (draw(0, 2), draw(0, 2))
    size = tuple(d * (k - 1) + 1 + draw(0, 2) for k, d in zip(kernel, dilation, strict=True))
    channels = (groups * draw(1, 2), groups * block_rows)
    transform = data.draw(
        st.sampled_from(["grad", "vjp", "jvp", "jacfwd", "vmap of x", "gradients of samples"])
    )

    def make() -> nn.Module:
        return sparse_of(nn.Conv2d(*channels, kernel, stride, padding, dilation, groups), block_rows)

    check_network(make, (draw(1, 2), channels[0], *size), transform, torch.float64)
