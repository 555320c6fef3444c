"""What scores are asked of: micro-batches, presets, networks and losses that they refuse."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_half_the_digits
from networks import batches, network, random_masks
from torch import Tensor, nn

from sparseprune import scores
from sparseprune.scores import METHODS, PRESETS, scorer

PER_BATCH = (scores.gradient, scores.snip, scores.iter_snip, scores.force, scores.grasp, scores.grasp_abs)


@pytest.mark.parametrize("size", [1, 4, 5, 6, 100])
@pytest.mark.parametrize("method", PER_BATCH)
def test_micro_batches_give_the_scores_of_whole_batches(method, size: int) -> None:
    model, data = network("batch-norm"), batches(2)
    whole = method(model, data, bn="eval")
    parts = method(model, data, bn="eval", micro_batch_size=size)
    for name in whole:
        assert_half_the_digits(parts[name], whole[name])


def test_micro_batches_are_what_the_model_sees() -> None:
    seen = []
    model = network("perceptron")
    handle = model[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    scores.snip(model, batches(2, 7), micro_batch_size=3)
    handle.remove()
    assert seen == [3, 3, 1, 3, 3, 1]


def test_ntk_sap_in_micro_batches_keeps_masks_and_shapes() -> None:
    model = network("perceptron")
    result = scores.ntk_sap(model, batches(1), micro_batch_size=2, samples=1)
    assert {name: score.shape for name, score in result.items()} == {
        name: weight.shape for name, weight in scores.prunable(model).items()
    }


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_micro_batch_size_is_refused(size: object) -> None:
    with pytest.raises(ValueError, match=r"micro_batch_size: expected a number of samples, 1 or more, got "):
        scores.snip(network("perceptron"), batches(1), micro_batch_size=size)


def test_micro_batches_of_fewer_targets_are_refused() -> None:
    ((x, target),) = batches(1)
    with pytest.raises(ValueError, match=r"snip: expected as many targets as inputs.* got 5 targets and 6"):
        scores.snip(network("perceptron"), [(x, target[:5])], micro_batch_size=4)


# ---- presets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("snip", {"bn": "eval"}),
        ("grasp", {"halves": True}),
        ("grasp_abs", {"halves": True}),
        ("prospr", {"lr": 0.5, "momentum": 0.9, "detach_first": True}),
    ],
)
def test_authors_presets(method: str, options: dict) -> None:
    model, data = network("batch-norm"), batches(4)
    ours = scorer(method, preset="authors")(model, data, F.cross_entropy)
    exact = METHODS[method](model, data, **options)
    other = scorer(method)(model, data, F.cross_entropy)
    assert all(torch.equal(ours[name], exact[name]) for name in ours)
    assert not any(torch.equal(ours[name], other[name]) for name in ours)


def test_an_option_overrides_the_preset() -> None:
    model, data = network("batch-norm"), batches(1)
    ours = scorer("snip", preset="authors", bn="train")(model, data, F.cross_entropy)
    exact = scores.snip(model, data)
    assert all(torch.equal(ours[name], exact[name]) for name in ours)


@pytest.mark.parametrize("method", ["iter_snip", "force"])
def test_authors_of_force_take_another_batch_in_every_round(method: str) -> None:
    model, data = network("perceptron"), batches(2)
    score = scorer(method, preset="authors")
    masks = random_masks(scores.prunable(model))
    for number in range(3):
        ours = score(model, iter(data), F.cross_entropy, masks)
        exact = METHODS[method](model, [data[number % 2]], masks=masks)
        assert all(torch.equal(ours[name], exact[name]) for name in ours)


def test_synflow_of_the_authors_overflows_where_the_papers_does_not() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(30)))
    for layer in wide:
        nn.init.kaiming_normal_(layer.weight)
    result = scorer("synflow", input_size=(512,))(wide, None, F.cross_entropy)
    assert all(score.isfinite().all() and score.max() > 1e30 for score in result.values())
    message = (
        "synflow: expected a finite flow, got inf in float32; the network is too deep or too wide for it: use"
    )
    with pytest.raises(ValueError, match=message):
        scorer("synflow", preset="authors", input_size=(512,))(wide, None, F.cross_entropy)


@pytest.mark.parametrize("method", METHODS)
def test_unknown_preset_lists_the_known(method: str) -> None:
    known = " or ".join(map(repr, PRESETS[method]))
    with pytest.raises(
        ValueError, match=re.escape(f"preset: expected {known} for method {method!r}, got 'x'")
    ):
        scorer(method, preset="x")


def test_methods_that_have_no_other_code_have_one_preset() -> None:
    with pytest.raises(ValueError, match=re.escape("expected 'paper' for method 'magnitude', got 'authors'")):
        scorer("magnitude", preset="authors")


# ---- what is refused ---------------------------------------------------------------------------------------


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = nn.Linear(32, 3), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1))


@pytest.mark.parametrize("method", [*PER_BATCH, scores.prospr])
def test_a_weight_that_the_loss_does_not_depend_on_is_named(method) -> None:
    model = Unused().double()
    before = copy.deepcopy(model.state_dict())
    message = (
        "loss: expected a loss that depends on every weight, but it does not depend on 'spare.weight'; leave "
        "them dense (exclude=['spare.weight'])"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        method(model, batches(2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    method(model, batches(2), exclude=["spare.weight"])


class Sometimes(Unused):
    def forward(self, x: Tensor) -> Tensor:
        return (self.body if len(x) > 5 else self.spare)(x.flatten(1))


def test_a_weight_that_some_batches_use_is_scored() -> None:
    model = Sometimes().double()
    result = scores.gradient(model, [*batches(1, 6), *batches(1, 3)])
    assert all(score.sum() > 0 for score in result.values())


@pytest.mark.parametrize("method", [*PER_BATCH, scores.prospr, scores.ntk_sap])
def test_float16_is_refused(method) -> None:
    message = "expected weights in float32, float64 or bfloat16, got float16 in '1.weight', whose range is"
    with pytest.raises(TypeError, match=re.escape(message)):
        method(network("perceptron").half(), [(x.half(), y) for x, y in batches(1)])


def test_complex_weights_are_refused_and_can_be_excluded() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(
        TypeError, match=re.escape("expected real weights, got complex64 in '1.weight'; exclude")
    ):
        scores.magnitude(model)
    assert list(scores.magnitude(model, exclude=["1"])) == ["0.weight"]


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_refused_and_can_be_excluded() -> None:
    quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)), {nn.Linear})
    model = nn.Sequential(nn.Linear(3, 3), quantised)
    message = (
        "expected floating-point layers, got quantised '1.0' (Linear); prune and train first and quantise"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        scores.magnitude(model)
    assert list(scores.magnitude(model, exclude=["1"])) == ["0.weight"]


@pytest.mark.parametrize("method", [scores.synflow, scores.ntk_sap])
def test_methods_without_labels_leave_the_model_bit_identical(method) -> None:
    model = network("batch-norm").train()
    model[3].eval()

    def state() -> list:
        tensors = [(id(t), t.clone()) for t in (*model.parameters(), *model.buffers())]
        modes = [(m.training, getattr(m, "momentum", None)) for m in model.modules()]
        return [tensors, modes, torch.get_rng_state(), [p.grad for p in model.parameters()]]

    before = state()
    method(model, batches(1))
    with pytest.raises((RuntimeError, ValueError)):
        method(model, [(torch.zeros(2, 7, dtype=torch.float64), torch.zeros(2))])
    after = state()
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(before[0], after[0], strict=True))
    assert before[1] == after[1]
    assert torch.equal(before[2], after[2])
    assert after[3] == [None] * len(after[3])


def test_synflow_needs_a_shape_and_numbers() -> None:
    model = network("perceptron")
    with pytest.raises(
        ValueError, match="synflow: expected input_size=, the shape of one sample, or batches"
    ):
        scores.synflow(model)
    tokens = [(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2))]
    with pytest.raises(
        ValueError, match="synflow: expected inputs of floating point, got int64: an input of"
    ):
        scores.synflow(model, tokens)


@pytest.mark.parametrize("steps", [0, 1.5, True])
def test_prospr_refuses_steps(steps: object) -> None:
    with pytest.raises(ValueError, match="prospr: expected steps to be a whole number, 1 or more, got"):
        scores.prospr(network("perceptron"), batches(1), steps=steps)


@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"samples": 0}, {"samples": True}])
def test_ntk_sap_refuses_options(options: dict) -> None:
    with pytest.raises(ValueError, match="ntk_sap: expected epsilon > 0 and samples >= 1, got"):
        scores.ntk_sap(network("perceptron"), batches(1), **options)


def test_grasp_of_halves_refuses_targets_that_are_no_classes() -> None:
    ((x, _),) = batches(1)
    with pytest.raises(ValueError, match=r"classes, integers of shape \(batch,\), 2 or more, got f"):
        scores.grasp(network("perceptron"), [(x, torch.rand(6))], F.mse_loss, halves=True)
