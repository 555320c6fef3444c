import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import bounds
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from selecting import select_masks
from torch import Tensor, nn

import sparseprune
from sparseprune.select.blocks import Blocks

FLOATS = (torch.float32, torch.float64)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def topk_masks_reference(scores: list[Tensor], k: int) -> list[Tensor]:
    """Sort by (-score, position) and keep the first k."""
    flat = np.concatenate([score.double().numpy().reshape(-1) for score in scores]) + 0.0
    order = np.lexsort((np.arange(flat.size), -flat))
    mask = np.zeros(flat.size, dtype=bool)
    mask[order[:k]] = True
    parts = torch.from_numpy(mask).split([score.numel() for score in scores])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def check_against_reference(scores: list[Tensor], k: int) -> None:
    before = [score.clone() for score in scores]
    masks = sparseprune.topk_masks(scores, k)
    assert [mask.dtype for mask in masks] == [torch.bool] * len(scores)
    assert [mask.shape for mask in masks] == [score.shape for score in scores]
    assert sum(int(mask.sum()) for mask in masks) == k
    for mask, expected in zip(masks, topk_masks_reference(scores, k), strict=True):
        assert torch.equal(mask, expected)
    assert all(torch.equal(score, old) for score, old in zip(scores, before, strict=True))


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KINDS = {
    "normal": lambda x: x,
    "positive": lambda x: x.abs(),
    "all_zero": lambda x: x * 0,  # half of them -0.0
    "all_equal": lambda x: torch.full_like(x, 0.7),
    "few_values": lambda x: (2 * x).round(),
    "half_zero": lambda x: x.relu(),
    "half_zero_negative": lambda x: -x.relu(),
    "rare_ones": lambda x: (x > 2).to(x.dtype),
    "denormal": lambda x: (x * 1e-40).float().to(x.dtype),
    "huge_and_tiny": lambda x: torch.where(x > 0, x * 1e37, x * 1e-30),
    "ascending": lambda x: x.sort().values,
    "descending": lambda x: x.sort(descending=True).values,
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 101, 1031])
def test_topk_masks_equals_sorting(n: int, kind: str, dtype: torch.dtype) -> None:
    scores = KINDS[kind](noise(n)).to(dtype)
    for k in sorted({0, 1, n // 10, n // 2, n - 1, n}):
        check_against_reference([scores], k)


# More scores than the sample, several chunks and tiles, no multiple of either.
@pytest.mark.parametrize("kind", KINDS)
def test_topk_masks_equals_sorting_at_size(kind: str) -> None:
    n = 200_003
    scores = list(KINDS[kind](noise(n)).float().split([70_001, 1, 130_001]))
    for k in (0, 1, 17, n // 50, n // 10, n // 2, n - 1, n):
        check_against_reference(scores, k)


@pytest.mark.parametrize("kind", ["normal", "few_values", "all_zero", "rare_ones"])
def test_topk_masks_same_at_any_thread_count(kind: str, restored_threads: None) -> None:
    scores = list(KINDS[kind](noise(300_007)).float().split([100_003, 200_004]))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(sparseprune.topk_masks(scores, 30_000))
    for masks in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(masks, results[0], strict=True))


def test_topk_masks_ties_to_earlier_tensor_then_lower_index() -> None:
    scores = [torch.tensor([[1.0, 2.0], [2.0, 0.0]]), torch.tensor([2.0, 3.0, 2.0])]
    masks = sparseprune.topk_masks(scores, 3)
    assert masks[0].tolist() == [[False, True], [True, False]]
    assert masks[1].tolist() == [False, True, False]


def test_topk_masks_zeros_of_both_signs_tie() -> None:
    (mask,) = sparseprune.topk_masks([torch.tensor([-0.0, 0.0, -1.0, 0.0, -0.0])], 2)
    assert mask.tolist() == [True, True, False, False, False]


def test_topk_masks_empty_tensors_among_others() -> None:
    check_against_reference([torch.empty(0), noise(10).float(), torch.empty(3, 0), noise(7, 1).float()], 5)


def test_topk_masks_nothing_to_select_from() -> None:
    assert sparseprune.topk_masks([], 0) == []
    (mask,) = sparseprune.topk_masks([torch.empty(0, 4)], 0)
    assert mask.shape == (0, 4)
    assert mask.dtype == torch.bool


def test_topk_masks_scalar_and_strided_tensors() -> None:
    matrix = noise(35).float().reshape(5, 7)
    check_against_reference([matrix.t(), torch.tensor(0.1), matrix[::2, 1:], matrix[:1].expand(4, 7)], 40)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_topk_masks_half_precision(dtype: torch.dtype) -> None:
    check_against_reference([noise(501).to(dtype)], 100)


def test_topk_masks_mixed_precision_compares_exactly() -> None:
    single = torch.tensor([0.1], dtype=torch.float32)  # 0.100000001490...
    masks = sparseprune.topk_masks([torch.tensor([0.1], dtype=torch.float64), single], 1)
    assert [mask.item() for mask in masks] == [False, True]


def test_topk_masks_of_scores_that_require_grad() -> None:
    (mask,) = sparseprune.topk_masks([torch.tensor([1.0, 3.0, 2.0], requires_grad=True)], 1)
    assert mask.tolist() == [False, True, False]
    assert not mask.requires_grad


def test_topk_masks_sees_denormals_when_arithmetic_flushes_them() -> None:
    scores = torch.tensor([0.0, 1e-40, 3e-40, 2e-40])
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        (mask,) = sparseprune.topk_masks([scores], 2)
    finally:
        torch.set_flush_denormal(False)
    assert mask.tolist() == [False, False, True, True]


# Scores that are unlike the rest exactly at the positions that the C++ code samples (one a stretch of 16,
# shifted by multiples of the golden ratio), so that its bracket is off and it has to look further.
@pytest.mark.parametrize("sampled", [100.0, -100.0])
@pytest.mark.parametrize("kind", ["normal", "few_values"])
def test_topk_masks_survives_a_misleading_sample(kind: str, sampled: float) -> None:
    samples, stretch = 1 << 16, 16
    i = np.arange(samples, dtype=np.uint64)
    shift = ((i * 2654435769 % 2**32) * stretch) >> np.uint64(32)
    scores = KINDS[kind](noise(samples * stretch)).float()
    scores[torch.from_numpy((i * stretch + shift).astype(np.int64))] += sampled
    for k in (50_000, 500_000, 1_000_000):
        check_against_reference([scores], k)


@given(data=st.data())
def test_topk_masks_property(data: st.DataObject) -> None:
    value = st.one_of(
        st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from([0.0, -0.0, 1.0])
    )
    lists = data.draw(st.lists(st.lists(value, max_size=40), min_size=1, max_size=4))
    scores = [torch.tensor(values, dtype=torch.float32) for values in lists]
    k = data.draw(st.integers(0, sum(score.numel() for score in scores)))
    check_against_reference(scores, k)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("position", [0, 69_999])
@pytest.mark.parametrize(
    ("value", "text"), [("nan", "nan"), ("-nan", "nan"), ("inf", "inf"), ("-inf", "inf")]
)
def test_topk_masks_refuses_non_finite(value: str, text: str, position: int, dtype: torch.dtype) -> None:
    bad = noise(70_000).to(dtype)
    bad[position] = float(value)
    scores = [noise(5).to(dtype), torch.empty(0, dtype=dtype), bad, torch.full((3,), torch.nan, dtype=dtype)]
    for k in (0, 10, 70_008):
        message = f"topk_masks: expected finite scores, got {text} in scores[2]"
        with pytest.raises(ValueError, match=re.escape(message) + "$"):
            sparseprune.topk_masks(scores, k)


@pytest.mark.parametrize("k", [-1, 4])
def test_topk_masks_refuses_k_out_of_range(k: int) -> None:
    message = re.escape(f"topk_masks: expected k in 0..3 (number of scores), got {k}")
    with pytest.raises(ValueError, match=message):
        sparseprune.topk_masks([torch.ones(3)], k)
    with pytest.raises(ValueError, match=r"topk_masks: expected k in 0 ?\.\. ?3 "):
        sparseprune.ops.topk_masks([torch.ones(3)], k)


@pytest.mark.parametrize(
    ("scores", "k", "message"),
    [
        (torch.ones(3), 1, "topk_masks: expected a sequence of tensors, got one tensor; wrap it in a list"),
        ([torch.ones(3)], 1.0, "topk_masks: expected k to be an int, got float"),
        ([torch.ones(3)], True, "topk_masks: expected k to be an int, got bool"),
        (
            [torch.ones(3), torch.arange(3)],
            1,
            "expected floating-point tensors, got torch.int64 in scores[1]",
        ),
        ([[1.0, 2.0]], 1, "expected floating-point tensors, got list in scores[0]"),
    ],
)
def test_topk_masks_refuses_wrong_types(scores: object, k: object, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        sparseprune.topk_masks(scores, k)


def test_topk_masks_refuses_several_devices() -> None:
    scores = [torch.ones(3), torch.ones(3, device="meta")]
    with pytest.raises(ValueError, match=r"expected all scores on cpu, got meta in scores\[1\]"):
        sparseprune.topk_masks(scores, 1)


@pytest.mark.parametrize(("n", "sparsity", "k"), [(10, 0.0, 10), (10, 0.9, 1), (8, 0.5, 4), (101, 0.98, 2)])
def test_kept_rounds(n: int, sparsity: float, k: int) -> None:
    assert Blocks.unscored({"a": torch.Size((n,))}, {"a": 1}).kept_at(sparsity) == k


def test_masks_take_numpy_numbers() -> None:
    (mask,) = sparseprune.topk_masks([torch.arange(8.0)], np.int32(2))
    assert int(mask.sum()) == 2
    assert int(select_masks({"a": torch.arange(8.0)}, np.float32(0.5))["a"].sum()) == 4


def test_select_masks_global_ranks_all_layers_together() -> None:
    scores = {"a": torch.tensor([1.0, 5.0, 6.0]), "b": torch.tensor([[2.0, 7.0]])}
    masks = select_masks(scores, 0.4)
    assert list(masks) == ["a", "b"]
    assert masks["a"].tolist() == [False, True, True]
    assert masks["b"].tolist() == [[False, True]]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.77, 0.9])
def test_select_masks_layer_keeps_the_same_share_of_each(sparsity: float) -> None:
    scores = {
        "a": noise(101).float(),
        "b": 100 + noise(53, 1).float(),
        "c": noise(24, 2).float().reshape(4, 6),
    }
    masks = select_masks(scores, sparsity, scope="layer")
    for name, score in scores.items():
        (expected,) = topk_masks_reference([score], round(score.numel() * (1 - sparsity)))
        assert torch.equal(masks[name], expected)


@pytest.mark.parametrize("rows", [2, 4, 8, 16])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_select_masks_blocks_are_the_best_by_sum(scope: str, rows: int) -> None:
    scores = {
        "linear": noise(32 * 7).float().reshape(32, 7),
        "conv": noise(16 * 18, 1).float().reshape(16, 2, 3, 3),
    }
    masks = select_masks(scores, 0.5, scope=scope, block=(rows, 1))
    sums = [score.flatten(1).unflatten(0, (-1, rows)).sum(1) for score in scores.values()]
    if scope == "global":
        expected = topk_masks_reference(sums, round(sum(s.numel() for s in sums) * 0.5))
    else:
        expected = [topk_masks_reference([s], round(s.numel() * 0.5))[0] for s in sums]
    for (name, score), blocks in zip(scores.items(), expected, strict=True):
        assert masks[name].shape == score.shape
        assert torch.equal(masks[name].flatten(1), blocks.repeat_interleave(rows, 0))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.77, 0.9, 0.97])
@pytest.mark.parametrize("rows", [2, 4, 16])
def test_select_masks_ranks_blocks_and_single_weights_together(rows: int, sparsity: float) -> None:
    scores = {
        "single": noise(10 * 32).float().reshape(-1, 32)[: rows + 1],  # rows + 1: never divisible
        "blocked": noise(48 * 7, 1).float().reshape(48, 7),
        "conv": 3 * noise(16 * 18, 2).float().reshape(16, 2, 3, 3),
    }
    masks = select_masks(scores, sparsity, block=(rows, 1), allow_empty=True)
    k = round(sum(score.numel() for score in scores.values()) * (1 - sparsity))

    # The definition, item by item: what is next in rank, until the next one does not fit.
    ranked = []
    for name, score in scores.items():
        size = 1 if name == "single" else rows
        means = score.double().flatten(1).unflatten(0, (-1, size)).mean(1)
        ranked += [(-mean, name, i, size) for i, mean in enumerate(means.flatten().tolist())]
    expected = {name: [] for name in scores}
    missing = k
    left = []
    for _, name, i, size in sorted(ranked):
        if left or size > missing:
            left.append((name, i))
        else:
            expected[name].append(i)
            missing -= size
    expected["single"] += [i for name, i in left if name == "single"][:missing]
    for name, score in scores.items():
        size = 1 if name == "single" else rows
        blocks = torch.zeros(score.numel() // size, dtype=torch.bool)
        blocks[expected[name]] = True
        spread = blocks.reshape(-1, score.flatten(1).shape[1]).repeat_interleave(size, 0)
        assert torch.equal(masks[name].flatten(1), spread)
    total = sum(int(mask.sum()) for mask in masks.values())
    assert total == k or (masks["single"].all() and k - rows < total < k)


def test_select_masks_floors_of_blocks_and_single_weights() -> None:
    scores = {
        "single": noise(5 * 9).float().reshape(5, 9) - 9,
        "blocked": noise(16 * 9, 1).float().reshape(16, 9),
    }
    masks = select_masks(scores, 0.8, block=(4, 1), min_per_layer=7)
    assert [int(mask.sum()) for mask in masks.values()] == [10, 28]  # 38: 7 weights, 7 blocks, 3 weights


def test_select_masks_names_the_parameter_with_nan() -> None:
    scores = {"first.weight": torch.ones(4), "second.weight": torch.tensor([1.0, torch.nan])}
    for scope in ("global", "layer"):
        with pytest.raises(ValueError, match=r"expected finite scores, got nan in 'second\.weight'"):
            select_masks(scores, 0.5, scope=scope)


COLLAPSING = {"a": torch.arange(10.0), "b": torch.arange(10.0) - 100, "c": torch.arange(1.0) - 200}


def test_select_masks_names_layers_left_empty() -> None:
    message = re.escape(
        "masks: expected every layer to keep a weight, got none kept in 'b', 'c'; give each layer a floor "
        "with min_per_layer=1, keep more weights, or accept empty layers with allow_empty=True"
    )
    with pytest.raises(ValueError, match=message):
        select_masks(COLLAPSING, 0.8)
    with pytest.raises(ValueError, match="none kept in 'c'"):
        select_masks(COLLAPSING, 0.6, scope="layer")


def test_select_masks_allow_empty() -> None:
    masks = select_masks(COLLAPSING, 0.8, allow_empty=True)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"a": 4, "b": 0, "c": 0}


def test_select_masks_layer_without_elements_is_not_empty() -> None:
    masks = select_masks({"a": torch.arange(4.0), "none": torch.empty(0, 3)}, 0.5)
    assert int(masks["a"].sum()) == 2


@pytest.mark.parametrize(("floor", "counts"), [(1, [2, 1, 1]), (0, [4, 0, 0])])
def test_select_masks_floor_keeps_the_total(floor: int, counts: list[int]) -> None:
    masks = select_masks(COLLAPSING, 0.8, min_per_layer=floor, allow_empty=floor == 0)
    assert [int(mask.sum()) for mask in masks.values()] == counts
    if floor:
        assert masks["a"].nonzero().flatten().tolist() == [8, 9]
        assert masks["b"].nonzero().flatten().tolist() == [9]


# Equivalent definition: first the best m of every layer, then the best of what is left.
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    floor=st.integers(1, 5),
    sparsity=st.floats(0, 0.95),
)
def test_select_masks_floor_equals_forced_set(
    seed: int, sizes: list[int], floor: int, sparsity: float
) -> None:
    shift = noise(len(sizes), seed + 1)
    scores = {str(i): (noise(n, seed + i) + 2 * shift[i]).float() for i, n in enumerate(sizes)}
    k = round(sum(sizes) * (1 - sparsity))
    if sum(min(floor, n) for n in sizes) > k:
        with pytest.raises(ValueError, match="min_per_layer: expected floors of"):
            select_masks(scores, sparsity, min_per_layer=floor)
        return
    forced = []
    for score in scores.values():
        (top,) = topk_masks_reference([score], min(floor, score.numel()))
        forced.append(torch.where(top, torch.tensor(1e30), score))
    masks = select_masks(scores, sparsity, min_per_layer=floor)
    for mask, expected in zip(masks.values(), topk_masks_reference(forced, k), strict=True):
        assert torch.equal(mask, expected)


def test_select_masks_floor_by_layer_comes_on_top() -> None:
    masks = select_masks(
        {"a": torch.arange(100.0), "b": torch.arange(4.0)}, 0.9, scope="layer", min_per_layer=3
    )
    assert [int(mask.sum()) for mask in masks.values()] == [10, 3]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsity": 1.0}, ValueError, "sparsity: expected the fraction removed, in [0, 1), got 1.0"),
        ({"sparsity": -0.1}, ValueError, "sparsity: expected the fraction removed, in [0, 1), got -0.1"),
        (
            {"sparsity": float("nan")},
            ValueError,
            "sparsity: expected the fraction removed, in [0, 1), got nan",
        ),
        ({"sparsity": "0.9"}, TypeError, "sparsity: expected a number in [0, 1), got str"),
        (
            {"scope": "network"},
            ValueError,
            'scope: expected "global", "layer", "erk", "balanced", "smart_ratio" or {layer: density}, got',
        ),
        (
            {"block": (3, 1)},
            ValueError,
            "expected block == (V, 1), rows x columns, with V in 1, 2, 4, 8, 16, got (3, 1)",
        ),
        ({"block": (4, 2)}, ValueError, "got (4, 2)"),
        ({"block": 4}, ValueError, "got 4"),
        (
            {"block": (16, 1)},
            ValueError,
            "expected a layer whose rows are divisible by 16 (rows of a block), got 'a' of 8, 'b' of 6",
        ),
        (
            {"min_per_layer": -1},
            ValueError,
            "min_per_layer: expected a whole number of weights, 0 or more, got -1",
        ),
        ({"min_per_layer": 1.5}, ValueError, "got 1.5"),
        (
            {"min_per_layer": 9},
            ValueError,
            "floors of 16 weights in total at most (kept at sparsity 0.5), got 17;",
        ),
        ({"allow_empty": "yes"}, TypeError, "allow_empty: expected True or False, got str"),
    ],
)
def test_select_masks_refuses(options: dict, error: type[Exception], message: str) -> None:
    scores = {"a": torch.ones(8), "b": torch.ones(6, 4)}
    with pytest.raises(error, match=re.escape(message)):
        select_masks(scores, **{"sparsity": 0.5, **options})


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Conv2d(2, 2, 1))


def test_apply_masks_zeroes_in_place() -> None:
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pointer = model[0].weight.data_ptr()
    mask = torch.tensor([[True, False, True]] * 4)
    assert sparseprune.apply_masks(model, {"0.weight": mask}) is None
    assert model[0].weight.data_ptr() == pointer
    assert torch.equal(model[0].weight, before["0.weight"] * mask)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before if name != "0.weight")


def test_apply_masks_removes_weights_that_are_not_finite() -> None:
    model = small_model()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[0, 0] = False
    sparseprune.apply_masks(model, {"0.weight": mask})
    assert model[0].weight[0, 0] == 0


@pytest.mark.parametrize(
    ("name", "mask", "error", "message"),
    [
        (
            "9.weight",
            torch.ones(4, 3, dtype=torch.bool),
            ValueError,
            "expected names of the model's parameters, got '9.weight'",
        ),
        (
            "2.weight",
            torch.ones(2, 2, dtype=torch.bool),
            ValueError,
            "'2.weight': expected a mask of shape [2, 2, 1, 1] (the weight's), got [2, 2]",
        ),
        (
            "2.weight",
            torch.full((2, 2, 1, 1), 0.5),
            ValueError,
            "'2.weight': expected a mask of 0 and 1 (1 = keep), got other numbers in torch.float32",
        ),
        ("2.weight", [True], TypeError, "'2.weight': expected the mask to be a tensor or an array, got list"),
    ],
)
@pytest.mark.parametrize("change", [sparseprune.apply_masks, sparseprune.rescale_weights])
def test_masks_of_another_model_are_refused_and_change_nothing(
    change: Callable[..., None], name: str, mask: Tensor, error: type[Exception], message: str
) -> None:
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    half = torch.tensor([[True, False, True]] * 4)
    with pytest.raises(error, match=re.escape(f"{change.__name__}: {message}")):
        change(model, {"0.weight": half, name: mask})
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)


def test_rescaled_weights_that_stay_have_the_norm_of_all() -> None:
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mask = torch.tensor([[True, False, True]] * 4)
    nothing = torch.zeros(2, 2, 1, 1, dtype=torch.bool)
    assert sparseprune.rescale_weights(model, {"0.weight": mask, "2.weight": nothing}) is None
    weight = model[0].weight.detach()
    # Two norms of 12 squares, a quotient, and a product for each weight.
    old, roundings = before["0.weight"].double(), bounds.gamma(2 * (12 + 2) + 2, torch.float32)
    norm = (weight.double() * mask).norm()
    bounds.assert_within(norm, old.norm(), roundings * old.norm())
    ratio = weight.double() / old
    bounds.assert_within(ratio, ratio[0, 0].expand_as(ratio), roundings * ratio)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before if name != "0.weight")


def test_a_deep_masked_network_keeps_its_signal_when_rescaled() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(200, 200, bias=False) for _ in range(10)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    model = nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))
    masks = sparseprune.prune(model, method="random", sparsity=0.9)
    x = torch.randn(64, 200)
    dense = model(x).square().mean()
    masked = copy.deepcopy(model)
    sparseprune.apply_masks(masked, masks)
    assert masked(x).square().mean() < 1e-8 * dense
    sparseprune.rescale_weights(model, masks)
    sparseprune.apply_masks(model, masks)
    assert 0.2 < model(x).square().mean() / dense < 5


@pytest.mark.parametrize("change", [sparseprune.apply_masks, sparseprune.rescale_weights])
def test_masks_of_any_form_change_weights_alike(change: Callable[..., None], tmp_path: Path) -> None:
    masks = sparseprune.prune(small_model(), method="magnitude", sparsity=0.5, min_per_layer=1)
    save_file(masks, tmp_path / "masks.safetensors")
    forms = [
        list(masks.values()),
        {f"_orig_mod.{name}": mask.numpy().astype("uint8") for name, mask in masks.items()},
        tmp_path / "masks.safetensors",
    ]
    expected = small_model()
    change(expected, masks)
    for form in forms:
        model = small_model()
        change(model, form)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
