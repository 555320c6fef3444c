import pytest
import torch
from other_layers import Conv1D, Experts
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.cost.calls import Call, record_calls
from sparseprune.cost.flops import flops_costs, flops_per_step
from sparseprune.cost.seconds import measured_costs
from sparseprune.cost.speedup import timed_steps
from sparseprune.scores.samples import Examples
from sparseprune.select.budget import LayerCost


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.never = nn.Conv2d(3, 4, 1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)
        self.calls = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = torch.nn.functional.dropout(self.norm(self.conv(x)), 0.5)
        x = self.twice(nn.functional.max_pool2d(self.twice(x), 2))
        return self.head(x.mean((2, 3)))


def test_recorded_calls_are_those_of_one_sample() -> None:
    model = Branches()
    expected = {
        model.conv: [Call((3, 9, 11), (4, 4, 5), False)],
        model.twice: [Call((4, 4, 5), (4, 4, 5), True), Call((4, 2, 2), (4, 2, 2), True)],
        model.head: [Call((4,), (2,), True)],
    }
    assert record_calls(model, (3, 9, 11), "op") == expected
    for layers in ("sparse", "dense"):
        masks = {"conv.weight": torch.ones(4, 3, 3, 3, dtype=torch.bool)}
        pruned = sp.sparsify(model, masks, layers=layers)
        assert list(record_calls(pruned, (3, 9, 11), "op").values()) == list(expected.values())
    model.to(torch.bfloat16)
    assert record_calls(model, (3, 9, 11), "op") == expected


def test_recorded_calls_of_a_frozen_beginning() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    model[0].requires_grad_(False)
    recorded = record_calls(model, (1, 2, 2), "op").values()
    assert [call.input_gradient for (call,) in recorded] == [False, False, True]


def test_record_calls_leaves_everything_as_it_is() -> None:
    model = Branches()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad():
        record_calls(model, (3, 9, 11), "op")
    assert model.training
    assert model.calls.item() == 0
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("input_size", [(3,), (1, 9, 11), (3, 1, 1), ()])
def test_record_calls_refuses(input_size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^op: expected input_size to be the shape of a sample"):
        record_calls(Branches(), input_size, "op")


@pytest.mark.parametrize("input_size", [5, "3x4", (3, 0), (3, 2.5), (True, 2)])
def test_an_input_size_is_a_shape(input_size: object) -> None:
    with pytest.raises(ValueError, match=r"^op: expected input_size to be the shape of one sample, such as"):
        record_calls(Branches(), input_size, "op")


class Tokens(nn.Module):
    """Takes tokens and a mask by name, and gives a dict; the last layer sees all positions as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, *, mask: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.inner(self.embedding(ids))) * mask[..., None]
        return {"logits": self.head(x.flatten(0, 1)), "ids": ids}


def token_examples(samples: int) -> Examples:
    ids = torch.arange(samples * 5).reshape(samples, 5) % 7
    return Examples((ids,), {"mask": torch.ones(samples, 5)})


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_recorded_calls_of_example_inputs(samples: int) -> None:
    model = Tokens()
    recorded = record_calls(model, token_examples(samples), "op")
    assert recorded == {
        model.inner: [Call((5, 4), (5, 6), True)],
        # Rows are positions of samples.
        model.head: [Call((5, 6), (5, 3), True)],
    }
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in sp.scores.prunable(model).items()}
    sparse = sp.sparsify(model, masks, layers="sparse")
    assert list(record_calls(sparse, token_examples(samples), "op").values()) == list(recorded.values())


def test_record_calls_refuses_example_inputs_that_the_model_does_not_take() -> None:
    ids = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"^op: expected example_inputs to be arguments that .* got \(int64 \[2, 5"
    ):
        record_calls(Tokens(), Examples((ids,)), "op")


def test_flops_of_example_inputs() -> None:
    model = Tokens()
    # Three products, two operations, five positions.
    assert flops_per_step(model, token_examples(3), 10) == 10 * 3 * 2 * 5 * (24 + 18)
    costs = flops_costs(model, token_examples(1))
    assert {name: cost.dense for name, cost in costs.items()} == {"inner.weight": 720, "head.weight": 540}


def test_prune_by_flops_of_tokens() -> None:
    model = Tokens()
    ids, mask = token_examples(2).args[0], token_examples(2).kwargs["mask"]

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["ids"], mask=batch["mask"])["logits"].square().mean()

    batches = [{"ids": ids, "mask": mask}]
    by_name = sp.prune(model, batches, loss=loss, flops=0.5)
    given = sp.prune(model, iter(batches), loss=loss, flops=0.5, example_inputs=((ids,), {"mask": mask}))
    assert all(torch.equal(by_name[name], given[name]) for name in given)
    kept = {name: int(of.sum()) for name, of in given.items()}
    assert 2 * 3 * 5 * sum(kept.values()) <= 0.5 * 1260 < 2 * 3 * 5 * (sum(kept.values()) + 1)
    with pytest.raises(ValueError, match="expected one of input_size and example_inputs, got both"):
        sp.prune(model, batches, loss=loss, flops=0.5, input_size=(5,), example_inputs=ids)
    with pytest.raises(
        ValueError, match=r"prune: expected example_inputs=.* and a tuple of \(Tensor, dict\) as a b"
    ):
        sp.prune(model, [(ids, {"mask": mask})], loss=loss, flops=0.5)


def test_steps_of_example_inputs_are_timed() -> None:
    model = Tokens()
    assert timed_steps([(model, False)], token_examples(2), 3).seconds[0] > 0
    assert all(parameter.grad is None for parameter in model.parameters())


# ---- weights that no layer of torch multiplies with --------------------------------------------------------


class Attending(nn.Module):
    """Queries, keys and values have weights of their own, and the parent reads those of out_proj."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Linear(4, 6)
        self.attention = nn.MultiheadAttention(4, 2, kdim=6, vdim=6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.keys(x[:, :3])
        return self.attention(x, keys, keys)[0]


class Reads(nn.Module):
    """Computes with the weight of a child in another way than the child does, which it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nlk,ok->nlo", x, self.inner.weight)


# For a model: the shape of a sample, and of each weight at how many places it is used, on average.
READ = {
    # Each of two samples has one expert of two.
    "experts": (lambda: Experts(2, 3, 5), (5,), {"up": 0.5, "down": 0.5}),
    "attention": (
        Attending,
        (7, 4),
        {
            "keys.weight": 3,
            "attention.q_proj_weight": 7,
            "attention.k_proj_weight": 3,
            "attention.v_proj_weight": 3,
            "attention.out_proj.weight": 7,
        },
    ),
    "read": (Reads, (7, 5), {"inner.weight": 7}),
    "transposed": (lambda: Conv1D(3, 5), (7, 5), {"weight": 7}),
}


@pytest.mark.parametrize("case", READ)
def test_costs_of_weights_that_no_layer_of_torch_multiplies_with(case: str) -> None:
    make, shape, places = READ[case]
    torch.manual_seed(0)
    model = make()
    first = [name for name in places if name in ("keys.weight", "weight")]
    per_weight = {name: 2 * (2 if name in first else 3) * places[name] for name in places}
    costs = flops_costs(model, shape)
    sizes = {name: model.get_parameter(name).numel() for name in places}
    assert {name: cost.per_weight for name, cost in costs.items()} == per_weight
    assert {name: cost.dense for name, cost in costs.items()} == {n: per_weight[n] * sizes[n] for n in sizes}
    assert flops_per_step(model, shape, 4) == 4 * sum(cost.dense for cost in costs.values())
    rows = sp.summary(model, input_size=shape).rows
    assert {row.name: row.flops for row in rows} == {n: 2 * places[n] * sizes[n] for n in sizes}
    # Masked or sparse, what is kept is counted.
    masks = sp.prune(model, method="magnitude", flops=0.5, input_size=shape)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    total = sum(per_weight[name] * kept[name] for name in kept)
    # What a parent reads of a sparse layer is not followed.
    for layers in ("dense",) if case == "read" else ("sparse", "dense"):
        sparse = sp.sparsify(model, masks, layers=layers)
        assert flops_per_step(sparse, shape, 4) == 4 * total <= 0.5 * flops_per_step(model, shape, 4)
        rows = sp.summary(sparse, input_size=shape).rows
        assert {row.name: row.flops for row in rows} == {n: 2 * places[n] * kept[n] for n in kept}


def test_speedup_leaves_experts_to_the_rest_of_the_network() -> None:
    model = nn.Sequential(nn.Linear(5, 5), Experts(2, 3, 5))
    costs = measured_costs(model, (5,), 4)
    assert costs["1.up"] == costs["1.down"] == LayerCost(0.0, 0.0, 0.0)
    assert costs["0.weight"].dense > 0
