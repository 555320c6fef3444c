import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import sparseprune as sp
from sparseprune.cost import choice, speedup, timer
from sparseprune.cost.cache import Choice
from sparseprune.cost.calls import Call
from sparseprune.cost.flops import flops_costs, flops_per_step
from sparseprune.cost.seconds import line_through, measured_costs
from sparseprune.format.bsr import largest_block
from sparseprune.nn.sparse import SparseLayer
from sparseprune.select.budget import LayerCost, total_cost

SAMPLE = (2, 8, 8)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=2),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 9, 20),
        nn.Linear(20, 5),
    )


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(8, *SAMPLE), torch.randint(5, (8,))) for _ in range(2)]


def test_counted_costs_are_those_of_flops_per_step() -> None:
    model = small_net()
    costs = flops_costs(model, SAMPLE)
    assert list(costs) == ["0.weight", "2.weight", "5.weight", "6.weight"]
    assert sum(c.dense for c in costs.values()) == flops_per_step(model, SAMPLE, 1)
    assert costs["0.weight"].per_weight == 2 * 2 * 64  # no input gradient
    assert costs["2.weight"].per_weight == 2 * 3 * 9
    assert list(flops_costs(model, SAMPLE, exclude=["6"])) == ["0.weight", "2.weight", "5.weight"]


class Repeating(nn.Module):
    """Calls one layer three times, twice at one size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.conv(x))
        return self.fc(self.conv(x[..., ::2, ::2]).flatten(1))


def test_all_calls_of_a_layer_count() -> None:
    model = Repeating()
    costs = flops_costs(model, (4, 8, 8))
    assert sum(c.dense for c in costs.values()) == flops_per_step(model, (4, 8, 8), 1)
    assert costs["conv.weight"].per_weight == 2 * (2 * 64 + 3 * 64 + 3 * 16)
    assert not any(module._forward_hooks for module in model.modules())
    masks = sp.prune(model, method="random", flops=0.2, input_size=(4, 8, 8))
    sparse = sp.sparsify(model, masks, layers="sparse")
    assert flops_per_step(sparse, (4, 8, 8), 1) <= 0.2 * flops_per_step(model, (4, 8, 8), 1)


def test_a_layer_costs_at_most_what_it_costs_dense() -> None:
    of = LayerCost(2.0, 3.0, 10.0)
    assert [of.total(k) for k in (0, 1, 3, 4, 100)] == [3, 5, 9, 10, 10]


def test_a_line_through_two_measurements() -> None:
    assert line_through((10, 3.0), (110, 5.0), 9.0) == pytest.approx((0.02, 2.8, 9.0))
    assert line_through((10, 0.1), (110, 5.0), 9.0).fixed == 0
    noisy = line_through((10, 5.0), (100, 4.0), 9.0)  # more weights took less time
    assert noisy.per_weight == pytest.approx(0.05)
    assert noisy.fixed == pytest.approx(4.5)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Layers are measured to take 2 us, and 1 ns for each weight and sample; dense 10 us."""
    seen: list[tuple[str, float]] = []

    def choose(sparse: SparseLayer, make_dense: object, batch_size: int, sizes: object) -> Choice:
        kept = sparse.values.numel()
        seen.append((type(sparse).__name__, kept / sparse.weight.numel()))
        return Choice(2e-6 + 1e-9 * kept * batch_size, 10e-6)

    monkeypatch.setattr("sparseprune.cost.seconds.choose", choose)
    return seen


def test_measured_costs(seconds: list[tuple[str, float]]) -> None:
    model = small_net()
    before = torch.get_rng_state()
    costs = measured_costs(model, SAMPLE, 16)
    assert torch.equal(before, torch.get_rng_state())
    assert [name for name, _ in seconds] == ["SparseConv2d"] * 4 + ["SparseLinear"] * 4
    for name in costs:
        assert costs[name] == pytest.approx((16e-9, 2e-6, 10e-6))
    densities = [density for _, density in seconds]
    assert densities[4:6] == pytest.approx([0.02, 0.2], abs=0.001)


def test_measured_costs_tell_what_disturbed_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Choice(1.0, 2.0), Choice(1.0, 2.0, "other processes kept 1.3 processors busy"), Choice(1.0, 2.0)]
    monkeypatch.setattr("sparseprune.cost.seconds.choose", lambda *_: found.pop(0) if found[1:] else found[0])
    model = nn.Sequential(nn.Linear(8, 9), nn.Linear(9, 8))
    assert measured_costs(model, (8,), 4).disturbed == "other processes kept 1.3 processors busy"
    assert measured_costs(model, (8,), 4).disturbed == ""


def test_equal_layers_are_measured_once(seconds: list[tuple[str, float]]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    costs = measured_costs(model, (8,), 4, block=(4, 1))
    assert len(seconds) == 4  # the first layer needs no gradient of its input
    assert costs["1.weight"] == costs["2.weight"]


def test_all_calls_of_a_layer_are_measured(seconds: list[tuple[str, float]]) -> None:
    costs = measured_costs(Repeating(), (4, 8, 8), 16)
    assert costs["conv.weight"] == pytest.approx((3 * 16e-9, 3 * 2e-6, 3 * 10e-6))
    assert costs["fc.weight"] == pytest.approx((16e-9, 2e-6, 10e-6))


def test_a_frozen_layer_is_measured_on_its_own(seconds: list[tuple[str, float]]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model.get_parameter("1.weight").requires_grad_(False)
    measured_costs(model, (8,), 4)
    assert len(seconds) == 6


def test_the_patterns_of_a_tiny_layer_differ(seconds: list[tuple[str, float]]) -> None:
    for rows, cols, expected in ((1, 1, [1, 1]), (2, 2, [1, 4]), (3, 6, [1, 10]), (10, 10, [2, 20])):
        seconds.clear()
        measured_costs(nn.Sequential(nn.Linear(cols, rows)), (cols,), 4)
        assert [density * rows * cols for _, density in seconds] == pytest.approx(expected)


def test_a_layer_without_sparse_kernels_costs_what_dense_does(
    seconds: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparseprune.cost.seconds.measure_dense", lambda *_: timer.Timed([5.0]))
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(16, 3))
    costs = measured_costs(model, (4, 4, 4), 2)
    assert costs["0.weight"] == (0.0, 5.0, 5.0)
    assert {name for name, _ in seconds} == {"SparseLinear"}


def test_dense_is_timed_alone_where_it_has_no_twin() -> None:
    layer = nn.Conv2d(4, 4, 3, groups=4)
    costs = measured_costs(nn.Sequential(layer), (4, 6, 6), 2)
    assert costs["0.weight"].dense == costs["0.weight"].fixed > 0
    assert layer.weight.grad is None


@pytest.mark.parametrize("input_size", [None, 8, "8", (2, -8, 8), (2, 8.0, 8), (2, True, 8), (2, 0, 8)])
def test_an_input_size_is_a_shape(input_size: object) -> None:
    with pytest.raises(ValueError, match="cost: expected input_size to be the shape of one sample, such as"):
        flops_costs(small_net(), input_size)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_a_batch_has_samples(batch_size: object) -> None:
    with pytest.raises(ValueError, match="batch_size: expected a whole number of samples, 1 or more, got"):
        measured_costs(small_net(), SAMPLE, batch_size)


def test_a_model_that_takes_no_such_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="cost: expected input_size to be the shape of a sample"):
        flops_costs(small_net(), (3, 8, 8))

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    with pytest.raises(ValueError, match=r"call every layer, got none of 'other\.weight'; exclude it"):
        flops_costs(Unused(), (3,))
    assert list(flops_costs(Unused(), (3,), exclude=["other"])) == ["used.weight"]


# ---- prune(flops=) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["random", "magnitude", "snip", "grasp"])
@pytest.mark.parametrize("block", [(1, 1), (4, 1)])
def test_prune_keeps_the_operations_that_it_was_given(method: str, block: tuple[int, int]) -> None:
    model = small_net()
    costs = flops_costs(model, SAMPLE)
    everything = flops_per_step(model, SAMPLE, 1)
    for fraction in (0.5, 0.2):
        masks = sp.prune(model, batches(), method=method, flops=fraction, block=block, min_per_layer=1)
        sparse = sp.sparsify(model, masks, layers="sparse")
        left = fraction * everything - flops_per_step(sparse, SAMPLE, 1)
        dearest = max(block[0] * costs[n].per_weight for n in masks)
        cheapest = min(
            (block[0] if model.get_submodule(n[0]).weight.shape[0] % block[0] == 0 else 1)
            * costs[n].per_weight
            for n, m in masks.items()
            if not m.all()
        )
        assert 0 <= left < min(cheapest, dearest)
        assert total_cost(masks, costs) == flops_per_step(sparse, SAMPLE, 1)
    assert all(mask.all() for mask in sp.prune(model, batches(), method=method, flops=1.0).values())


def test_the_sample_comes_from_the_first_batch_which_is_scored_too() -> None:
    model, given = small_net(), batches()
    expected = sp.prune(model, given, flops=0.3, input_size=SAMPLE, min_per_layer=1)
    for source in (given, iter(given), (pair for pair in given)):
        masks = sp.prune(model, source, flops=0.3, min_per_layer=1)
        assert all(torch.equal(masks[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"flops": 0.1, "sparsity": 0.9}, ValueError, "one of sparsity, flops and speedup, got sparsity and"),
        ({"flops": 0.1, "speedup": 3}, ValueError, "got flops and speedup; choose one"),
        ({"flops": 0}, ValueError, r"flops: expected the fraction .* in \(0, 1\], got 0"),
        ({"flops": 1.5}, ValueError, r"in \(0, 1\], got 1\.5"),
        ({"flops": "0.1"}, TypeError, "flops: expected a number, got str"),
        ({"speedup": 0.5}, ValueError, "speedup: expected 1 or more times as fast as dense, got 0.5"),
        ({"speedup": float("nan")}, ValueError, "speedup: expected 1 or more"),
        ({"flops": 0.1, "scope": "layer"}, ValueError, 'expected "global" with flops'),
        (
            {"flops": 0.1, "cost_exponent": 2},
            ValueError,
            "cost_exponent: expected a number from 0 to 1, got 2",
        ),
        ({"flops": 0.1, "cost_exponent": "a"}, TypeError, "cost_exponent: expected a number from 0 to 1"),
        (
            {"flops": 0.1, "block": "auto"},
            ValueError,
            r'"auto" chooses V by measured time, for speedup= only',
        ),
        ({"speedup": 2, "block": "4x1"}, ValueError, r'expected \(V, 1\), "auto" or "channel", got'),
        ({"speedup": 2, "batch_size": 0}, ValueError, "batch_size: expected a whole number of samples"),
        (
            {"flops": 0.01, "input_size": SAMPLE, "min_per_layer": 5},
            ValueError,
            r"flops: expected at least 0\.0262, what min_per_layer takes, got 0\.01; most .* '0\.weight' \(0",
        ),
    ],
)
def test_targets_that_cannot_be(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    def unread() -> object:
        raise AssertionError("the data was read")
        yield

    with pytest.raises(error, match=message):
        sp.prune(small_net(), unread(), **arguments)


def test_a_floor_is_reached_with_the_operations_that_the_error_names() -> None:
    masks = sp.prune(small_net(), batches(), flops=0.0262, min_per_layer=5)
    assert all(int(mask.sum()) >= 5 for mask in masks.values())


def test_a_sample_comes_from_a_pair_of_tensors() -> None:
    (x, y), *_ = batches()
    for given in ([x], [{"x": x}], [([1.0], y)], [(x,)]):
        with pytest.raises(TypeError, match="prune: expected each item of batches to be a pair of tensors"):
            sp.prune(small_net(), given, flops=0.1)
    with pytest.raises(TypeError, match=r"prune: expected batches to be an iterable .* got an int"):
        sp.prune(small_net(), 5, flops=0.1)


def test_costs_need_a_sample() -> None:
    with pytest.raises(ValueError, match="expected input_size=, the shape of one sample, or batches"):
        sp.prune(small_net(), method="random", flops=0.1)
    with pytest.raises(ValueError, match="expected at least one batch, got none"):
        sp.prune(small_net(), [], flops=0.1)
    assert sp.prune(small_net(), method="random", flops=0.5, input_size=SAMPLE, min_per_layer=1)


# ---- prune(speedup=) ---------------------------------------------------------------------------------------


class Machine:
    """A training step takes what the layers take, 3 us more, 2 us beyond that in a sparse model, 1 us in a
    dense one that is not channels_last; all so many times slower, sparse steps so many times again."""

    def __init__(self) -> None:
        self.timed: list[list[float]] = []
        self.slow: Callable[[], float] = lambda: 1.0
        self.sparse_slow: Callable[[], float] = lambda: 1.0
        self.disturbed = ""

    def timed_steps(
        self, models: list[tuple[nn.Module, bool]], input_size: object, batch_size: int
    ) -> timer.Timed:
        slow, sparse_slow, times = self.slow(), self.sparse_slow(), []
        for model, channels_last in models:
            layers = [m for m in model.modules() if isinstance(m, SparseLayer)]
            total = 3e-6 + sum(min(2e-6 + 1e-9 * m.values.numel() * batch_size, 10e-6) for m in layers)
            total += 10e-6 * (4 - len(layers)) + (2e-6 if layers else 0)
            total += 0 if layers or channels_last else 1e-6
            times.append(total * slow * (sparse_slow if layers else 1))
        self.timed.append(times)
        return timer.Timed(times, self.disturbed)


@pytest.fixture
def steps(seconds: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(speedup, "timed_steps", machine.timed_steps)
    monkeypatch.setattr(
        "sparseprune._prune.sparsify", lambda model, masks, **_: sp.sparsify(model, masks, layers="sparse")
    )
    return machine


@pytest.mark.parametrize("speedup", [1.5, 2.0, 2.8])
def test_the_speedup_is_timed_and_the_budget_corrected(steps: Machine, speedup: float) -> None:
    masks = sp.prune(small_net(), batches(), speedup=speedup, batch_size=16, min_per_layer=1)
    found = masks.speedup
    assert found.promised == speedup
    assert found.dense_seconds == pytest.approx(43e-6)
    assert found.measured == pytest.approx(found.dense_seconds / found.sparse_seconds)
    assert found.measured == pytest.approx(speedup, rel=0.06)
    assert found.disturbed == ""
    # Dense both ways, then dense and sparse, again where 2 us more matter.
    assert 2 <= len(steps.timed) <= 4
    assert len(steps.timed) > 2 or speedup < 2.8


def test_blocks_are_chosen_by_the_measured_time(steps: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def quicker_blocks(
        model: nn.Module, *_: object, block: tuple[int, int], **__: object
    ) -> dict[str, LayerCost]:
        costs = measured_costs(model, SAMPLE, 16)
        quicker = {1: 1.0, 4: 0.6, 16: 1.0}[block[0]]
        return {
            n: c if n == "0.weight" else c._replace(per_weight=quicker * c.per_weight)
            for n, c in costs.items()
        }

    options = {"batch_size": 16, "min_per_layer": 1, "block": "auto"}
    masks = sp.prune(small_net(), batches(), speedup=2.0, **options)
    assert largest_block(masks["5.weight"]) == 1  # of equal costs
    monkeypatch.setattr("sparseprune._prune.measured_costs", quicker_blocks)
    masks = sp.prune(small_net(), batches(), speedup=1.8, **options)
    assert largest_block(masks["5.weight"]) == 4
    assert 0 < masks["5.weight"].float().mean() < 1


def test_noise_in_the_costs_of_some_blocks_is_no_error(
    steps: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured with one V, a layer took dense a tenth of what it took with others."""

    def noisy(*_: object, block: tuple[int, int], **__: object) -> dict[str, LayerCost]:
        costs = measured_costs(small_net(), SAMPLE, 16)
        lucky = {1: "0.weight", 4: "2.weight", 16: "5.weight"}[block[0]]
        return {n: LayerCost(c.per_weight, 9e-6, 1e-6 if n == lucky else 1e-5) for n, c in costs.items()}

    monkeypatch.setattr("sparseprune._prune.measured_costs", noisy)
    with pytest.warns(RuntimeWarning, match=r"speedup: expected 6 times, got masks that are measured to be"):
        sp.prune(small_net(), batches(), speedup=6, batch_size=16, min_per_layer=1, block="auto")


OUT_OF_REACH = (
    r"speedup: expected at most 3\.29 times here, got 1000: of a dense step of 0\.043 ms the sparse one "
    r"takes 0\.0131 ms with one weight in each layer; the layers alone, most of all, '\d\.weight' 0\.002 ms, "
    r".*; larger "
)


@pytest.mark.parametrize("factor", [0.0, 1e-3, 0.3, 1.0, 50.0, 1e4])
def test_a_limit_is_the_same_however_long_layers_were_measured_to_take(
    factor: float, steps: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disturbed(*arguments: object, **options: object) -> dict[str, LayerCost]:
        costs = measured_costs(small_net(), SAMPLE, 16)
        return {name: LayerCost(*(factor * part for part in cost)) for name, cost in costs.items()}

    monkeypatch.setattr("sparseprune._prune.measured_costs", disturbed)
    with pytest.raises(ValueError, match=r"speedup: expected at most 3\.29 times here, got 1000: of a dense"):
        sp.prune(small_net(), batches(), speedup=1000, batch_size=16)


@pytest.mark.parametrize("slow", [[1.0], [200.0], [1.0, 300.0, 2.0], [90.0, 0.5]])
def test_a_limit_is_the_same_however_slow_the_machine_was(slow: list[float], steps: Machine) -> None:
    turns = itertools.cycle(slow)
    steps.slow = lambda: next(turns)
    with pytest.raises(ValueError, match=r"speedup: expected at most 3\.29 times here, got 1000: of a dense"):
        sp.prune(small_net(), batches(), speedup=1000, batch_size=16)


def test_a_speedup_out_of_reach_says_the_best_and_what_limits_it(steps: Machine) -> None:
    with pytest.raises(ValueError, match=OUT_OF_REACH + "batches or blocks may help$"):
        sp.prune(small_net(), batches(), speedup=1000, batch_size=16)
    with pytest.raises(ValueError, match=r"at most 3\.29 times here, got 6\.6: "):
        sp.prune(small_net(), batches(), speedup=6.6, batch_size=16)
    steps.disturbed = "other processes kept 1.3 processors busy"
    with pytest.raises(ValueError, match=rf"may help; {steps.disturbed} meanwhile, so take this roughly$"):
        sp.prune(small_net(), batches(), speedup=1000, batch_size=16)


def test_a_speedup_missed_on_a_busy_machine_warns_and_returns_the_best(steps: Machine) -> None:
    steps.disturbed = "other processes kept 1.3 processors busy"
    # Sparse steps suffer more.
    steps.sparse_slow = lambda: 1.5
    message = (
        r"speedup: expected 2\.8 times, got masks that are measured to be 1\.\d+ times as fast as dense, "
        rf"3\d% less, the closest found: {steps.disturbed} while steps were timed; prune again on a quiet "
        "machine$"
    )
    with pytest.warns(RuntimeWarning, match=message) as caught:
        masks = sp.prune(small_net(), batches(), speedup=2.8, batch_size=16, min_per_layer=1)
    assert Path(caught[0].filename) == Path(__file__)
    assert list(masks) == ["0.weight", "2.weight", "5.weight", "6.weight"]
    assert masks.speedup.disturbed == steps.disturbed
    assert 1.7 < masks.speedup.measured < 2


def test_a_speedup_missed_on_a_quiet_machine_says_what_limits_it(steps: Machine) -> None:
    message = (
        r"expected 6\.5 times, .*closest found: at most 3\.29 times here, of a dense step of 0\.043 ms the"
    )
    with pytest.warns(RuntimeWarning, match=message):
        masks = sp.prune(small_net(), batches(), speedup=6.5, batch_size=16, min_per_layer=1)
    assert 2.5 < masks.speedup.measured < 3.29


def test_what_costs_nothing_by_noise_makes_nothing_possible(
    steps: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {name: LayerCost(1e-15, 0.0, 1e-5) for name in measured_costs(small_net(), SAMPLE, 16)}
    monkeypatch.setattr("sparseprune._prune.measured_costs", lambda *_, **__: free)
    with pytest.raises(ValueError, match=r"speedup: expected at most 3\.29 times here, got 1000: of a dense"):
        sp.prune(small_net(), batches(), speedup=1000, batch_size=16)


def test_a_timed_step_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = small_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    assert speedup.timed_steps([(model, False)], SAMPLE, 4).seconds[0] > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_measuring_alone_is_the_same_as_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(timer, "clock", lambda device: float(next(ticks)))
    call = Call((4, 6, 6), (4, 4, 4), True)
    assert choice.measure_dense(nn.Conv2d(4, 4, 3, groups=4), 2, call).seconds == [1.0]


def test_a_layer_left_empty_is_named_whatever_the_speedup(steps: Machine) -> None:
    model = small_net()
    with torch.no_grad():
        model.get_parameter("5.weight").mul_(1e-6)
    with pytest.raises(
        ValueError, match=r"expected every layer to keep a weight, got none kept in '5\.weight'"
    ):
        sp.prune(model, method="magnitude", speedup=3.0, batch_size=16, cost_exponent=0, input_size=SAMPLE)
