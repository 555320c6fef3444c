"""Batches as they are: losses of (model, batch), and what is in a batch."""

import collections
import copy
import dataclasses
import functools
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_half_the_digits
from networks import CLASSES, batches, network
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import sparseprune as sp
from sparseprune import scores
from sparseprune.scores.losses import takes_model
from sparseprune.scores.nested import described, moved, tensors_in, with_each

METHODS = (
    scores.gradient,
    scores.snip,
    scores.iter_snip,
    scores.force,
    scores.grasp,
    scores.grasp_abs,
    scores.prospr,
)
MICRO = METHODS[:-1]
Pair = collections.namedtuple("Pair", ["x", "y"])


@dataclasses.dataclass(frozen=True)
class Batch:
    x: Tensor
    y: Tensor
    names: tuple[str, ...] = ("a", "b")


class Mixed(nn.Module):
    """Takes what it needs by name and gives a dict, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0
        self.body = network("batch-norm")

    def forward(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.body(x) * self.scale
        return {"logits": logits} if y is None else {"loss": F.cross_entropy(logits, y), "logits": logits}

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        assert index == 0
        x, y = batch
        return self(x, y=y)["loss"]


def of_dict(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(x=batch["x"], y=batch["y"])["loss"]


def of_fields(model: nn.Module, batch: Any) -> Tensor:
    return model(batch.x, batch.y)["loss"]


KINDS = {
    "dict": (lambda x, y: {"x": x, "y": y, "names": ["a"]}, of_dict),
    "ordered dict": (lambda x, y: collections.OrderedDict(x=x, y=y), of_dict),
    "user dict": (lambda x, y: collections.UserDict(x=x, y=y), of_dict),
    "triple": (lambda x, y: (x, "a name", y), lambda model, batch: model(batch[0], batch[2])["loss"]),
    "list": (lambda x, y: [[x], [y]], lambda model, batch: model(*batch[0], *batch[1])["loss"]),
    "named tuple": (Pair, of_fields),
    "dataclass": (Batch, of_fields),
    "training step": (lambda x, y: (x, y), lambda model, batch: model.training_step(batch, 0)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_loss_of_model_and_batch_scores_as_one_of_output_and_target(method, kind: str) -> None:
    make, loss = KINDS[kind]
    model, data = Mixed(), batches(2)
    options = {"temperature": 1.0} if method in (scores.grasp, scores.grasp_abs) else {}
    expected = method(model.body, data, **options)
    ours = method(model, [make(x, y) for x, y in data], loss)
    assert list(ours) == [f"body.{name}" for name in expected]
    assert all(torch.equal(ours[f"body.{name}"], score) for name, score in expected.items())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "training step"])
@pytest.mark.parametrize("method", MICRO)
def test_micro_batches_of_any_kind(method, kind: str) -> None:
    make, loss = KINDS[kind]
    model, data = Mixed(), [make(x, y) for x, y in batches(2, 7)]
    whole = method(model, data, loss, bn="eval")
    parts = method(model, data, loss, bn="eval", micro_batch_size=3)
    for name in whole:
        assert_half_the_digits(parts[name], whole[name])


def test_a_loss_is_given_the_model_itself_with_other_weights() -> None:
    model, seen = Mixed(), []
    weight = model.body[0].weight
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append((model, model.body[0].weight))
        return model.training_step(batch, 0)

    scores.snip(model, batches(1), loss)
    ((given, leaf),) = seen
    assert given is model
    assert leaf is not weight
    assert torch.equal(leaf, weight)
    assert leaf.requires_grad
    assert model.body[0].weight is weight
    assert weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def broken(model: nn.Module, batch: Any) -> Tensor:
        raise KeyError("labels")

    with pytest.raises(KeyError, match="labels"):
        scores.snip(model, batches(1), broken)
    assert model.body[0].weight is weight


def test_masks_of_earlier_rounds_are_what_a_loss_sees() -> None:
    model = Mixed()
    masks = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in scores.prunable(model).items()}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert not any(bool(tensor.any()) for name, tensor in model.named_parameters() if name in masks)
        return model.training_step(batch, 0)

    scores.gradient(model, batches(1), loss, masks=masks)


class Objective:
    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return model.training_step(batch, 0)

    def of_model(self, model: nn.Module, batch: Any) -> Tensor:
        return model.training_step(batch, 0)


class ObjectiveModule(nn.Module):
    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        return model.training_step(batch, 0)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (F.cross_entropy, False),
        (functools.partial(F.cross_entropy, label_smoothing=0.1), False),
        (nn.CrossEntropyLoss(), False),
        (lambda output, target: output, False),
        (lambda *arguments: arguments, False),
        (torch.nn.functional.hinge_embedding_loss, False),
        (torch.dot, False),
        (max, False),
        (lambda model, batch: model, True),
        (functools.partial(lambda scale, model, batch: model, 2.0), True),
        (Objective(), True),
        (Objective().of_model, True),
        (ObjectiveModule(), True),
    ],
)
def test_the_first_parameters_name_tells_the_two_forms_apart(loss: object, expected: bool) -> None:
    assert takes_model(loss) is expected


def test_a_loss_that_cannot_be_called_is_refused() -> None:
    message = (
        "loss: expected a function of (model(input), target), or one whose first parameter is named model"
    )
    with pytest.raises(TypeError, match=re.escape(message) + ".* got a str"):
        sp.prune(Mixed(), batches(1), loss="cross_entropy")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"input_ids": torch.zeros(2, 3), "labels": torch.zeros(2)},
            "got a dict of (input_ids, labels); for other batches give a loss that takes the model: "
            "loss=lambda model, batch: model(**batch).loss",
        ),
        (
            (torch.zeros(2), torch.zeros(2), torch.zeros(2)),
            "got a tuple of (Tensor, Tensor, Tensor); for other batches give a loss that takes the model: "
            "loss=lambda model, batch: F.cross_entropy(model(batch[0], batch[1]), batch[-1])",
        ),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_other_batches_with_the_default_loss_say_what_to_type(method, batch: object, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        method(Mixed(), [batch])


def test_what_the_error_says_works() -> None:
    model = nn.ModuleDict(
        {"first": nn.Linear(3, 4), "second": nn.Linear(4, 4), "head": nn.Linear(4, CLASSES)}
    )
    model.forward = lambda a, b: model["head"](torch.tanh(model["first"](a)) + torch.tanh(model["second"](b)))
    batch = (torch.randn(5, 3), torch.randn(5, 4), torch.arange(5) % CLASSES)
    with pytest.raises(TypeError) as error:
        scores.snip(model, [batch])
    loss = eval(str(error.value).rpartition("loss=")[2], {"F": F})
    assert all(score.any() for score in scores.snip(model, [batch], loss).values())


def test_an_output_that_is_no_tensor_says_what_to_type() -> None:
    with pytest.raises(
        TypeError, match="to be a tensor of logits, got a dict of \\(logits\\); give a loss that"
    ):
        scores.snip(Mixed(), batches(1))
    with pytest.raises(TypeError, match="to be a tensor of logits, got a dict of"):
        scores.grasp(Mixed(), batches(1))
    with pytest.raises(TypeError, match="expected model\\(input\\) to be a tensor, got a dict of"):
        scores.synflow(Mixed(), batches(1))


@pytest.mark.parametrize("method", ["synflow", "ntk_sap"])
def test_methods_of_one_input_tensor_refuse_dicts(method: str) -> None:
    with pytest.raises(
        TypeError, match=f'^{method}: .* got a dict of \\(x, y\\); .*use another method.*"snip"'
    ):
        sp.prune(Mixed(), [{"x": torch.zeros(2, 3), "y": torch.zeros(2)}], method=method, loss=of_dict)


def test_ntk_sap_refuses_tokens() -> None:
    tokens = [(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2))]
    with pytest.raises(
        ValueError, match="ntk_sap: expected inputs of floating point, got int64: noise is no"
    ):
        scores.ntk_sap(network("perceptron"), tokens)


def test_options_of_the_output_are_refused_beside_a_loss_of_the_model() -> None:
    loss = Objective()
    with pytest.raises(ValueError, match="grasp: expected no temperature beside a loss that takes the model"):
        scores.grasp(Mixed(), batches(1), loss, temperature=200.0)
    with pytest.raises(ValueError, match='one that takes the model; use preset="paper"'):
        scores.grasp(Mixed(), batches(1), loss, halves=True)
    scores.grasp(Mixed(), batches(1), loss, temperature=1.0)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.zeros(6, 2), "y": torch.zeros(5)}, "got 6, 5 in a dict of (x, y)"),
        ({"x": torch.tensor(1.0)}, "got none in a dict of (x)"),
        ([pack_sequence([torch.zeros(2, 1)])], "got a PackedSequence"),
    ],
)
def test_batches_that_cannot_be_divided(batch: object, message: str) -> None:
    with pytest.raises(
        ValueError, match=r"snip: expected tensors of as many samples each.*" + re.escape(message)
    ):
        scores.snip(Mixed(), [batch], Objective(), micro_batch_size=2)


def test_a_single_dict_is_to_be_wrapped() -> None:
    with pytest.raises(
        TypeError, match=re.escape("got a dict of (x, y); wrap a single batch in a list: [batch]")
    ):
        scores.snip(Mixed(), {"x": torch.zeros(2), "y": torch.zeros(2)}, of_dict)


def test_authors_of_force_take_dicts_in_turn() -> None:
    model, data = Mixed(), [{"x": x, "y": y} for x, y in batches(2)]
    score = scores.scorer("force", preset="authors")
    for number in range(3):
        ours = score(model, iter(data), of_dict)
        exact = scores.force(model, [data[number % 2]], of_dict)
        assert all(torch.equal(ours[name], exact[name]) for name in ours)


# ---- attention ---------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fused = fused
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (2, 2)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q @ k.transpose(2, 3)) / 2**0.5).softmax(-1) @ v
        return self.head(y.transpose(1, 2).flatten(2).mean(1))


@pytest.mark.parametrize("method", [scores.grasp, scores.grasp_abs, scores.prospr])
def test_second_derivatives_of_attention(method) -> None:
    data = [(torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(1)), torch.arange(4) % CLASSES)]
    data = [(x.double(), y) for x, y in data]
    backends = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
    ours, exact = method(Attention(True).double(), data), method(Attention(False).double(), data)
    for name in exact:
        assert_half_the_digits(ours[name], exact[name])
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()) == backends


# ---- nested objects ----------------------------------------------------------------------------------------


def test_moved_objects_are_copies_of_the_same_classes() -> None:
    x, y = torch.ones(2), torch.zeros(2)
    nested = {
        "a": [x, {"b": (y, "text", 3)}],
        "p": Pair(x, None),
        "d": Batch(x, y),
        "u": collections.UserDict(x=x),
    }
    before = copy.deepcopy(nested)
    result = with_each(lambda leaf: leaf + 1, nested)
    assert result["a"][1]["b"][1:] == ("text", 3)
    assert isinstance(result["p"], Pair)
    assert result["p"].y is None
    assert isinstance(result["d"], Batch)
    assert result["d"].names == ("a", "b")
    assert type(result["u"]) is collections.UserDict
    for old, kept, new in zip(tensors_in(before), tensors_in(nested), tensors_in(result), strict=True):
        assert torch.equal(kept, old)
        assert torch.equal(new, old + 1)
    assert all(tensor.device.type == "meta" for tensor in tensors_in(moved(nested, torch.device("meta"))))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1, 2: 3}, "a dict of (a, 2)"),
        ((1, "x"), "a tuple of (int, str)"),
        (collections.OrderedDict(a=1), "an OrderedDict of (a)"),
        (3, "an int"),
        (None, "a NoneType"),
    ],
)
def test_described(value: object, text: str) -> None:
    assert described(value) == text
