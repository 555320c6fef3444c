"""What a model is called with: the shape of a sample, or example inputs."""

import re

import pytest
import torch
from torch import nn

from sparseprune import scores
from sparseprune.scores.paths import NoPathsError, live
from sparseprune.scores.samples import Examples, batch_of, sample_given, sample_in, shape_of

IDS = torch.arange(6).reshape(2, 3)
MASK = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        (IDS, (IDS,), {}),
        ((IDS,), (IDS,), {}),
        ((IDS, MASK), (IDS, MASK), {}),
        ({"ids": IDS, "mask": MASK}, (), {"ids": IDS, "mask": MASK}),
        (((IDS,), {"mask": MASK}), (IDS,), {"mask": MASK}),
        (([IDS], {}), (IDS,), {}),
        (((), {"ids": IDS}), (), {"ids": IDS}),
        ((IDS, {"layers": 2}), (IDS, {"layers": 2}), {}),
    ],
)
def test_example_inputs_are_arguments_by_position_and_by_name(
    given: object, args: tuple, kwargs: dict
) -> None:
    examples = sample_given("op", None, given)
    assert isinstance(examples, Examples)
    assert len(examples.args) == len(args)
    assert all(a is b or a == b for a, b in zip(examples.args, args, strict=True))
    assert examples.kwargs.keys() == kwargs.keys()
    assert all(examples.kwargs[name] is kwarg for name, kwarg in kwargs.items())
    assert examples.samples == 2
    assert sample_given("op", None, examples) is examples


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("text", TypeError, "pair of both, (args, kwargs), got a str"),
        ([IDS], TypeError, "pair of both, (args, kwargs), got a list of (Tensor)"),
        ((), ValueError, "example_inputs with a tensor of 1 or more samples (dim 0), got ()"),
        ({"ids": IDS[:0]}, ValueError, "1 or more samples (dim 0), got (ids=int64 [0, 3])"),
        ((torch.tensor(1), 5), ValueError, "1 or more samples (dim 0), got (int64 [], 5)"),
    ],
)
def test_example_inputs_that_are_none(given: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=r"^op: expected .*" + re.escape(message)):
        sample_given("op", None, given)


def test_one_of_input_size_and_example_inputs() -> None:
    assert sample_given("op", None, None) is None
    assert sample_given("op", (3, 4), None) == (3, 4)
    with pytest.raises(ValueError, match=r"^op: expected one of input_size and example_inputs, got both"):
        sample_given("op", (3,), IDS)
    with pytest.raises(
        ValueError, match=r"^op: expected input_size to be the shape of one sample.* got \(3, 0\)"
    ):
        sample_given("op", (3, 0), None)


def test_examples_are_repeated_to_any_number_of_samples() -> None:
    position = torch.arange(3)
    examples = Examples((IDS, torch.tensor(2.0)), {"position": position, "more": [MASK], "flag": True})
    for samples in (1, 2, 5):
        repeated = examples.repeated(samples)
        rows = [i % 2 for i in range(samples)]
        assert torch.equal(repeated.args[0], IDS[rows])
        assert torch.equal(repeated.kwargs["more"][0], MASK[rows])
        # Neither has samples.
        assert repeated.kwargs["position"] is position
        assert repeated.args[1].dim() == 0
        assert repeated.kwargs["flag"] is True


def test_batches_of_a_shape_have_the_models_dtype() -> None:
    like = torch.zeros((), dtype=torch.bfloat16)
    ((zeros,), (ramp,)) = batch_of((2, 3), 4, like).args, batch_of((2, 3), 4, like, "ramp").args
    assert zeros.shape == ramp.shape == (4, 2, 3)
    assert zeros.dtype == ramp.dtype == torch.bfloat16
    assert not zeros.any()
    assert (ramp[0, 0, 0], ramp[-1, -1, -1]) == (-1, 1)


def test_samples_in_batches() -> None:
    x, y = torch.zeros(2, 5), torch.zeros(2)
    assert sample_in((x, y)) == (5,)
    assert sample_in((IDS, y)).args == (IDS,)
    assert sample_in({"x": x, "y": y}).kwargs == {"x": x, "y": y}
    assert sample_in((x, y, y)) is None
    assert sample_in("text") is None


def test_shapes_of_one_floating_point_tensor() -> None:
    assert shape_of((3, 4), "op") == (3, 4)
    assert shape_of(Examples((torch.zeros(2, 5, 6),)), "op") == (5, 6)
    for other in (Examples((IDS,)), Examples((MASK, MASK)), Examples((MASK,), {"mask": MASK})):
        with pytest.raises(ValueError, match=r"^op: expected one input tensor of floating point, got"):
            shape_of(other, "op")


def test_paths_from_example_inputs() -> None:
    model = nn.Linear(3, 2)
    masks = {"weight": torch.eye(2, 3).bool()}
    alive = live(model, masks, Examples((torch.zeros(7, 3),)))
    assert torch.equal(alive["weight"], masks["weight"])
    with pytest.raises(
        NoPathsError, match=r"live: expected one input tensor of floating point, got .*; paths begin"
    ):
        live(model, masks, Examples((IDS,)))


def test_synflow_from_example_inputs() -> None:
    model = nn.Linear(3, 2)
    expected = scores.synflow(model, input_size=(3,))
    ours = scores.synflow(model, input_size=Examples((MASK,)))
    assert torch.equal(ours["weight"], expected["weight"])
    with pytest.raises(ValueError, match="synflow: expected one input tensor of floating point, got"):
        scores.synflow(model, input_size=Examples((IDS,)))
