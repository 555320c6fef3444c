import copy
import re

import numpy
import pytest
import torch
import torch.nn.functional as F
from bounds import assert_half_the_digits, assert_within, gamma
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sparseprune import scores

FIRST_ORDER = (scores.gradient, scores.snip, scores.iter_snip, scores.force)
# Methods of (input, target) that know batch-norm's two modes.
DATA_METHODS = (*FIRST_ORDER, scores.grasp, scores.grasp_abs, scores.prospr)
METHODS = tuple(scores.METHODS.values())


def convnet(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Batch-norm, dropout, an odd mode in one submodule, a frozen weight, one gradient at hand."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.BatchNorm1d(6),
        nn.Tanh(),
        nn.Linear(6, 3),
    ).to(dtype)
    model[3].eval()
    model[8].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    return model


def images(count: int = 2, size: int = 6, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 2, 4, 4, generator=generator, dtype=dtype),
            torch.randint(3, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def assert_scores(ours: Tensor, exact: Tensor, count: int = 10_000) -> None:
    """A few roundings, and that of the sum of so many scores that they are divided by."""
    exact = exact.double()
    assert_within(ours, exact, (gamma(count, ours.dtype) + gamma(count, torch.float64)) * exact.abs())


def snapshot(model: nn.Module) -> dict:
    return {
        "state": {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()},
        "grad": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "ids": [id(tensor) for tensor in (*model.parameters(), *model.buffers())],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "rng": torch.get_rng_state(),
    }


def assert_same(before: dict, after: dict) -> None:
    for name, (pointer, value) in before["state"].items():
        assert after["state"][name][0] == pointer
        assert torch.equal(after["state"][name][1], value), name
    for name, grad in before["grad"].items():
        if grad is None:
            assert after["grad"][name] is None
        else:
            assert torch.equal(after["grad"][name], grad)
    for key in ("ids", "requires_grad", "modes", "hooks"):
        assert before[key] == after[key]
    assert torch.equal(before["rng"], after["rng"])


class Given(nn.Module):
    """A linear layer whose gradient under ``total`` is the input."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(weight.numel(), 1, bias=False)
        self.layer.weight = nn.Parameter(weight.reshape(1, -1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def total(output: Tensor, target: Tensor) -> Tensor:
    return output.sum()


ARTICLE = torch.tensor([[1.2, -2.4, 0.8, 3.6, -1.8, 0.4, 2.8, 1.4]])


def test_gradient_worked_example() -> None:
    model = Given(torch.full((8,), 0.5))
    result = scores.gradient(model, [(ARTICLE, torch.zeros(1))], total)["layer.weight"]
    assert_scores(result, ARTICLE.abs() / 14.4, 12)
    assert sorted(result[0].argsort()[:4].tolist()) == [0, 2, 5, 7]  # 1.2, 0.8, 0.4, 1.4 go


def test_gradient_sums_with_signs_before_abs() -> None:
    model = Given(torch.ones(3))
    batches = [
        (torch.tensor([[1.0, -2.0, 3.0]]), torch.zeros(1)),
        (torch.tensor([[-1.0, -2.0, 1.0]]), torch.zeros(1)),
    ]
    result = scores.gradient(model, batches, total)["layer.weight"]
    assert torch.equal(result, torch.tensor([[0.0, 4.0, 4.0]]) / 8)


def test_snip_is_gradient_times_weight() -> None:
    weight = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0, -1.0, 0.1, 2.0])
    result = scores.snip(Given(weight), [(ARTICLE, torch.zeros(1))], total)["layer.weight"]
    sensitivity = (weight * ARTICLE).abs()
    assert_scores(result, sensitivity / sensitivity.double().sum(), 12)


@pytest.mark.parametrize("bn", ["train", "eval"])
@pytest.mark.parametrize("method", [scores.gradient, scores.snip])
def test_first_order_scores_equal_plain_autograd(method, bn: str) -> None:
    model, batches = convnet(torch.float64), images(3, dtype=torch.float64)
    result = method(model, batches, bn=bn)
    reference = copy.deepcopy(model).requires_grad_(True).eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train(bn == "train")
    reference.zero_grad()
    for x, target in batches:
        F.cross_entropy(reference(x), target).backward()
    expected = {
        name: p.grad.abs() if method is scores.gradient else (p.grad * p).abs().detach()
        for name, p in reference.named_parameters()
        if name in ("0.weight", "5.weight", "8.weight")
    }
    normaliser = sum(score.sum() for score in expected.values())
    assert list(result) == list(expected)
    for name in expected:
        assert_scores(result[name], expected[name] / normaliser)


# The derivative of the loss with respect to a gate on each connection, which is how the paper defines SNIP.
def test_snip_is_the_derivative_of_a_connection_gate() -> None:
    model, (batch,) = convnet(torch.float64), images(1, dtype=torch.float64)
    weight = model[5].weight
    result = scores.snip(model, [batch], bn="eval")["5.weight"]
    reference = copy.deepcopy(model).eval()
    slopes = []
    for row, column in [(0, 0), (2, 17), (5, 63)]:
        losses = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                reference[5].weight.copy_(weight)
                reference[5].weight[row, column] *= 1 + step
                losses.append(F.cross_entropy(reference(batch[0]), batch[1]).item())
        slopes.append((losses[0] - losses[1]) / 2e-5 / result[row, column].item())
    # Scores are slopes over one common normaliser. Central differences of a loss of about 1, with a step h of
    # 1e-5, are off by about h^2 and by u / h: 1e-10, of slopes of 1e-5 and more.
    for slope in slopes:
        assert abs(slope) == pytest.approx(abs(slopes[0]), rel=1e-5)


def tanh_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)).double()


def hessian_times_gradient(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], temperature: float
) -> tuple[Tensor, Tensor]:
    """(θ, Hg) of the weights, flat, from the full Hessian of the summed loss."""
    names = ["0.weight", "2.weight"]
    weights = [model.get_parameter(name).detach() for name in names]
    theta = torch.cat([w.reshape(-1) for w in weights])

    def objective(flat: Tensor) -> Tensor:
        parts = flat.split([w.numel() for w in weights])
        override = {name: part.reshape(w.shape) for name, part, w in zip(names, parts, weights, strict=True)}
        return sum(
            F.cross_entropy(torch.func.functional_call(model, override, (x,)) / temperature, target)
            for x, target in batches
        )

    g = torch.func.grad(objective)(theta)
    return theta, torch.autograd.functional.hessian(objective, theta) @ g


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("temperature", [200.0, 1.0])
def test_grasp_is_theta_times_hessian_times_gradient(count: int, temperature: float) -> None:
    model, generator = tanh_net(), torch.Generator().manual_seed(2)
    batches = [
        (torch.randn(5, 3, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1]))
        for _ in range(count)
    ]
    result = scores.grasp(model, batches, temperature=temperature)
    theta, hg = hessian_times_gradient(model, batches, temperature)
    flat = torch.cat([score.reshape(-1) for score in result.values()])
    assert_half_the_digits(flat, theta * hg)
    if temperature == 200.0:
        assert torch.equal(scores.grasp(model, batches)["0.weight"], result["0.weight"])


# A high score means that removing the weight lowers the gradient norm: d‖g‖²/dδ = 2 θ Hg at θ (1 + δ).
def test_grasp_sign_high_score_carries_gradient_flow() -> None:
    model, batch = tanh_net(), (torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 3)
    result = scores.grasp(model, [batch], temperature=1.0)

    def gradient_norm(change: Tensor) -> Tensor:
        weight = (model[0].weight * (1 + change)).detach().requires_grad_()
        weights = [weight, model[2].weight]
        hidden = torch.tanh(F.linear(batch[0], weight, model[0].bias))
        loss = F.cross_entropy(F.linear(hidden, model[2].weight), batch[1])
        return sum((g**2).sum() for g in torch.autograd.grad(loss, weights))

    for row, column in [(0, 0), (1, 2), (3, 1)]:
        change = torch.zeros(4, 3, dtype=torch.float64)
        change[row, column] = 1e-5
        slope = (gradient_norm(change) - gradient_norm(-change)) / 2e-5
        # Central differences with a step h of 1e-5: h^2 and u / h, of squared gradients below 1.
        assert float(slope) == pytest.approx(float(2 * result["0.weight"][row, column]), rel=1e-6, abs=1e-10)


def test_grasp_one_batch_equals_two_pass() -> None:
    model, batches = convnet(torch.float64), images(1, dtype=torch.float64)
    in_one = scores.grasp(model, batches, temperature=1.0)
    in_two = scores.grasp(model, DataLoader(batches, batch_size=None), temperature=1.0)
    for name in in_one:
        assert_half_the_digits(in_one[name], in_two[name])


def test_grasp_of_a_loss_without_curvature_is_zero() -> None:
    result = scores.grasp(Given(torch.ones(8)), [(ARTICLE, torch.zeros(1))], total)
    assert torch.equal(result["layer.weight"], torch.zeros(1, 8))


def test_random_depends_on_the_seed_alone() -> None:
    model = convnet()
    first = scores.random(model, seed=3)
    torch.manual_seed(7)
    again, other = scores.random(model, seed=3), scores.random(model, seed=4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert all(score.min() >= 0 and score.max() < 1 for score in first.values())


@pytest.mark.parametrize("seed", [0, 1, 2, 12345])
def test_random_is_independent_of_weights_of_the_same_seed(seed: int) -> None:
    torch.manual_seed(seed)
    ours = {"weight": nn.Linear(300, 200).weight}
    torch.manual_seed(seed)
    ours["normal"] = torch.randn(200, 300)
    numbers = numpy.random.default_rng(seed)
    ours["numpy"] = torch.from_numpy(numbers.random((200, 300)))
    score = scores.random(nn.Sequential(nn.Linear(300, 200)), seed=seed)["0.weight"]
    for name, weight in ours.items():
        pair = torch.stack([score.flatten(), weight.detach().float().flatten()])
        # The deviation of the correlation of 60,000 independent pairs is 0.004.
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.02, name


def test_random_refuses_a_negative_seed() -> None:
    with pytest.raises(ValueError, match=r"random: expected seed >= 0, got -1"):
        scores.random(nn.Linear(3, 2), seed=-1)


def test_magnitude_is_abs_and_no_alias() -> None:
    model = convnet()
    result = scores.magnitude(model)["0.weight"]
    assert torch.equal(result, model[0].weight.abs())
    result.zero_()
    assert model[0].weight.abs().sum() > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scores_are_finite_and_of_the_weights_shape(method, dtype: torch.dtype) -> None:
    model = convnet(dtype)
    result = method(model, images(dtype=dtype))
    assert list(result) == ["0.weight", "5.weight", "8.weight"]
    for name, score in result.items():
        assert score.shape == model.get_parameter(name).shape
        expected = torch.float64 if method is scores.synflow else torch.promote_types(dtype, torch.float32)
        assert score.dtype == (torch.float32 if method is scores.random else expected)
        assert not score.requires_grad
        assert score.isfinite().all()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("bn", ["train", "eval"])
@pytest.mark.parametrize("method", DATA_METHODS)
def test_scores_leave_the_model_bit_identical(method, bn: str, context) -> None:
    model, batches = convnet(), images(3)
    before = snapshot(model)
    with context():
        method(model, batches, bn=bn)
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
        assert torch.is_grad_enabled() == (context is torch.enable_grad)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("failing", ["model", "loss", "batches"])
@pytest.mark.parametrize("method", DATA_METHODS)
def test_scores_leave_the_model_bit_identical_after_an_error(method, failing: str) -> None:
    model, data = convnet(), images(2)
    calls = []

    def fail(*args: object) -> Tensor:
        calls.append(args)
        if len(calls) > 1:
            torch.rand(3)
            raise KeyError("on purpose")
        return F.cross_entropy(*args) if failing == "loss" else None

    def broken():
        yield data[0]
        raise KeyError("on purpose")

    handle = model[7].register_forward_hook(fail) if failing == "model" else None
    before = snapshot(model)
    with pytest.raises(KeyError, match="on purpose"):
        method(
            model, broken() if failing == "batches" else data, fail if failing == "loss" else F.cross_entropy
        )
    assert_same(before, snapshot(model))
    if handle:
        handle.remove()


def test_scores_draw_the_random_state_of_a_shuffled_loader_from_a_copy() -> None:
    model, (batch,) = convnet(), images(1, size=12)
    loader = DataLoader(TensorDataset(*batch), batch_size=6, shuffle=True)
    before = torch.get_rng_state()
    scores.snip(model, loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", DATA_METHODS)
def test_scores_do_not_depend_on_dropout_or_mode(method) -> None:
    model, batches = convnet(), images(2)
    first = method(model, batches)
    model.train()
    torch.manual_seed(99)
    second = method(model, batches)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", DATA_METHODS)
def test_scores_bn_option_changes_the_scores(method) -> None:
    model, batches = convnet(), images(2)
    assert not torch.equal(
        method(model, batches, bn="train")["0.weight"], method(model, batches, bn="eval")["0.weight"]
    )


@pytest.mark.parametrize("method", DATA_METHODS)
def test_scores_take_any_iterable_of_batches(method) -> None:
    model, batches = convnet(), images(3)
    expected = method(model, batches)
    for same in (
        tuple(batches),
        iter(batches),
        (list(batch) for batch in batches),
        DataLoader(batches, None),
    ):
        result = method(model, same)
        assert all(torch.equal(result[name], expected[name]) for name in expected)


# Two layers whose gradients autograd returns as one tensor, and a weight that the loss does not depend on.
class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.idle = (nn.Linear(3, 2, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.a.weight + self.b.weight)


def test_snip_when_autograd_returns_one_tensor_twice() -> None:
    model, x = Shared(), torch.tensor([[1.0, 2.0, 3.0]])
    result = scores.snip(model, [(x, torch.zeros(1))], total, exclude=["idle"])
    a, b = ((x * layer.weight).abs().detach() for layer in (model.a, model.b))
    total_score = a.double().sum() + b.double().sum()
    assert_scores(result["a.weight"], a / total_score, 20)
    assert_scores(result["b.weight"], b / total_score, 20)


def test_gradient_all_zero_stays_zero() -> None:
    result = scores.gradient(Given(torch.ones(4)), [(torch.zeros(1, 4), torch.zeros(1))], total)
    assert torch.equal(result["layer.weight"], torch.zeros(1, 4))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.first, self.second, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5)
        self.between = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.decoder.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.second(self.between(self.first(self.embedding(x)))))


def test_prunable_skips_shared_weights_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "sparseprune"):
        assert list(scores.prunable(Tied())) == ["between.weight"]
    assert [record.getMessage() for record in caplog.records] == [
        "prunable: embedding.weight is not pruned: shared by embedding.weight, decoder.weight",
        "prunable: first.weight is not pruned: shared by first.weight, second.weight",
    ]


def test_gradient_sees_every_use_of_shared_weights() -> None:
    torch.manual_seed(0)
    model, batch = Tied().double(), (torch.tensor([0, 1, 3]), torch.tensor([2, 3, 4]))
    result = scores.gradient(model, [batch])
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    grad = model.between.weight.grad.abs()
    assert_scores(result["between.weight"], grad / grad.sum(), 60)


def test_prunable_lists_a_layer_that_occurs_twice_under_its_first_name() -> None:
    layer = nn.Linear(4, 4)
    model = nn.ModuleDict({"first": layer, "again": layer})
    assert list(scores.prunable(model)) == ["first.weight"]
    assert list(scores.prunable(model, ["again"])) == []


def test_prunable_lists_linear_and_conv_weights_in_module_order() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 2)
            self.convs = nn.ModuleList([nn.Conv1d(1, 2, 3), nn.Conv2d(1, 2, 3), nn.Conv3d(1, 2, 3)])
            self.norm, self.embedding, self.up = (
                nn.LayerNorm(2),
                nn.Embedding(3, 2),
                nn.ConvTranspose2d(1, 1, 2),
            )

    model = Block()
    names = ["head.weight", "convs.0.weight", "convs.1.weight", "convs.2.weight"]
    listed = scores.prunable(model)
    assert list(listed) == names
    assert all(weight is model.get_parameter(name) for name, weight in listed.items())
    assert list(scores.prunable(nn.Linear(2, 2))) == ["weight"]
    assert list(scores.prunable(model, ["head"])) == names[1:]
    assert list(scores.prunable(model, "convs.1.weight")) == [names[0], names[1], names[3]]
    assert list(scores.prunable(model, ["convs"])) == names[:1]
    assert list(scores.prunable(model, iter(["norm"]))) == names


def test_prunable_skips_parametrised_weights() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    assert list(scores.prunable(model)) == ["1.weight"]


def test_prunable_refuses() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    message = "exclude: expected names of parameters or modules of the model, got 'head', '1.weight'; see"
    with pytest.raises(ValueError, match=re.escape(message)):
        scores.prunable(model, ["head", "0.weight", "1.weight"])
    with pytest.raises(ValueError, match="got ''"):
        scores.prunable(model, [""])
    with pytest.raises(TypeError, match=re.escape("expected model to be a torch.nn.Module, got dict")):
        scores.prunable({})
    with pytest.raises(
        ValueError, match="expected a weight, got none yet in lazy 'weight'; run one batch first"
    ):
        scores.prunable(nn.LazyLinear(3))


@pytest.mark.parametrize("method", DATA_METHODS)
@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (None, ValueError, "expected batches (an iterable of (input, target)), got None"),
        (3, TypeError, "expected batches to be an iterable of (input, target), got an int"),
        (
            [],
            ValueError,
            "expected at least one batch, got none; if batches is an iterator it may be exhausted",
        ),
        (iter(()), ValueError, "expected at least one batch, got none"),
        (images(1)[0], TypeError, "got a Tensor; wrap a single batch in a list: [(input, target)]"),
        ([torch.zeros(2, 2)], TypeError, "a pair of tensors (input, target), got a Tensor"),
        ([(torch.zeros(1), 3)], TypeError, "a pair of tensors (input, target), got a tuple of (Tensor, int)"),
        ([(torch.zeros(1),) * 3], TypeError, "got a tuple of (Tensor, Tensor, Tensor)"),
        ({"x": torch.zeros(1)}, TypeError, "got a dict of (x); wrap a single batch in a list: [batch]"),
    ],
)
def test_scores_refuse_bad_batches(method, batches, error: type[Exception], message: str) -> None:
    name = method.__name__.removeprefix("iter_").removesuffix("_abs")
    with pytest.raises(error, match=f"^{name}: .*{re.escape(message)}"):
        method(convnet(), batches)


@pytest.mark.parametrize("method", DATA_METHODS)
def test_scores_refuse_an_exhausted_iterator(method) -> None:
    iterator = iter(images(1))
    list(iterator)
    with pytest.raises(ValueError, match="it may be exhausted: pass a list or a DataLoader"):
        method(convnet(), iterator)


@pytest.mark.parametrize("method", DATA_METHODS)
@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda output, target: output, "(6, 3)"),
        (lambda output, target: output.sum().detach(), "()"),
        (lambda output, target: 1.0, "a float"),
    ],
)
def test_scores_refuse_a_loss_that_is_no_scalar_of_the_weights(method, loss, got: str) -> None:
    message = f"loss: expected a scalar tensor that depends on the weights, got {got}"
    with pytest.raises(ValueError, match=re.escape(message)):
        method(convnet(), images(1), loss)


@pytest.mark.parametrize("method", DATA_METHODS)
def test_scores_refuse_unknown_bn_and_nothing_to_score(method) -> None:
    with pytest.raises(ValueError, match='bn: expected "train" or "eval", got \'batch\''):
        method(convnet(), images(1), bn="batch")
    with pytest.raises(ValueError, match="expected a model with Linear or Conv weights to score, found none"):
        method(nn.ReLU(), images(1))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_grasp_refuses_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="grasp: expected temperature > 0, got"):
        scores.grasp(convnet(), images(1), temperature=temperature)
