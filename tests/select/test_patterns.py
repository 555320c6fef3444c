"""Where weights lie within a layer: N of every M inputs, or equally many in all rows."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparseprune as sp
from sparseprune.select import quotas
from sparseprune.select.blocks import Blocks, rows_of_blocks
from sparseprune.select.patterns import NofM, fan_in, n_of_m, parse_pattern


def blocks(scores: dict[str, torch.Tensor], block_rows: int = 1, floor: int = 0) -> Blocks:
    return Blocks.of(scores, rows_of_blocks({n: s.shape for n, s in scores.items()}, block_rows), floor)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=2), nn.Flatten(), nn.Linear(48, 10))


# ---- N:M ---------------------------------------------------------------------------------------------------


def test_n_of_m_are_the_best_of_each_group() -> None:
    score = torch.tensor(
        [[1.0, 4.0, 2.0, 3.0, 9.0, 9.0, 9.0, 9.0], [0.0, -1.0, -2.0, 0.0, -0.0, 0.0, 1.0, 0.0]]
    )
    (mask,) = n_of_m(blocks({"a": score}), NofM(2, 4)).values()
    # Ties go to the earlier input; zeros of both signs tie.
    assert mask.int().tolist() == [[0, 1, 0, 1, 1, 1, 0, 0], [1, 0, 0, 1, 1, 0, 1, 0]]


def test_n_of_m_of_a_convolution_is_along_its_input_channels() -> None:
    score = torch.tensor([[[1.0, 6.0]], [[2.0, 5.0]], [[3.0, 4.0]], [[9.0, 0.0]]]).reshape(1, 4, 1, 2)
    (mask,) = n_of_m(blocks({"a": score}), NofM(1, 2)).values()
    assert mask.shape == score.shape
    assert mask[0, :, 0, 0].tolist() == [False, True, False, True]
    assert mask[0, :, 0, 1].tolist() == [True, False, True, False]


def test_n_of_m_of_blocks_is_about_their_rows() -> None:
    score = torch.tensor([[9.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 0.0]])
    (mask,) = n_of_m(blocks({"a": score}, 2), NofM(1, 2)).values()
    assert mask.int().tolist() == [[1, 0], [1, 0], [1, 0], [1, 0]]


def test_layers_that_the_group_does_not_divide_or_are_kept_stay_whole() -> None:
    scores = {"a": torch.rand(2, 6), "b": torch.rand(2, 8), "c": torch.rand(2, 8)}
    masks = n_of_m(blocks(scores), NofM(1, 4), ["c"])
    assert [int(mask.sum()) for mask in masks.values()] == [12, 4, 16]


@given(
    rows=st.integers(1, 6),
    groups=st.integers(1, 4),
    n_and_m=st.tuples(st.integers(1, 7), st.integers(2, 8)).filter(lambda of: of[0] < of[1]),
    kernel=st.sampled_from([(), (1,), (2, 3)]),
    block_rows=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_every_group_has_exactly_n(
    rows: int, groups: int, n_and_m: tuple[int, int], kernel: tuple[int, ...], block_rows: int, seed: int
) -> None:
    n, m = n_and_m
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(rows * block_rows, groups * m, *kernel, generator=generator).round(decimals=0)
    (mask,) = n_of_m(blocks({"a": score}, block_rows), NofM(n, m)).values()
    assert mask.shape == score.shape
    by_group = mask.flatten(2) if kernel else mask[..., None]
    assert (by_group.unflatten(1, (groups, m)).sum(2) == n).all()
    in_blocks = mask.unflatten(0, (rows, block_rows))
    assert torch.equal(in_blocks.all(1), in_blocks.any(1))


@pytest.mark.parametrize("n_and_m", [(2, 4), (1, 3), (1, 2), (3, 8), (6, 7)])
def test_a_pattern_narrows_from_all_to_n(n_and_m: tuple[int, int]) -> None:
    pattern = NofM(*n_and_m)
    assert pattern.after(0.0).n == pattern.m
    assert pattern.after(1.0) == pattern
    numbers = [pattern.after(r / 10).n for r in range(11)]
    assert numbers == sorted(numbers, reverse=True)
    # ceil(m (n / m)^(1/2)), in whole numbers: the least c for which c^2 >= n m.
    assert pattern.after(0.5).n == next(c for c in range(9) if Fraction(c) ** 2 >= pattern.n * pattern.m)


def test_prune_by_n_of_m() -> None:
    for sparsity in (None, 0.5):
        masks = sp.prune(network(), method="magnitude", pattern="2:4", sparsity=sparsity)
        # 3 inputs are not divisible by 4; the second convolution has 4 for each of its groups.
        assert [int(mask.sum()) for mask in masks.values()] == [216, 216, 240]
        assert (masks["1.weight"].sum(1) == 2).all()
    kept = sp.prune(network(), method="magnitude", pattern="2:4", keep="last", block=(2, 1))
    assert [int(mask.sum()) for mask in kept.values()] == [216, 216, 480]


# ---- constant fan-in ---------------------------------------------------------------------------------------


def test_fan_in_is_the_same_in_all_rows() -> None:
    score = torch.tensor([[9.0, 8.0, 7.0], [1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    masks = [fan_in(blocks({"a": score}), {"a": count})["a"].int() for count in (1, 4, 5, 9)]
    assert masks[0].tolist() == masks[1].tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert masks[2].tolist() == [[1, 1, 0], [0, 1, 1], [1, 1, 0]]
    assert masks[3].all()


def test_fan_in_of_blocks_is_that_of_their_rows() -> None:
    score = torch.tensor([[5.0, 0.0], [0.0, 4.0], [0.0, 1.0], [0.0, 1.0]])
    (mask,) = fan_in(blocks({"a": score}, 2), {"a": 2}).values()
    assert mask.int().tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=4),
    block_rows=st.sampled_from([1, 2]),
    floor=st.integers(0, 9),
    sparsity=st.floats(0, 0.99),
    scope=st.sampled_from(list(quotas.SCOPES)),
)
def test_fan_in_is_constant_and_respects_floors(
    shapes: list[tuple[int, int]], block_rows: int, floor: int, sparsity: float, scope: str
) -> None:
    scores = {str(i): torch.rand(2 * rows, inputs, 2) for i, (rows, inputs) in enumerate(shapes)}
    of = blocks(scores, block_rows, floor)
    if scope != "layer" and of.kept_at(sparsity) < of.weights_of(of.floors):
        return
    counts = quotas.of_scope(of, sparsity, scope)
    masks = fan_in(of, counts, allow_empty=True)
    for name, mask in masks.items():
        of_row = mask.flatten(1).sum(1)
        assert (of_row == of_row[0]).all()
        assert int(mask.sum()) >= min(floor, mask.numel())
        assert bool(mask.any()) == (counts[name] > 0)
        # Within half a weight in each row, but where one in each was the least.
        wanted = counts[name] * block_rows / len(of_row)
        least = max(1, -(-of.floors[name] * block_rows // len(of_row)))
        assert abs(int(of_row[0]) - wanted) <= 0.5 or int(of_row[0]) == least or counts[name] == 0


def test_prune_by_fan_in() -> None:
    masks = sp.prune(
        network(), method="magnitude", pattern="fan_in", sparsity=0.5, scope="layer", keep="first"
    )
    assert [mask.flatten(1).sum(1).unique().tolist() for mask in masks.values()] == [[27], [18], [24]]
    scores = {"a": torch.rand(4, 4) + 1, "b": torch.rand(4, 4)}
    with pytest.raises(
        ValueError, match="got none kept in 'b'; give each layer a floor with min_per_layer=1,"
    ):
        fan_in(blocks(scores), {"a": 3, "b": 0})


# ---- refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["2:2", "0:4", "4:2", "2", "2:4:8", "-1:4", "fan-in", "", "2:4 "])
def test_unknown_patterns_list_the_known_ones(pattern: str) -> None:
    message = (
        'pattern: expected "N:M" with 1 <= N < M, such as "2:4" (N of every M consecutive inputs stay), or '
        f'"fan_in" (all rows of a layer keep equally many), got {pattern!r}'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_pattern(pattern)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pattern": (2, 4)}, TypeError, 'pattern: expected "N:M" or "fan_in", got tuple'),
        ({"sparsity": 0.6}, ValueError, 'sparsity: expected None or 0.5 beside pattern="2:4", got 0.6'),
        ({"sparsity": "0.5"}, ValueError, "sparsity: expected None or 0.5"),
        (
            {"scope": "erk"},
            ValueError,
            'scope: expected "global" beside pattern="2:4" (layers have one sparsity), got \'erk\'',
        ),
        (
            {"pattern": "fan_in", "flops": 0.5},
            ValueError,
            'pattern: expected sparsity as the target beside "fan_in", got flops',
        ),
        ({"speedup": 2.0}, ValueError, 'pattern: expected sparsity as the target beside "2:4", got speedup'),
        (
            {"block": "channel"},
            ValueError,
            'pattern: expected block=(V, 1) beside "2:4", got block="channel"',
        ),
        ({"block": "auto", "speedup": 2.0}, ValueError, 'got block="auto"'),
        (
            {"pattern": "3:7"},
            ValueError,
            'pattern: expected a layer whose inputs (dim 1 of its weight) 7 divides, for "3:7", got '
            "'0.weight' of 3, '1.weight' of 4, '3.weight' of 48",
        ),
        ({"pattern": "1:8", "keep": "last"}, ValueError, "'3.weight' of 48; '3.weight' kept whole"),
        (
            {"min_per_layer": 217},
            ValueError,
            "min_per_layer: expected floors that \"2:4\" leaves room for, got more than that in '1.weight'; "
            "lower min_per_layer",
        ),
    ],
)
def test_patterns_that_cannot_be(options: dict, error: type[Exception], message: str) -> None:
    def never():
        raise AssertionError("the data was read")
        yield

    with pytest.raises(error, match=re.escape(message)):
        sp.prune(network(), never(), **{"pattern": "2:4", **options})


@pytest.mark.parametrize("pattern", ["2:4", "fan_in"])
def test_scores_that_are_not_finite_are_named(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"masks: expected finite scores, got nan in '0\.weight'"):
        sp.prune(
            network(),
            [(torch.rand(2, 3, 6, 6), torch.tensor([0, 1]))],
            pattern=pattern,
            loss=lambda output, target: output.sum() * torch.nan,
        )
