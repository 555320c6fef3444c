import copy
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_half_the_digits
from torch import Tensor, nn

import sparseprune
from sparseprune import scores
from sparseprune.scores import METHODS

SHAPES = {"0.weight": (8, 2, 3, 3), "4.weight": (16, 72), "6.weight": (3, 16)}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 16),
        nn.Dropout(),
        nn.Linear(16, 3),
    )


def data(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(9, 2, 5, 5, generator=generator), torch.arange(9) % 3) for _ in range(count)]


# Tiny networks have ties.
@pytest.mark.filterwarnings("ignore:prune. expected scores that tell weights apart")
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.837, 0.9])
@pytest.mark.parametrize("method", METHODS)
def test_prune_keeps_exactly_k(method: str, sparsity: float) -> None:
    masks = sparseprune.prune(network(), data(), method=method, sparsity=sparsity)
    n = sum(mask.numel() for mask in masks.values())
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == SHAPES
    assert list(masks) == list(SHAPES)
    assert all(mask.dtype == torch.bool for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(n * (1 - sparsity))


@pytest.mark.parametrize("method", METHODS)
def test_prune_keeps_the_highest_scores(method: str) -> None:
    model, batches = network(), data()
    masks = sparseprune.prune(model, batches, method=method, sparsity=0.8, rounds=1)
    scored = METHODS[method](model, batches)
    kept = torch.cat([scored[name][mask] for name, mask in masks.items()])
    removed = torch.cat([scored[name][~mask] for name, mask in masks.items()])
    assert kept.min() >= removed.max()


def test_prune_defaults_are_snip_global_at_ninety_percent() -> None:
    model, batches = network(), data()
    masks = sparseprune.prune(model, batches)
    explicit = sparseprune.prune(
        model, batches, method="snip", sparsity=0.9, scope="global", bn="train", seed=5
    )
    assert all(torch.equal(masks[name], explicit[name]) for name in masks)


# Tiny networks have ties.
@pytest.mark.filterwarnings("ignore:prune. expected scores that tell weights apart")
@pytest.mark.parametrize("method", METHODS)
def test_prune_by_layer(method: str) -> None:
    masks = sparseprune.prune(network(), data(), method=method, sparsity=0.75, scope="layer")
    for mask in masks.values():
        assert int(mask.sum()) == round(mask.numel() * 0.25)


def test_prune_blocks_are_whole() -> None:
    masks = sparseprune.prune(network(), data(), sparsity=0.5, block=(8, 1), exclude=["6"])
    assert list(masks) == ["0.weight", "4.weight"]
    blocks = [mask.flatten(1).unflatten(0, (-1, 8)) for mask in masks.values()]
    assert all(torch.equal(block.any(1), block.all(1)) for block in blocks)
    assert sum(int(block.any(1).sum()) for block in blocks) == round((18 + 144) * 0.5)


def test_prune_blocks_where_rows_allow_and_weights_elsewhere() -> None:
    model, batches = network(), data()
    masks = sparseprune.prune(model, batches, sparsity=0.6, block=(8, 1))
    n = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(n * 0.4)
    blocks = [masks[name].flatten(1).unflatten(0, (-1, 8)) for name in ("0.weight", "4.weight")]
    assert all(torch.equal(block.any(1), block.all(1)) for block in blocks)
    # One ranking: no block or weight that was removed has a better mean score than one that was kept, but
    # for the last few weights, which make up for a block that does not fit.
    scored = scores.snip(model, batches)
    means = [scored[name].flatten(1).unflatten(0, (-1, 8)).mean(1) for name in ("0.weight", "4.weight")]
    items = torch.cat([*(m.flatten() for m in means), scored["6.weight"].flatten()])
    taken = torch.cat([*(b.all(1).flatten() for b in blocks), masks["6.weight"].flatten()])
    wrong = taken & (items < items[~taken].max())
    assert int(wrong.sum()) < 8
    assert not wrong[: -scored["6.weight"].numel()].any()

    sparse = sparseprune.sparsify(model, masks, layers="sparse")
    assert sparse[4].block in ((8, 1), (16, 1))
    assert sparse[6].block == (1, 1)
    dense = copy.deepcopy(model)
    sparseprune.apply_masks(dense, masks)
    assert_half_the_digits(sparse.eval()(batches[0][0]), dense.eval()(batches[0][0]))


def test_prune_random_follows_the_seed() -> None:
    first, again, other = (
        sparseprune.prune(network(), method="random", sparsity=0.5, seed=s) for s in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("exclude", ["4", ["4.weight"], iter(["4"])])
def test_prune_excludes_layers(exclude) -> None:
    masks = sparseprune.prune(network(), data(), exclude=exclude, sparsity=0.5)
    assert list(masks) == ["0.weight", "6.weight"]
    assert sum(int(mask.sum()) for mask in masks.values()) == (144 + 48) // 2


def test_prune_passes_loss_and_options_to_the_method() -> None:
    model, batches = network(), data(1)
    loss, options = partial(F.cross_entropy, label_smoothing=0.3), {"temperature": 1.0, "bn": "eval"}
    masks = sparseprune.prune(model, batches, method="grasp", loss=loss, sparsity=0.5, **options)
    scored = scores.grasp(model, batches, loss, **options)
    expected = sparseprune.topk_masks(
        list(scored.values()), round(0.5 * sum(s.numel() for s in scored.values()))
    )
    assert all(torch.equal(mask, other) for mask, other in zip(masks.values(), expected, strict=True))


def test_prune_floor_and_empty_layers() -> None:
    model = network()
    with torch.no_grad():
        model[6].weight.mul_(1e-6)
    with pytest.raises(
        ValueError, match=r"none kept in '6\.weight'; .*min_per_layer=1, .* or .*allow_empty=True"
    ):
        sparseprune.prune(model, method="magnitude", scope="global")
    masks = sparseprune.prune(model, method="magnitude", allow_empty=True)
    assert not masks["6.weight"].any()
    masks = sparseprune.prune(model, method="magnitude", min_per_layer=5)
    assert int(masks["6.weight"].sum()) == 5
    assert sum(int(mask.sum()) for mask in masks.values()) == round(1344 * 0.1)


def state(model: nn.Module) -> list[Tensor]:
    return [*(value.clone() for value in model.state_dict().values()), torch.get_rng_state()]


@pytest.mark.parametrize("method", METHODS)
def test_prune_leaves_the_model_untouched(method: str) -> None:
    model = network()
    before, modes = state(model), [module.training for module in model.modules()]
    sparseprune.prune(model, data(), method=method, sparsity=0.5)
    assert all(torch.equal(a, b) for a, b in zip(state(model), before, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"method": "snipe"},
            ValueError,
            "prune: expected method to be one of random, magnitude, gradient, snip, iter_snip, force, grasp, "
            "grasp_abs, synflow, prospr, ntk_sap, got 'snipe'",
        ),
        ({"sparsity": 1}, ValueError, "sparsity: expected the fraction removed, in [0, 1), got 1"),
        ({"sparsity": -0.5}, ValueError, "sparsity: expected the fraction removed, in [0, 1), got -0.5"),
        ({"sparsity": "0.9"}, TypeError, "sparsity: expected a number in [0, 1), got str"),
        (
            {"scope": "local"},
            ValueError,
            'scope: expected "global", "layer", "erk", "balanced", "smart_ratio" or {layer: density}, got',
        ),
        (
            {"block": (5, 1)},
            ValueError,
            "prune: expected block == (V, 1), rows x columns, with V in 1, 2, 4, 8, 16, got",
        ),
        (
            {"block": (16, 1), "exclude": ["4"]},
            ValueError,
            "prune: expected a layer whose rows are divisible by 16 (rows of a block), got '0.weight' of 8, "
            "'6.weight' of 3; choose a smaller block",
        ),
        ({"rounds": 0}, ValueError, "rounds: expected a whole number, 1 or more, got 0"),
        ({"rounds": 2.0}, ValueError, "rounds: expected a whole number, 1 or more, got 2.0"),
        ({"rounds": True}, ValueError, "rounds: expected a whole number, 1 or more, got True"),
        (
            {"method": "random", "rounds": 3},
            ValueError,
            "rounds: expected 1 with method 'random', whose scores do not depend on what is removed, got 3",
        ),
        (
            {"method": "synflow", "speedup": 2.0},
            ValueError,
            "speedup: expected a method of one round, got 100 rounds; give rounds=1, or flops= in place of",
        ),
        ({"preset": "x"}, ValueError, "preset: expected 'paper' or 'authors' for method 'snip', got 'x'"),
        (
            {"micro_batch_size": 0},
            ValueError,
            "micro_batch_size: expected a number of samples, 1 or more, got 0",
        ),
        (
            {"exclude": ["head"]},
            ValueError,
            "expected names of parameters or modules of the model, got 'head'",
        ),
        ({"exclude": ["0", "4", "6"]}, ValueError, "found none to prune; exclude leaves nothing"),
        ({"min_per_layer": 99}, ValueError, "min_per_layer: expected floors of 134 weights in total at most"),
        ({"batches": None}, ValueError, "snip: expected batches (an iterable of (input, target)), got None"),
        (
            {"batches": []},
            ValueError,
            "snip: expected at least one batch, got none; if batches is an iterator",
        ),
        (
            {"batches": data(1)[0]},
            TypeError,
            "got a Tensor; wrap a single batch in a list: [(input, target)]",
        ),
        ({"bn": "off"}, ValueError, 'bn: expected "train" or "eval", got \'off\''),
        ({"temperature": 2.0}, TypeError, "options of method 'snip' (bn, micro_batch_size), got temperature"),
        (
            {"method": "random", "bn": "eval"},
            TypeError,
            "prune: expected options of method 'random' (seed), got bn",
        ),
        (
            {"loss": lambda output, target: output.sum() * torch.nan},
            ValueError,
            "masks: expected finite scores, got nan in '0.weight'; look at the loss and the inputs",
        ),
        (
            {"sparsity": 0.9999},
            ValueError,
            "got none kept in '0.weight', '4.weight', '6.weight'; keep more weights",
        ),
    ],
)
def test_prune_refuses_and_leaves_the_model_untouched(
    arguments: dict, error: type[Exception], message: str
) -> None:
    model = network()
    before = state(model)
    batches = arguments.pop("batches") if "batches" in (arguments := dict(arguments)) else data()
    with pytest.raises(error, match=re.escape(message)):
        sparseprune.prune(model, batches, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(state(model), before, strict=True))


def test_prune_refuses_before_it_reads_the_data() -> None:
    def never():
        raise AssertionError("the data was read")
        yield

    for arguments in (
        {"sparsity": 2.0},
        {"scope": "x"},
        {"block": (3, 1)},
        {"min_per_layer": 9999},
        {"rounds": 0},
    ):
        with pytest.raises(ValueError, match="expected"):
            sparseprune.prune(network(), never(), **arguments)


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Sequential(nn.Embedding(3, 3), nn.LayerNorm(3))])
def test_prune_refuses_a_model_without_prunable_layers(model: nn.Module) -> None:
    with pytest.raises(
        ValueError, match=r"expected a model with Linear or Conv1d/2d/3d layers, found none to prune$"
    ):
        sparseprune.prune(model, data())


def test_prune_refuses_what_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"expected model to be a torch\.nn\.Module, got type"):
        sparseprune.prune(nn.Linear, data())


def test_prune_then_apply_masks_and_train() -> None:
    model = network()
    sparse = copy.deepcopy(model)
    masks = sparseprune.prune(model, data(), sparsity=0.5)
    sparseprune.apply_masks(sparse, masks)
    for name, mask in masks.items():
        pruned, weight = sparse.get_parameter(name), model.get_parameter(name)
        assert torch.equal(pruned[mask], weight[mask])
        assert not pruned[~mask].any()
    F.cross_entropy(sparse(data()[0][0]), data()[0][1]).backward()


# ---- a method of one's own ---------------------------------------------------------------------------------


def distance_from_zero(model: nn.Module, batches: object, loss: object) -> dict[str, Tensor]:
    return {name: p.detach().abs() for name, p in model.named_parameters() if p.dim() > 1}


def test_prune_takes_a_function_as_method() -> None:
    model = network()
    masks = sparseprune.prune(model, method=distance_from_zero, sparsity=0.7, exclude=["6"])
    expected = sparseprune.prune(model, method="magnitude", sparsity=0.7, exclude=["6"])
    assert masks.keys() == expected.keys()
    assert all(torch.equal(masks[name], expected[name]) for name in masks)


def test_a_function_is_given_the_batches_and_the_loss() -> None:
    seen: list[object] = []

    def method(model: nn.Module, batches: object, loss: object) -> dict[str, Tensor]:
        seen.extend([batches, loss])
        return distance_from_zero(model, batches, loss)

    given = data()
    sparseprune.prune(network(), given, method=method, loss=F.mse_loss, flops=0.5)
    assert next(iter(seen[0]))[0] is given[0][0]
    assert seen[1] is F.mse_loss


@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        (
            lambda *_: None,
            {},
            TypeError,
            "expected the method to return {parameter name: score}, got NoneType",
        ),
        (
            lambda *_: {},
            {},
            ValueError,
            "score '0.weight' with a floating-point tensor of shape [8, 2, 3, 3]",
        ),
        (
            lambda *_: {"0.weight": torch.ones(3)},
            {},
            ValueError,
            "'0.weight' with a floating-point tensor of shape [8, 2, 3, 3], got torch.float32 [3]",
        ),
        (5, {}, TypeError, "prune: expected method to be a name or a function (model, batches, loss) ->"),
        (
            distance_from_zero,
            {"bn": "eval"},
            TypeError,
            "prune: expected no options of a method of your own, got bn; bind them with functools.partial",
        ),
    ],
)
def test_a_function_that_does_not_score(
    method: object, options: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        sparseprune.prune(network(), method=method, **options)
