import pytest
import torch
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.cost.calls import Call, record_calls


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
