"""Every score against an independent derivation in float64, on networks of every kind."""

import math

import numpy
import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, batches, network, random_masks
from torch import Tensor, nn

from sparseprune import scores
from sparseprune.scores.base import numbers

# Of the largest score of a layer: some hundred thousand roundings in float64.
RELATIVE = 1e-10


def assert_equal(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    assert list(ours) == list(exact)
    for name, score in ours.items():
        assert score.dtype == torch.float64
        assert score.shape == exact[name].shape
        assert float((score - exact[name]).abs().max()) < RELATIVE * float(exact[name].abs().max()), name


def prepared(name: str, bn: str, masks: dict[str, Tensor] | None = None) -> nn.Module:
    """A copy of the network that may be changed, as the method runs it."""
    model = network(name).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train(bn == "train")
    for weight, mask in (masks or {}).items():
        model.get_parameter(weight).data.mul_(mask)
    return model


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return scores.prunable(model)


def normalised(exact: dict[str, Tensor]) -> dict[str, Tensor]:
    total = math.fsum(float(score.sum()) for score in exact.values())
    return {name: score / total for name, score in exact.items()}


def masks_of(name: str, wanted: bool) -> dict[str, Tensor] | None:
    return random_masks(weights_of(network(name))) if wanted else None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bn", ["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", [scores.gradient, scores.snip, scores.iter_snip, scores.force])
def test_first_order_scores_equal_backward(method, name: str, bn: str, masked: bool) -> None:
    masks = masks_of(name, masked)
    ours = method(network(name), batches(), bn=bn, masks=masks)
    model = prepared(name, bn, masks)
    for x, target in batches():
        F.cross_entropy(model(x), target).backward()
    dense = weights_of(network(name))
    exact = {}
    for weight, parameter in weights_of(model).items():
        factor = {"gradient": 1, "force": dense[weight].detach()}.get(method.__name__, parameter.detach())
        exact[weight] = (parameter.grad * factor).abs()
    assert_equal(ours, normalised(exact))


def hessian_times_gradient(model: nn.Module, data: list[tuple[Tensor, Tensor]], temperature: float) -> Tensor:
    """Hg of the weights, flat, from the full Hessian."""
    weights = weights_of(model)

    def objective(flat: Tensor) -> Tensor:
        parts = flat.split([weight.numel() for weight in weights.values()])
        state = {name: p.view(w.shape) for p, (name, w) in zip(parts, weights.items(), strict=True)}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return sum(
            F.cross_entropy(torch.func.functional_call(model, {**buffers, **state}, (x,)) / temperature, y)
            for x, y in data
        )

    flat = torch.cat([weight.detach().flatten() for weight in weights.values()]).requires_grad_()
    (g,) = torch.autograd.grad(objective(flat), flat)
    return torch.autograd.functional.hessian(objective, flat.detach()) @ g


@pytest.mark.parametrize(("count", "bn", "masked"), [(1, "train", False), (2, "eval", True)])
@pytest.mark.parametrize("name", NETWORKS)
def test_grasp_equals_the_full_hessian(name: str, count: int, bn: str, masked: bool) -> None:
    masks = masks_of(name, masked)
    options = {"temperature": 2.0, "bn": bn, "masks": masks}
    ours = scores.grasp(network(name), batches(count), **options)
    model = prepared(name, bn, masks)
    hg = hessian_times_gradient(model, batches(count), 2.0)
    weights = weights_of(model)
    parts = hg.split([weight.numel() for weight in weights.values()])
    exact = {n: w.detach() * p.view(w.shape) for p, (n, w) in zip(parts, weights.items(), strict=True)}
    assert_equal(ours, exact)
    absolute = scores.grasp_abs(network(name), batches(count), **options)
    assert_equal(absolute, {weight: score.abs() for weight, score in exact.items()})


def test_grasp_of_halves_is_that_of_batches_that_hold_different_classes() -> None:
    (x, target), *_ = batches(1, 9)
    shuffled = torch.tensor([4, 2, 7, 0, 1, 8, 3, 6, 5])
    order = target[shuffled].argsort(stable=True)
    first, second = shuffled[order][:4], shuffled[order][4:]
    halves = [(x[first], target[first]), (x[second], target[second])]
    ours = scores.grasp(network("batch-norm"), [(x[shuffled], target[shuffled])], halves=True)
    assert_equal(ours, scores.grasp(network("batch-norm"), halves))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_synflow_equals_backward_of_absolute_values(name: str, masked: bool) -> None:
    masks = masks_of(name, masked)
    ours = scores.synflow(network(name), batches(1), masks=masks)
    model = prepared(name, "eval", masks)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.abs_()
    model(torch.ones(1, 2, 4, 4, dtype=torch.float64)).sum().backward()
    assert_equal(ours, {weight: (p.grad * p).abs().detach() for weight, p in weights_of(model).items()})


@pytest.mark.parametrize(
    ("steps", "options"), [(1, {}), (3, {}), (2, {"lr": 0.5, "momentum": 0.9}), (2, {"detach_first": True})]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_prospr_equals_transformed_training(name: str, steps: int, options: dict) -> None:
    """By torch.func: the gates' gradient of the loss after some steps, each a gradient itself."""
    ours = scores.prospr(network(name), batches(2), steps=steps, bn="eval", **options)
    model = prepared(name, "eval")
    # Aliases of one parameter go together.
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    gates = {weight: torch.ones_like(p) for weight, p in weights_of(model).items()}
    data = [batches(2)[i % 2] for i in range(steps + 1)]
    lr, momentum = options.get("lr", 0.1), options.get("momentum", 0.0)

    def loss(theta: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, theta, (batch[0],)), batch[1])

    def trained(gates: dict[str, Tensor]) -> Tensor:
        theta = {n: p * gates[n] if n in gates else p for n, p in parameters.items()}
        velocity: dict[str, Tensor] = {}
        for batch in data[:-1]:
            g = torch.func.grad(loss)(theta, batch)
            if not velocity:
                velocity = {n: g_n.detach() if options.get("detach_first") else g_n for n, g_n in g.items()}
            else:
                velocity = {n: momentum * velocity[n] + g_n for n, g_n in g.items()}
            theta = {n: p - lr * velocity[n] for n, p in theta.items()}
        return loss(theta, data[-1])

    exact = {name: g.abs() for name, g in torch.func.grad(trained)(gates).items()}
    assert_equal(ours, normalised(exact))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_ntk_sap_equals_two_networks_side_by_side(name: str, masked: bool) -> None:
    masks = masks_of(name, masked)
    ours = scores.ntk_sap(network(name), batches(2), seed=3, samples=2, epsilon=0.1, masks=masks)
    generator = numbers(3, "test")
    total = {n: torch.zeros_like(w) for n, w in weights_of(network(name)).items()}
    for _ in range(2):
        for x, _ in batches(2):
            here, there = network(name).eval(), network(name).eval()
            gates = {
                n: (torch.ones_like(w) if masks is None else masks[n].double()).requires_grad_()
                for n, w in weights_of(here).items()
            }
            for weight in weights_of(here).values():
                weight.data = weight.data.flatten()[generator.permutation(weight.numel())].view_as(weight)
            for old, new in zip(weights_of(here).values(), weights_of(there).values(), strict=True):
                noise = generator.standard_normal(tuple(old.shape), dtype=numpy.float32)
                new.data = old.data + 0.1 * torch.from_numpy(noise).double()
            z = torch.from_numpy(generator.standard_normal(tuple(x.shape), dtype=numpy.float32)).double()
            norms = [m for m in here.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
            for module in norms:
                module.train()
                module.momentum = 1.0
            with torch.no_grad():
                torch.func.functional_call(here, gated(here, gates), (z,))
            here.eval()
            there.load_state_dict({**there.state_dict(), **dict(here.named_buffers())})
            outputs = [torch.func.functional_call(net, gated(net, gates), (z,)) for net in (here, there)]
            (outputs[0] - outputs[1]).pow(2).sum().backward()
            for n, gate in gates.items():
                total[n] += gate.grad
    kept = {n: 1.0 if masks is None else masks[n] for n in total}
    assert_equal(ours, normalised({n: (g * kept[n]).abs() for n, g in total.items()}))


def gated(model: nn.Module, gates: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: weight.detach() * gates[n] for n, weight in weights_of(model).items()}


# ---- two weights by hand -----------------------------------------------------------------------------------


class TwoWeights(nn.Module):
    """f(x) = 3 x₁ − x₂."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False).double()
        self.layer.weight.data = torch.tensor([[3.0, -1.0]], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return output.square().sum() / 2


ONE_TWO = [(torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.zeros(1))]
FIRST = {"layer.weight": torch.tensor([[True, False]])}


# f = 1 and L = f² / 2, so g = f x = (1, 2), H = x xᵀ = ((1, 2), (2, 4)) and Hg = (5, 10). Without the second
# weight f = 3 and g = (3, 6). One step of training with rate 0.1 makes f₁ = f (1 − 0.1 |x|²) = f / 2, and the
# gates' gradient is f w x / 4.
@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        (scores.magnitude, {}, [3, 1]),
        (scores.gradient, {}, [1 / 3, 2 / 3]),
        (scores.snip, {}, [3 / 5, 2 / 5]),
        (scores.iter_snip, {"masks": FIRST}, [1, 0]),
        (scores.force, {"masks": FIRST}, [9 / 15, 6 / 15]),
        (scores.grasp, {"temperature": 1.0}, [15, -10]),
        (scores.grasp_abs, {"temperature": 1.0}, [15, 10]),
        (scores.synflow, {}, [3, 1]),
        (scores.synflow, {"masks": FIRST}, [3, 0]),
        (scores.prospr, {"steps": 1}, [3 / 5, 2 / 5]),
    ],
)
def test_two_weights_by_hand(method, options: dict, expected: list[float]) -> None:
    result = method(TwoWeights(), ONE_TWO, half_square, **options)["layer.weight"]
    wanted = torch.tensor([expected], dtype=torch.float64)
    assert torch.allclose(result, wanted, rtol=1e-14, atol=0)


# J = (Σ m Δθ z)², so ∂J/∂m = 2 (Σ m Δθ z) Δθ z, whatever θ is.
def test_two_weights_by_hand_ntk_sap() -> None:
    result = scores.ntk_sap(TwoWeights(), ONE_TWO, seed=5, samples=1, masks=FIRST)["layer.weight"]
    assert torch.equal(result, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    result = scores.ntk_sap(TwoWeights(), ONE_TWO, seed=5, samples=1)["layer.weight"]
    generator = numbers(5, "test")
    generator.permutation(2)
    moved = generator.standard_normal((1, 2), dtype=numpy.float32)
    terms = torch.from_numpy(moved * generator.standard_normal((1, 2), dtype=numpy.float32)).double().abs()
    # Outputs of 1 in float64, which differ by 1e-2: eleven digits are left. Noise is multiplied in float32.
    assert torch.allclose(result, terms / terms.sum(), rtol=1e-6, atol=0)


def test_two_layers_by_hand_synflow() -> None:
    """R = 1ᵀ |W₂| |W₁| 1: a weight times what flows into it and out of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    result = scores.synflow(model, input_size=(3,))
    first, second = model[0].weight.detach().double().abs(), model[2].weight.detach().double().abs()
    assert torch.allclose(result["0.weight"], first * second.sum(0)[:, None], rtol=1e-14, atol=0)
    assert torch.allclose(result["2.weight"], second * first.sum(1), rtol=1e-14, atol=0)
    # The flow through each layer is the same, R.
    assert float(result["0.weight"].sum()) == pytest.approx(float(result["2.weight"].sum()), rel=1e-14)
